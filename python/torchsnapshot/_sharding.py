"""Which boxes of a global tensor a DTensor or ShardedTensor has on this rank, and who else has them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist

from .errors import UnsupportedError

#: a range [begin, end) of a dimension
Interval = tuple[int, int]
#: offsets, sizes, the memory
Shard = tuple[tuple[int, ...], tuple[int, ...], torch.Tensor]

_NOT_SHARDED = [-1]


def is_sharded(tensor: torch.Tensor) -> bool:
    """True for a DTensor and a ShardedTensor."""
    return _is_dtensor(tensor) or _is_sharded_tensor(tensor)


def describe_sharded(
    tensor: Any, path: str, group: dist.ProcessGroup | None
) -> tuple[torch.dtype, tuple[int, ...], list[Shard], tuple[int, ...], list[int], list[list[int]], list[int]]:
    """dtype, global shape, this rank's shards, shape of the mesh, its ranks, dim_map, and the ranks (within `group`)
    that hold the same shards. The last four are empty for a ShardedTensor."""
    if _is_sharded_tensor(tensor):
        shards = [
            (tuple(shard.metadata.shard_offsets), tuple(shard.metadata.shard_sizes), shard.tensor.detach())
            for shard in tensor.local_shards()
        ]
        return tensor.dtype, tuple(tensor.size()), shards, (), [], [], []
    mesh, placements = tensor.device_mesh, tensor.placements
    for placement in placements:
        if placement.is_partial():
            raise UnsupportedError(
                f"'{path}' is a DTensor with the placement {type(placement).__name__}: what each rank has is only a "
                "part of a sum. Redistribute it to Replicate() or Shard(dim) first"
            )
    dim_map = [
        [mesh_dim for mesh_dim, placement in enumerate(placements) if _shard_dim(placement) == dim] or _NOT_SHARDED
        for dim in range(tensor.ndim)
    ]
    ranks = mesh.mesh
    layout = tuple(ranks.shape), [int(rank) for rank in ranks.flatten()], dim_map
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # the mesh is of other ranks
        return tensor.dtype, tuple(tensor.shape), [], *layout, []
    sharding = tuple(_key(placement) for placement in placements)
    intervals = local_intervals(tuple(tensor.shape), tuple(ranks.shape), tuple(coordinate), sharding)
    local = _local_tensor(tensor)
    if tuple(local.shape) != tuple(sum(end - begin for begin, end in dim) for dim in intervals):
        raise UnsupportedError(
            f"'{path}' is a DTensor of shape {tuple(tensor.shape)} with the placements {list(placements)}, of which "
            f"this rank holds {tuple(local.shape)}, which is not what the placements say"
        )
    shards = _cut(local, intervals)
    return tensor.dtype, tuple(tensor.shape), shards, *layout, _replicas(ranks, coordinate, placements, group)


def local_intervals(
    shape: tuple[int, ...],
    mesh_shape: tuple[int, ...],
    coordinate: tuple[int, ...],
    sharding: tuple[tuple[int, int] | None, ...],
) -> list[list[Interval]]:
    """For each dimension of the tensor, the ranges of it that the rank at `coordinate` holds, in the order in which it
    holds them. `sharding`: per dimension of the mesh, the tensor's dimension and the split factor (0: a plain
    ``Shard``), or None."""
    intervals: list[list[Interval]] = [[(0, size)] for size in shape]
    for mesh_dim, how in enumerate(sharding):
        if how is None:
            continue
        dim, split_factor = how
        chunks, index = mesh_shape[mesh_dim], coordinate[mesh_dim]
        size = sum(end - begin for begin, end in intervals[dim])
        if split_factor == 0:
            pieces = [_chunk(size, chunks, index)]
        else:
            # As if cut into split_factor parts before, of each of which this rank has its chunk.
            parts = [_chunk(size, split_factor, part) for part in range(split_factor)]
            cut = [(begin, _chunk(end - begin, chunks, index)) for begin, end in parts]
            pieces = [(begin + first, begin + last) for begin, (first, last) in cut]
        intervals[dim] = _select(intervals[dim], pieces)
    return intervals


def _chunk(size: int, chunks: int, index: int) -> Interval:
    """As torch.chunk cuts: ceil(size / chunks) each, the last ones less or nothing."""
    step = -(-size // chunks)
    return min(size, index * step), min(size, (index + 1) * step)


def _select(intervals: list[Interval], pieces: list[Interval]) -> list[Interval]:
    """The parts of `intervals`, put one behind the other, that `pieces` name; neighbours become one."""
    selected: list[Interval] = []
    for first, last in pieces:
        position = 0
        for begin, end in intervals:
            low, high = max(first, position), min(last, position + end - begin)
            if low < high:
                start, stop = begin + low - position, begin + high - position
                if selected and selected[-1][1] == start:
                    start = selected.pop()[0]
                selected.append((start, stop))
            position += end - begin
    return selected


def _cut(local: torch.Tensor, intervals: list[list[Interval]]) -> list[Shard]:
    """The boxes that the products of the ranges are, each with its part of the local tensor."""
    placed: list[list[tuple[int, int, int]]] = []  # begin, end, position in the local tensor
    for ranges in intervals:
        lengths = [end - begin for begin, end in ranges]
        positions = [0, *itertools.accumulate(lengths)]
        found = [(begin, end, position) for (begin, end), position in zip(ranges, positions, strict=False)]
        placed.append(found or [(0, 0, 0)])  # nothing of it: a box without elements
    shards: list[Shard] = []
    for box in itertools.product(*placed):
        part = local
        if any(len(ranges) > 1 for ranges in placed):
            for dim, (begin, end, position) in enumerate(box):
                part = part.narrow(dim, position, end - begin)
        shards.append((tuple(begin for begin, _, _ in box), tuple(end - begin for begin, end, _ in box), part))
    return shards


def _replicas(
    ranks: torch.Tensor, coordinate: list[int], placements: Any, group: dist.ProcessGroup | None
) -> list[int]:
    """The ranks of `group` that hold what this one holds: they differ only in dimensions that replicate."""
    index = tuple(
        slice(None) if _shard_dim(placement) is None else coordinate[mesh_dim]
        for mesh_dim, placement in enumerate(placements)
    )
    alike = [int(rank) for rank in ranks[index].flatten()]
    if len(alike) < 2 or not dist.is_initialized():
        return []
    if group is None:
        return sorted(alike)
    members = {global_rank: rank for rank, global_rank in enumerate(dist.get_process_group_ranks(group))}
    return sorted(members[rank] for rank in alike if rank in members)


def _key(placement: Any) -> tuple[int, int] | None:
    dim = _shard_dim(placement)
    return None if dim is None else (dim, int(getattr(placement, "split_factor", 0)))


def _shard_dim(placement: Any) -> int | None:
    """The dimension that a Shard or _StridedShard cuts; None for Replicate."""
    if placement.is_replicate():
        return None
    return int(placement.dim)


def _local_tensor(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor._local_tensor.detach()
    if type(local) is not torch.Tensor and hasattr(local, "wait"):  # the result of a collective under way
        finished: torch.Tensor = local.wait()
        return finished
    return local


def _is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def _is_sharded_tensor(tensor: Any) -> bool:
    return type(tensor).__name__ == "ShardedTensor" and hasattr(tensor, "local_shards")
