"""Files of a snapshot: made durable, dropped from the page cache, read into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def files_below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_all(path: Path) -> None:
    """All files and folders from `path` on, and its name."""
    folders = [path.parent, path, *(folder for folder in path.rglob("*") if folder.is_dir())]
    for target in [*files_below(path), *folders]:
        with _opened(target) as fd:
            os.fsync(fd)


def make_cold(path: Path) -> None:
    """The next read of any file comes from the disk."""
    for file in files_below(path):
        with _opened(file) as fd:
            os.fsync(fd)  # dirty pages can't be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def make_warm(path: Path) -> None:
    """All bytes are in the page cache."""
    buffer = bytearray(4 << 20)
    for file in files_below(path):
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def bytes_on_storage(path: Path) -> tuple[int, int]:
    """(bytes, files), as the file system accounts for them."""
    files = files_below(path)
    return sum(file.stat().st_blocks * 512 for file in files), len(files)
