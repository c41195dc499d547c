"""The mother of all ranks (launch.py): imports torch once, and forks the ranks of each launch.

A line of JSON on its input begins a launch; a line on its output says how the ranks ended.
"""

from __future__ import annotations

import ctypes
import datetime
import importlib
import inspect
import json
import os
import pathlib
import signal
import sys
import time
import traceback

import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(seconds=60)
MODULES = ("checks", "deaths")
PR_SET_PDEATHSIG = 1


def main() -> None:
    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(launch(**json.loads(line))), flush=True)


def launch(
    world_size: int, host: str, port: int, module: str, folder: str, names: list[str], timeout: float
) -> list[int | None]:
    """The exit code of each rank, negative for a signal; None for one that had to be killed."""
    ranks: dict[int, int] = {}
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            become(rank, world_size, (host, port), module, folder, names)
        ranks[pid] = rank
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + timeout
    while len(codes) < world_size and time.monotonic() < deadline:
        for pid, rank in ranks.items():
            if rank in codes:
                continue
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for pid, rank in ranks.items():
        if rank not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[rank] = None
    return [codes[rank] for rank in range(world_size)]


def become(rank: int, world_size: int, address: tuple[str, int], module: str, folder: str, names: list[str]) -> None:
    """This process is a rank from now on."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        log = os.open(str(pathlib.Path(folder) / f"rank-{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(rank, world_size, address, module, pathlib.Path(folder), names)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(
    rank: int, world_size: int, address: tuple[str, int], module_name: str, folder: pathlib.Path, names: list[str]
) -> None:
    """The checks, one after the other; of each, how it went."""
    store = dist.TCPStore(*address, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    module = importlib.import_module(module_name)
    with (folder / f"rank-{rank}.json").open("w") as results:
        for name in names or [name for name in vars(module) if name.startswith("check_")]:
            check = getattr(module, name)
            if not names and world_size not in getattr(check, "world_sizes", (world_size,)):
                continue
            place = folder / name
            place.mkdir(exist_ok=True)
            error = None
            torch.manual_seed(0)
            started = time.monotonic()
            try:
                check(*[place][: len(inspect.signature(check).parameters)])
            except Exception:
                error = traceback.format_exc()
            results.write(json.dumps([name, error]) + "\n")
            results.flush()
            print(f"{name}: {time.monotonic() - started:.2f} s", flush=True)
            if not names:
                dist.barrier()
    if not names:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
