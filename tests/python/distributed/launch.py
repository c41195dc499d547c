"""Runs checks on several ranks at once: processes of their own, one process group, gloo.

A start costs seconds of importing torch, so one launch runs many checks, one after the other, and tells of each how it
went on each rank.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import torch.distributed as dist

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass
class Outcome:
    """How one rank ended, and what it says of each check: None if it went well, else the traceback."""

    returncode: int
    checks: dict[str, str | None]
    output: str


def run_ranks(world_size: int, module: str, folder: pathlib.Path, *checks: str, timeout: float = 240) -> list[Outcome]:
    """Runs functions of a module in this folder on every rank: all whose names begin with ``check_`` (those that take
    as many ranks), or those named."""
    folder.mkdir(parents=True, exist_ok=True)
    # As torchrun does, the parent keeps the store: it outlives every rank.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "STORE_PORT": str(store.port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in [str(HERE), *sys.path] if p),
    }
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(world_size):
            log = stack.enter_context((folder / f"rank-{rank}.log").open("w"))
            command = [sys.executable, str(HERE / "worker.py"), module, str(folder), *checks]
            process = subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        deadline = time.monotonic() + timeout
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        codes = [process.poll() for process in processes]
    outcomes = []
    for rank, code in enumerate(codes):
        results = folder / f"rank-{rank}.json"
        lines = results.read_text().splitlines() if results.exists() else []
        told = dict(json.loads(line) for line in lines)
        output = (folder / f"rank-{rank}.log").read_text()[-4000:]
        outcomes.append(Outcome(-1000 if code is None else code, told, output))
    return outcomes
