"""What the tests register by entry point: storage plugins written in Python, and an event handler.

The folder of this file is a minimal installed distribution (module and .dist-info); conftest.py puts it on sys.path
before torchsnapshot is imported. The tests reach the state kept here by importing this module.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import threading
from typing import Any

from torchsnapshot.io_types import ReadIO, StoragePlugin, WriteIO
from torchsnapshot.storage_plugins.fs import FSStoragePlugin


@dataclasses.dataclass
class Bucket:
    """The objects of one testmem:// root, and what was asked of them."""

    objects: dict[str, bytes] = dataclasses.field(default_factory=dict)
    reads: list[tuple[str, tuple[int, int] | None]] = dataclasses.field(default_factory=list)
    writes: list[str] = dataclasses.field(default_factory=list)
    options: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    closed: int = 0
    busy: int = 0
    most_busy: int = 0
    delay: float = 0.0
    fail_write: str = ""  # fail the write of a path that contains this
    fail_read: str = ""
    short_read: str = ""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


BUCKETS: dict[str, Bucket] = {}


class MemoryPlugin(StoragePlugin):
    """The five methods that the original's StoragePlugin demands, over a dict."""

    def __init__(self, root: str, storage_options: dict[str, Any] | None) -> None:
        self.bucket = BUCKETS.setdefault(root, Bucket())
        self.bucket.options.append(dict(storage_options or {}))

    async def _work(self) -> None:
        with self.bucket.lock:
            self.bucket.busy += 1
            self.bucket.most_busy = max(self.bucket.most_busy, self.bucket.busy)
        if self.bucket.delay:
            await asyncio.sleep(self.bucket.delay)
        with self.bucket.lock:
            self.bucket.busy -= 1

    async def write(self, write_io: WriteIO) -> None:
        await self._work()
        if self.bucket.fail_write and self.bucket.fail_write in write_io.path:
            raise OSError(f"the test refuses to write {write_io.path}")
        with self.bucket.lock:
            self.bucket.writes.append(write_io.path)
            self.bucket.objects[write_io.path] = bytes(write_io.buf)

    async def read(self, read_io: ReadIO) -> None:
        await self._work()
        if self.bucket.fail_read and self.bucket.fail_read in read_io.path:
            raise OSError(f"the test refuses to read {read_io.path}")
        with self.bucket.lock:
            self.bucket.reads.append((read_io.path, tuple(read_io.byte_range) if read_io.byte_range else None))
            data = self.bucket.objects[read_io.path]
        if read_io.byte_range is not None:
            data = data[read_io.byte_range[0] : read_io.byte_range[1]]
        if self.bucket.short_read and self.bucket.short_read in read_io.path:
            data = data[:-1]
        read_io.buf = io.BytesIO(data)

    async def delete(self, path: str) -> None:
        with self.bucket.lock:
            del self.bucket.objects[path]

    async def delete_dir(self, path: str) -> None:
        with self.bucket.lock:
            for name in [name for name in self.bucket.objects if name.startswith(path.rstrip("/") + "/")]:
                del self.bucket.objects[name]

    async def close(self) -> None:
        self.bucket.closed += 1


def memory_plugin(path: str, storage_options: dict[str, Any] | None = None) -> StoragePlugin:
    return MemoryPlugin(path, storage_options)


class CountingFSPlugin(FSStoragePlugin):
    """A subclass of the package's own plugin, as programs write them: counts, then does as its base does."""

    paths_written: list[str] = []  # noqa: RUF012 - shared on purpose, the test reads it
    paths_read: list[str] = []  # noqa: RUF012

    async def write(self, write_io: WriteIO) -> None:
        self.paths_written.append(write_io.path)
        await super().write(write_io)

    async def read(self, read_io: ReadIO) -> None:
        self.paths_read.append(read_io.path)
        await super().read(read_io)


def counting_fs_plugin(path: str, storage_options: dict[str, Any] | None = None) -> StoragePlugin:
    return CountingFSPlugin(path)


def not_a_plugin(path: str, storage_options: dict[str, Any] | None = None) -> object:
    return object()


class EventRecorder:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def handle_event(self, event: Any) -> None:
        self.events.append(event)


RECORDER = EventRecorder()


def event_recorder() -> EventRecorder:
    return RECORDER
