"""One rank of a launch (launch.py)."""

from __future__ import annotations

import datetime
import importlib
import inspect
import json
import os
import pathlib
import sys
import traceback

import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(seconds=60)


def main(module_name: str, folder: str, *names: str) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", int(os.environ["STORE_PORT"]), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    module = importlib.import_module(module_name)
    with (pathlib.Path(folder) / f"rank-{rank}.json").open("w") as results:
        for name in names or [name for name in vars(module) if name.startswith("check_")]:
            check = getattr(module, name)
            if not names and world_size not in getattr(check, "world_sizes", (world_size,)):
                continue
            place = pathlib.Path(folder) / name
            place.mkdir(exist_ok=True)
            error = None
            torch.manual_seed(0)
            try:
                check(*[place][: len(inspect.signature(check).parameters)])
            except Exception:
                error = traceback.format_exc()
            results.write(json.dumps([name, error]) + "\n")
            results.flush()
            if not names:
                dist.barrier()
    if not names:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
