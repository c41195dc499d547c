"""The file system, for programs that use a storage plugin directly. Snapshots use the engine's own backend."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import CorruptSnapshotError, InvalidArgumentError
from ..io_types import BufferType, ReadIO, StoragePlugin, WriteIO

T = TypeVar("T")


class FSStoragePlugin(StoragePlugin):
    """Objects as files below `root`; folders are made as needed.

    An object appears at once and whole: it is written under a temporary name, made durable and renamed. There are
    no options yet.
    """

    def __init__(self, root: str, storage_options: dict[str, Any] | None = None) -> None:
        if storage_options:
            unknown = ", ".join(sorted(map(str, storage_options)))
            raise InvalidArgumentError(f"unknown storage options for the file system: {unknown} (known: none)")
        self.root = root

    async def write(self, write_io: WriteIO) -> None:
        """Creates or replaces a file."""
        await _in_thread(lambda: _write_file(self._resolve(write_io.path), write_io.buf))

    async def read(self, read_io: ReadIO) -> None:
        """Reads a file or a part of it. Raises CorruptSnapshotError if the part is not all there."""
        content = await _in_thread(lambda: _read_file(self._resolve(read_io.path), read_io.byte_range))
        read_io.buf = io.BytesIO(content)

    async def delete(self, path: str) -> None:
        """Removes a file."""
        await _in_thread(lambda: os.remove(self._resolve(path)))

    async def delete_dir(self, path: str) -> None:
        """Removes an empty folder."""
        await _in_thread(lambda: os.rmdir(self._resolve(path)))

    async def close(self) -> None:
        """Nothing to release."""

    def _resolve(self, path: str) -> str:
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise InvalidArgumentError(f"{path!r}: a location must be relative and stay below the root")
        return os.path.join(self.root, path)


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _write_file(path: str, content: BufferType) -> None:
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    temporary = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def _read_file(path: str, byte_range: tuple[int, int] | None) -> bytes:
    with open(path, "rb") as file:
        if byte_range is None:
            return file.read()
        begin, end = byte_range
        if not 0 <= begin <= end:
            raise InvalidArgumentError(f"{path}: byte range [{begin}, {end})")
        size = os.fstat(file.fileno()).st_size
        if end > size:
            raise CorruptSnapshotError(f"{path}: byte range [{begin}, {end}) of a file with {size} bytes")
        file.seek(begin)
        return file.read(end - begin)
