"""One rank of Python for test_ranks.py, started as torchrun does.

Usage: ranks_worker.py take|restore|compare SNAPSHOT
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torchsnapshot import RNGState, Snapshot, StateDict

REPLICATED = ["model/**", "optim/**", "big/*"]


def table() -> torch.Tensor:
    return torch.arange(36.0).reshape(12, 3)


class Training:
    """As struct State of ranks.cc."""

    def __init__(self, *, fresh: bool) -> None:
        torch.manual_seed(100 + dist.get_rank() if fresh else 1)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.model = torch.nn.Linear(8, 4)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01)
        if not fresh:
            torch.nn.functional.mse_loss(self.model(torch.ones(2, 8)), torch.zeros(2, 4)).backward()
            self.optimizer.step()
        rows = distribute_tensor(torch.full((12, 3), -1.0) if fresh else table(), mesh, [Shard(0)])
        self.table = StateDict(rows=rows)
        own = -1 if fresh else dist.get_rank()
        self.own = StateDict(rank=own, data=torch.full((3,), float(own)))
        self.big = StateDict(x=torch.arange(3 << 20, dtype=torch.int32) * (0 if fresh else 1))

    def app_state(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "table": self.table,
            "own": self.own,
            "optim": self.optimizer,
            "big": self.big,
            "rng": RNGState(),
        }


def main(role: str, path: str) -> None:
    dist.init_process_group("gloo")
    if role == "take":
        Snapshot.take(path, Training(fresh=False).app_state(), replicated=REPLICATED)
    else:
        restored, expected = Training(fresh=True), Training(fresh=False)
        Snapshot(path).restore(restored.app_state())
        rows = restored.table["rows"]
        assert isinstance(rows, DTensor)
        assert torch.equal(rows.full_tensor(), table())
        # Of the values of its own, a rank has those that the rank of that number has saved, in either language.
        assert restored.own["rank"] == dist.get_rank()
        assert torch.equal(restored.own["data"], expected.own["data"])
        assert torch.equal(restored.big["x"], expected.big["x"])
        step = restored.optimizer.state[restored.model.weight]["step"]
        assert step.item() == 1
        if role == "compare":  # Python took it
            assert torch.equal(restored.model.weight, expected.model.weight)
            moment = restored.optimizer.state[restored.model.weight]["exp_avg"]
            assert torch.equal(moment, expected.optimizer.state[expected.model.weight]["exp_avg"])
        else:
            torch.testing.assert_close(restored.model.weight, expected.model.weight)
        print("fine")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
