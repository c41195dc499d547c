"""The engine's own storage backends: opening them with Python's storage options, and using them as a plugin."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any, TypeVar

from . import _core
from .errors import InvalidArgumentError
from .io_types import ReadIO, StoragePlugin, WriteIO

T = TypeVar("T")

#: The storage option that is no text: a function that returns credentials as a dict of str to str.
CREDENTIALS_OPTION = "credentials"


def open_native_storage(url: str, storage_options: dict[str, Any]) -> _core.Storage:
    """Opens a native backend. Options are texts, numbers and booleans; ``credentials`` is a function."""
    options = dict(storage_options)
    credentials = options.pop(CREDENTIALS_OPTION, None)
    if credentials is not None and not callable(credentials):
        raise InvalidArgumentError(
            f"storage_options[{CREDENTIALS_OPTION!r}] must be a function that returns credentials, "
            f"not a {type(credentials).__name__}"
        )
    for name, value in options.items():
        if not isinstance(name, str):
            raise InvalidArgumentError(f"storage_options: the name {name!r} is no str")
        if not isinstance(value, (str, int, float, bool)):  # not shown: it may be a secret
            raise InvalidArgumentError(
                f"storage_options[{name!r}] must be a str or a number, not a {type(value).__name__}"
            )
    return _core.open_storage(url, {name: str(value) for name, value in options.items()}, credentials)


class NativeStoragePlugin(StoragePlugin):
    """A native backend for programs that use a storage plugin directly. Snapshots use the backend without this."""

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self._storage = open_native_storage(url, dict(storage_options or {}))

    async def write(self, write_io: WriteIO) -> None:
        """Creates or replaces an object; it is durable when this returns."""
        await _in_thread(lambda: _core.storage_write(self._storage, write_io.path, write_io.buf))

    async def read(self, read_io: ReadIO) -> None:
        """Reads an object or a part of it. Raises CorruptSnapshotError if the part is not all there."""
        begin, end = read_io.byte_range or (None, None)
        content = await _in_thread(lambda: _core.storage_read(self._storage, read_io.path, begin, end))
        read_io.buf = io.BytesIO(content)

    async def delete(self, path: str) -> None:
        """Removes an object; one that is not there is no error."""
        await _in_thread(lambda: _core.storage_remove(self._storage, path))

    async def delete_dir(self, path: str) -> None:
        """Removes all objects below a folder."""
        for location in await _in_thread(lambda: _core.storage_list(self._storage, path.rstrip("/") + "/")):
            await self.delete(location)

    async def close(self) -> None:
        """Nothing to release: connections end with the last reference."""


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
