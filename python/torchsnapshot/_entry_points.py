"""Look-up of entry points."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib import metadata


def entry_points(group: str) -> list[metadata.EntryPoint]:
    """The installed entry points of a group, in a stable order, each name and value once. Searched again only when
    ``sys.path`` has changed: the files of all installed packages take milliseconds to read."""
    return list(_entry_points(group, tuple(map(str, sys.path))))


@lru_cache(maxsize=16)
def _entry_points(group: str, path: tuple[str, ...]) -> list[metadata.EntryPoint]:
    del path  # part of the key only
    unique = {(point.name, point.value): point for point in metadata.entry_points(group=group)}
    return [unique[key] for key in sorted(unique)]
