"""Questions about entries."""

from __future__ import annotations

from .manifest import (
    DictEntry,
    DTensorEntry,
    Entry,
    ListEntry,
    NestedList,
    OrderedDictEntry,
    ShardedTensorEntry,
)


def is_dict_entry(entry: Entry) -> bool:
    """True for dict and OrderedDict."""
    return isinstance(entry, (DictEntry, OrderedDictEntry))


def is_container_entry(entry: Entry) -> bool:
    """True for list, dict and OrderedDict."""
    return isinstance(entry, (ListEntry, DictEntry, OrderedDictEntry))


def is_sharded_entry(entry: Entry) -> bool:
    """True for a ShardedTensor, and for a DTensor with a dimension that is sharded."""
    if isinstance(entry, DTensorEntry):
        return bool(_sharding_mesh_dims(entry))
    return isinstance(entry, ShardedTensorEntry)


def is_fully_replicated_entry(entry: Entry) -> bool:
    """True when every rank has the whole value."""
    if isinstance(entry, DTensorEntry):
        return not _sharding_mesh_dims(entry)
    return bool(getattr(entry, "replicated", False))


def is_partially_replicated_entry(entry: Entry) -> bool:
    """True for a DTensor that some dimensions of the mesh shard and others replicate."""
    if isinstance(entry, DTensorEntry):
        return 0 < len(_sharding_mesh_dims(entry)) < _depth(entry.mesh)
    return False


def is_replicated_entry(entry: Entry) -> bool:
    """True when a rank has the same bytes as another, of the whole value or of a shard."""
    return is_fully_replicated_entry(entry) or is_partially_replicated_entry(entry)


def _sharding_mesh_dims(entry: DTensorEntry) -> set[int]:
    return {mesh_dim for dims in entry.dim_map for mesh_dim in dims if mesh_dim != -1}


def _depth(mesh: NestedList) -> int:
    depth = 0
    while isinstance(mesh, list):
        depth += 1
        if not mesh:
            break
        mesh = mesh[0]
    return depth
