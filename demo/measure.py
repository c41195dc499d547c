"""Time, CPU time, memory and disk traffic of a piece of code; a cold page cache; what the disk can do."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torchsnapshot.rss_profiler import measure_rss_deltas

DIRECT_BLOCK = 4 << 20
DIRECT_THREADS = 8


@dataclass
class Measured:
    """What a block of code took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    extra_memory: int = 0  #: peak growth of the resident set, in bytes
    read_from_disk: int = 0  #: bytes, as the kernel counts them for this process

    def so_far(self) -> Measured:
        """Inside the block: what it has taken until now, without the memory."""
        cpu, disk, began = self._start
        return Measured(time.perf_counter() - began, _cpu_seconds() - cpu, 0, _read_from_disk() - disk)

    def begin(self) -> None:
        self._start = (_cpu_seconds(), _read_from_disk(), time.perf_counter())


@contextmanager
def measured() -> Iterator[Measured]:
    """Measures the block; the result is filled in at its end."""
    result = Measured()
    gc.collect()
    _return_free_memory()
    growth: list[int] = []
    with measure_rss_deltas(growth, interval=timedelta(milliseconds=20)):
        result.begin()
        yield result
        end = result.so_far()
    result.seconds, result.cpu_seconds, result.read_from_disk = end.seconds, end.cpu_seconds, end.read_from_disk
    result.extra_memory = max(growth)


def available_memory() -> int:
    """Bytes that programs can still use."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


def _return_free_memory() -> None:
    """Else memory that was freed before, but kept by the allocator, would hide what the block needs."""
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _read_from_disk() -> int:
    with open("/proc/self/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))


def files_below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def drop_from_page_cache(path: Path) -> None:
    """The next read of the file, or of the files in the folder, comes from the disk."""
    os.sync()  # dirty pages can't be dropped
    for file in files_below(path):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def sync_file(path: Path) -> None:
    """Makes a file and its name durable."""
    for target in (path, path.parent):
        fd = os.open(target, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def file_system_of(path: Path) -> str:
    """Type of the file system that holds `path`: "ext4"."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, this_kind, *_ = line.split()
        mount = mount.encode().decode("unicode_escape")
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, this_kind
    return kind


def direct_write(path: Path, size: int) -> None:
    """Writes the whole blocks of `size` bytes past the page cache, several at once, and syncs them.

    Raises OSError where the file system has no O_DIRECT.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    try:
        with mmap.mmap(-1, DIRECT_BLOCK) as block:  # aligned to pages
            block.write(os.urandom(DIRECT_BLOCK))
            _in_parallel(size, lambda offset: os.pwrite(fd, block, offset))
        os.fsync(fd)
    finally:
        os.close(fd)


def direct_read(path: Path, size: int) -> None:
    """The same for reading; the bytes are thrown away."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    own = threading.local()  # a block that is there already costs no page faults

    def read(offset: int) -> int:
        if not hasattr(own, "block"):
            own.block = mmap.mmap(-1, DIRECT_BLOCK)
        return os.preadv(fd, [own.block], offset)

    try:
        _in_parallel(size, read)
    finally:
        os.close(fd)


def _in_parallel(size: int, transfer: Callable[[int], int]) -> None:
    with ThreadPoolExecutor(DIRECT_THREADS) as threads:
        moved = threads.map(transfer, range(0, size - DIRECT_BLOCK + 1, DIRECT_BLOCK))
        if any(count != DIRECT_BLOCK for count in moved):
            raise OSError("a direct transfer ended early")
