"""One rank of part_ranks.py: for each line of JSON on standard input it does a job with the other ranks, and prints
what came of it.

Usage: ranks_worker.py RANK WORLD_SIZE STORE_PORT
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torchsnapshot import Snapshot, StateDict

TENSOR = 64 << 20


class Rank:
    def __init__(self, rank: int, world: int, port: int) -> None:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        self.rank = rank
        self.alone = dist.new_group([0])
        self.state = StateDict()

    def make(self, size: int) -> dict[str, Any]:
        """The same on every rank."""
        self.state.clear()
        for i in range(max(1, size // TENSOR)):
            words = torch.arange(min(size, TENSOR) // 4, dtype=torch.int32)
            self.state[f"t{i}"] = words.mul_(1664525).add_(i)
        return {"tensors": len(self.state)}

    def take(self, path: str, alone: bool, options: dict[str, Any]) -> dict[str, Any]:
        """By all ranks, or by rank 0 alone."""
        if alone and self.rank != 0:
            return self.timed(lambda: None)
        group = self.alone if alone else None
        return self.timed(
            lambda: Snapshot.take(
                path, {"m": self.state}, group, ["**"], storage_options=options or None, progress=False
            )
        )

    def restore(self, path: str, how: str, options: dict[str, Any]) -> dict[str, Any]:
        """Over a state that is wiped before, and compared afterwards."""
        for tensor in self.state.values():
            tensor.zero_()
        dist.barrier()
        snapshot = Snapshot(path, storage_options=options or None)
        result = self.timed(lambda: snapshot.restore({"m": self.state}, replicated_read=how, progress=False))
        for i, tensor in enumerate(self.state.values()):
            wanted = torch.arange(tensor.numel(), dtype=torch.int32).mul_(1664525).add_(i)
            if not torch.equal(tensor, wanted):
                raise AssertionError("what was restored is not what was saved")
        return result

    def timed(self, call: Any) -> dict[str, Any]:
        dist.barrier()
        cpu, began = time.process_time(), time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        result = {"seconds": seconds, "cpu": time.process_time() - cpu}
        dist.barrier()
        return result


def main() -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "AKIDBENCH")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "bench-secret")
    rank = Rank(*map(int, sys.argv[1:4]))
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(getattr(rank, job.pop("job"))(**job)), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
