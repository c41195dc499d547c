"""From a URL to the storage plugin that serves it."""

from __future__ import annotations

import asyncio
from typing import Any

from ._entry_points import entry_points
from .errors import InvalidArgumentError, UnsupportedError
from .io_types import StoragePlugin
from .storage_plugins.fs import FSStoragePlugin

ENTRY_POINT_GROUP = "storage_plugins"


def split_url(url_path: str) -> tuple[str, str]:
    """Scheme and path of a URL; a plain path, and an empty scheme, are the file system (``fs``)."""
    scheme, separator, path = url_path.partition("://")
    return (scheme or "fs", path) if separator else ("fs", url_path)


def has_registered_plugin(scheme: str) -> bool:
    """True if an installed package offers a plugin for the scheme."""
    return any(point.name == scheme for point in entry_points(ENTRY_POINT_GROUP))


def url_to_storage_plugin(url_path: str, storage_options: dict[str, Any] | None = None) -> StoragePlugin:
    """The plugin for a URL ``scheme://path`` or a plain path.

    Packages bring plugins for further schemes by an entry point of the group ``storage_plugins``, named as the
    scheme: a factory that is called with the path and the options. Raises RuntimeError for an unknown scheme.
    """
    if not isinstance(url_path, str):
        raise TypeError(f"a URL must be a str, not {type(url_path).__name__}")
    scheme, path = split_url(url_path)
    options = dict(storage_options or {})
    if scheme == "fs":
        return FSStoragePlugin(root=path, storage_options=options)
    points = entry_points(ENTRY_POINT_GROUP)
    for point in points:
        if point.name == scheme:
            plugin = point.load()(path, options)
            if not isinstance(plugin, StoragePlugin):
                raise InvalidArgumentError(
                    f"the storage plugin for {scheme}:// ({point.value}) gave {plugin!r}, which is no StoragePlugin"
                )
            return plugin
    known = sorted({"fs", *(point.name for point in points)})
    raise UnsupportedError(f"{url_path}: no storage plugin for {scheme}:// (known: {', '.join(known)})")


def url_to_storage_plugin_in_event_loop(
    url_path: str,
    event_loop: asyncio.AbstractEventLoop,
    storage_options: dict[str, Any] | None = None,
) -> StoragePlugin:
    """As :func:`url_to_storage_plugin`, with `event_loop` running while the plugin is made."""

    async def make() -> StoragePlugin:
        return url_to_storage_plugin(url_path, storage_options)

    return event_loop.run_until_complete(make())
