"""Any file system that fsspec knows (``sftp``, ``abfs``, ``hdfs``, ``webdav`` …), where fsspec is installed."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import CorruptSnapshotError, InvalidArgumentError, UnsupportedError
from ..io_types import ReadIO, StoragePlugin, WriteIO

T = TypeVar("T")


def is_fsspec_protocol(scheme: str) -> bool:
    """True if fsspec is installed and knows the scheme."""
    try:
        from fsspec.registry import known_implementations, registry
    except ImportError:
        return False
    return scheme in known_implementations or scheme in registry


class FsspecStoragePlugin(StoragePlugin):
    """Objects below ``PROTOCOL://root``. The storage options go to the file system of fsspec as they are."""

    def __init__(self, protocol: str, root: str, storage_options: dict[str, Any] | None = None) -> None:
        import fsspec

        try:
            self._fs = fsspec.filesystem(protocol, **(storage_options or {}))
        except ImportError as error:
            raise UnsupportedError(f"{protocol}://: fsspec needs another package for it: {error}") from error
        # As fsspec cuts it out of a URL: some keep the host, some don't.
        self.root = self._fs._strip_protocol(f"{protocol}://{root}").rstrip("/")

    async def write(self, write_io: WriteIO) -> None:
        """Creates or replaces an object."""
        path = self._resolve(write_io.path)

        def work() -> None:
            self._fs.makedirs(self._fs._parent(path), exist_ok=True)
            self._fs.pipe_file(path, bytes(write_io.buf))

        await _in_thread(work)

    async def read(self, read_io: ReadIO) -> None:
        """Reads an object or a part of it. Raises CorruptSnapshotError if the part is not all there."""
        path = self._resolve(read_io.path)
        begin, end = read_io.byte_range or (None, None)
        if begin is not None and begin == end:
            content = b""
        else:
            content = await _in_thread(lambda: self._fs.cat_file(path, start=begin, end=end))
        if begin is not None and end is not None and len(content) != end - begin:
            raise CorruptSnapshotError(f"{path}: byte range [{begin}, {end}) has only {len(content)} bytes")
        read_io.buf = io.BytesIO(content)

    async def delete(self, path: str) -> None:
        """Removes an object."""
        await _in_thread(lambda: self._fs.rm_file(self._resolve(path)))

    async def delete_dir(self, path: str) -> None:
        """Removes a folder with all in it."""
        await _in_thread(lambda: self._fs.rm(self._resolve(path), recursive=True))

    async def close(self) -> None:
        """Nothing to release: fsspec keeps its file systems."""

    def _resolve(self, path: str) -> str:
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise InvalidArgumentError(f"{path!r}: a location must be relative and stay below the root")
        return f"{self.root}/{path}"


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
