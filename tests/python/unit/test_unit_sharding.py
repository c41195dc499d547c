"""Which part of a dimension a rank holds: against torch's own splitting."""

from __future__ import annotations

import random

import torch
from torch.distributed.tensor.placement_types import Shard, _StridedShard
from torchsnapshot._sharding import local_intervals


def test_random_meshes_and_placements_of_one_dimension() -> None:
    for _ in range(2000):
        size, mesh_dims = random.randint(0, 40), random.randint(1, 3)
        mesh = tuple(random.randint(1, 4) for _ in range(mesh_dims))
        coordinate = tuple(random.randrange(length) for length in mesh)
        kinds = [random.choice(["replicate", "shard", "strided"]) for _ in mesh]
        factors = [random.randint(1, 4) if kind == "strided" else 0 for kind in kinds]
        part = torch.arange(size)
        for kind, factor, length, index in zip(kinds, factors, mesh, coordinate, strict=True):
            if kind == "replicate":
                continue
            placement = _StridedShard(0, split_factor=factor) if kind == "strided" else Shard(0)
            part = placement._split_tensor(part, length, with_padding=False, contiguous=True)[0][index]
        sharding = tuple(
            None if kind == "replicate" else (0, factor) for kind, factor in zip(kinds, factors, strict=True)
        )
        intervals = local_intervals((size,), mesh, coordinate, sharding)[0]
        assert [i for begin, end in intervals for i in range(begin, end)] == part.tolist(), (size, mesh, coordinate)
        assert size == 0 or all(begin < end for begin, end in intervals)


def test_dimensions_are_independent() -> None:
    assert local_intervals((4, 6), (2, 3), (1, 2), ((0, 0), (1, 0))) == [[(2, 4)], [(4, 6)]]
    assert local_intervals((4, 6), (2, 3), (1, 2), (None, (0, 0))) == [[], [(0, 6)]]
