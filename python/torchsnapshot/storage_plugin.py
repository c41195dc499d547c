"""From a URL to the storage plugin that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ._entry_points import entry_points
from .errors import InvalidArgumentError, UnsupportedError
from .io_types import StoragePlugin
from .storage_plugins.fs import FSStoragePlugin
from .storage_plugins.fsspec import FsspecStoragePlugin, is_fsspec_protocol
from .storage_plugins.gcs import GCSStoragePlugin
from .storage_plugins.s3 import S3StoragePlugin

ENTRY_POINT_GROUP = "storage_plugins"
#: what the engine serves by itself
_NATIVE_SCHEMES = ("fs", "gs", "memory", "s3")


def split_url(url_path: str) -> tuple[str, str]:
    """Scheme and path of a URL; a plain path, and an empty scheme, are the file system (``fs``)."""
    scheme, separator, path = url_path.partition("://")
    return (scheme or "fs", path) if separator else ("fs", url_path)


StoragePluginFactory = Callable[[str, "dict[str, Any]"], StoragePlugin]
_factories: dict[str, StoragePluginFactory] = {}


def register_storage_plugin(scheme: str, factory: StoragePluginFactory) -> None:
    """Makes `factory` (a StoragePlugin class, or a function) serve the URLs ``scheme://path`` in this process.

    It is called with the path and the storage options, and takes precedence over entry points. A second call
    replaces the first.
    """
    if not scheme or "/" in scheme or ":" in scheme:
        raise InvalidArgumentError(f"{scheme!r} is no URL scheme")
    _factories[scheme] = factory


def unregister_storage_plugin(scheme: str) -> None:
    """Undoes :func:`register_storage_plugin`. Raises KeyError if nothing was registered."""
    del _factories[scheme]


def has_registered_plugin(scheme: str) -> bool:
    """True if a plugin serves the scheme: one of this process, of an installed package or, for what the engine does
    not serve, of fsspec."""
    if scheme in _factories or any(point.name == scheme for point in entry_points(ENTRY_POINT_GROUP)):
        return True
    return scheme not in _NATIVE_SCHEMES and is_fsspec_protocol(scheme)


def url_to_storage_plugin(url_path: str, storage_options: dict[str, Any] | None = None) -> StoragePlugin:
    """The plugin for a URL ``scheme://path`` or a plain path.

    Programs bring plugins for further schemes by :func:`register_storage_plugin`, packages by an entry point of the
    group ``storage_plugins``, named as the scheme: a factory that is called with the path and the options. What nobody
    else serves goes to fsspec, if that is installed and knows the scheme. Raises RuntimeError for an unknown scheme.
    """
    if not isinstance(url_path, str):
        raise TypeError(f"a URL must be a str, not {type(url_path).__name__}")
    scheme, path = split_url(url_path)
    options = dict(storage_options or {})
    points = {point.name: point for point in entry_points(ENTRY_POINT_GROUP)}
    if scheme in _factories:
        plugin, origin = _factories[scheme](path, options), repr(_factories[scheme])
    elif scheme == "fs":
        return FSStoragePlugin(root=path, storage_options=options)
    elif scheme in points:
        plugin, origin = points[scheme].load()(path, options), points[scheme].value
    elif scheme == "s3":
        return S3StoragePlugin(root=path, storage_options=options)
    elif scheme == "gs":
        return GCSStoragePlugin(root=path, storage_options=options)
    elif is_fsspec_protocol(scheme):
        return FsspecStoragePlugin(scheme, path, options)
    else:
        known = sorted({"fs", "gs", "s3", *points, *_factories})
        raise UnsupportedError(f"{url_path}: no storage plugin for {scheme}:// (known: {', '.join(known)})")
    if not isinstance(plugin, StoragePlugin):
        raise InvalidArgumentError(
            f"the storage plugin for {scheme}:// ({origin}) gave {plugin!r}, which is no StoragePlugin"
        )
    return plugin


def url_to_storage_plugin_in_event_loop(
    url_path: str,
    event_loop: asyncio.AbstractEventLoop,
    storage_options: dict[str, Any] | None = None,
) -> StoragePlugin:
    """As :func:`url_to_storage_plugin`, with `event_loop` running while the plugin is made."""

    async def make() -> StoragePlugin:
        return url_to_storage_plugin(url_path, storage_options)

    return event_loop.run_until_complete(make())
