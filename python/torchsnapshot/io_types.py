"""What a storage backend written in Python has to offer."""

from __future__ import annotations

import abc
import asyncio
import io
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

BufferType = bytes | memoryview

T = TypeVar("T")


@dataclass
class WriteIO:
    """One object to write: its location below the plugin's root, and its whole content.

    `buf` may view memory of the engine: it is valid until :meth:`StoragePlugin.write` returns.
    """

    path: str
    buf: BufferType


@dataclass
class ReadIO:
    """One object, or a part of it, to read into `buf`.

    `byte_range` is ``(begin, end)``, the end excluded; None means the whole object.
    """

    path: str
    buf: io.BytesIO = field(default_factory=io.BytesIO)
    byte_range: tuple[int, int] | None = None


class StoragePlugin(abc.ABC):
    """A place with objects by name, such as a bucket.

    All coroutines of one plugin run on one event loop, many of them at a time. Locations are relative, with
    ``/`` between components. An object that does not exist is a ``FileNotFoundError``.
    """

    @abc.abstractmethod
    async def write(self, write_io: WriteIO) -> None:
        """Creates or replaces an object; it is durable when this returns."""

    @abc.abstractmethod
    async def read(self, read_io: ReadIO) -> None:
        """Puts the requested bytes into ``read_io.buf``, exactly as many as asked for."""

    @abc.abstractmethod
    async def delete(self, path: str) -> None:
        """Removes one object."""

    @abc.abstractmethod
    async def delete_dir(self, path: str) -> None:
        """Removes an empty folder, where the backend has folders."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Releases connections and the like; the plugin is not used afterwards."""

    def sync_write(self, write_io: WriteIO, event_loop: asyncio.AbstractEventLoop | None = None) -> None:
        """:meth:`write`, blocking, on `event_loop` or on one of its own."""
        _run(self.write(write_io), event_loop)

    def sync_read(self, read_io: ReadIO, event_loop: asyncio.AbstractEventLoop | None = None) -> None:
        """:meth:`read`, blocking, on `event_loop` or on one of its own."""
        _run(self.read(read_io), event_loop)

    def sync_delete(self, path: str, event_loop: asyncio.AbstractEventLoop | None = None) -> None:
        """:meth:`delete`, blocking, on `event_loop` or on one of its own."""
        _run(self.delete(path), event_loop)

    def sync_close(self, event_loop: asyncio.AbstractEventLoop | None = None) -> None:
        """:meth:`close`, blocking, on `event_loop` or on one of its own."""
        _run(self.close(), event_loop)


def _run(work: Coroutine[Any, Any, T], event_loop: asyncio.AbstractEventLoop | None) -> T:
    if event_loop is not None:
        return event_loop.run_until_complete(work)
    own = asyncio.new_event_loop()
    try:
        return own.run_until_complete(work)
    finally:
        own.close()
