"""Look-up of entry points."""

from __future__ import annotations

from importlib import metadata


def entry_points(group: str) -> list[metadata.EntryPoint]:
    """The installed entry points of a group, in a stable order, each name and value once."""
    unique = {(point.name, point.value): point for point in metadata.entry_points(group=group)}
    return [unique[key] for key in sorted(unique)]
