"""One rank of the original torchsnapshot: restores a snapshot that ranks of ours have taken (checks.py,
check_save_for_other_worlds and check_save_for_the_original), and compares. Runs in the original's environment.

Usage: original_ranks.py RANK WORLD_SIZE STORE_PORT SNAPSHOT
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torchsnapshot import Snapshot, StateDict

warnings.simplefilter("ignore")


def same_everywhere(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) * 1000


def sharded(shape: tuple[int, int], dim: int, world: int) -> Any:
    spec = ChunkShardingSpec(dim=dim, placements=[f"rank:{rank}/cpu" for rank in range(world)])
    return sharded_tensor.zeros(spec, *shape)


def main() -> None:
    rank, world, port = map(int, sys.argv[1:4])
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    snapshot = Snapshot(sys.argv[4])

    full = same_everywhere(37, 11)
    state = StateDict(
        big=torch.zeros(3000, 1000),
        small=torch.zeros(7),
        step=0,
        thing=None,
        st=sharded((37, 11), 0, world),
        other=sharded((37, 11), 0, world),  # saved by columns
        dt=distribute_tensor(torch.zeros(37, 11), mesh, [Shard(0)]),
    )
    own = StateDict(rank=-1, data=torch.zeros(30), note="")
    snapshot.restore({"state": state, "own": own})
    assert torch.equal(state["big"], same_everywhere(3000, 1000)), "replicated, in chunks of all ranks"
    assert torch.equal(state["small"], same_everywhere(7))
    assert state["step"] == 7, state["step"]
    assert state["thing"] == ("a", 1), state["thing"]
    assert (own["rank"], own["note"]) == (rank, f"rank {rank}"), own
    assert torch.equal(own["data"], torch.full((30,), float(rank)))
    for name in ("st", "other"):
        for shard in state[name].local_shards():
            offset, size = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
            assert torch.equal(shard.tensor, full.narrow(0, offset, size)), name
    local = state["dt"].to_local()
    first = sum(len(chunk) for chunk in full.chunk(world)[:rank])
    assert torch.equal(local, full.narrow(0, first, len(local))), "dt"
    for path in ("state/st", "state/other"):
        assert torch.equal(snapshot.read_object(f"0/{path}", obj_out=torch.zeros(37, 11)), full), path
    dist.barrier()
    dist.destroy_process_group()
    print("restored")


if __name__ == "__main__":
    main()
