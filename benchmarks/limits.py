"""What the disk can do: fio with O_DIRECT, the best of two settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

SETTINGS = {"4 MiB × 16": ("4M", 16), "16 MiB × 8": ("16M", 8)}  #: block size and queue depth
MIN_READ = 1 << 20  #: smaller files are left out of the direct read


class FioError(RuntimeError):
    """fio is missing, or refuses its job here."""


def _fio(files: list[Path], size: int | None, rw: str, setting: str) -> float:
    """Seconds that fio needs, by its own clock."""
    # fio takes about 4,000 characters of names.
    folder = Path(os.path.commonpath([file.parent for file in files]))
    filenames = ":".join(str(file.relative_to(folder)) for file in files)
    if shutil.which("fio") is None:
        raise FioError("fio is not installed: apt-get install fio")
    block, depth = SETTINGS[setting]
    message = ""
    for engine in ("io_uring", "libaio"):
        command = [
            "fio", "--name=limit", f"--filename={filenames}", f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
            f"--ioengine={engine}", "--direct=1", "--file_service_type=sequential", "--output-format=json",
            *([f"--size={size}"] if size else []),
            *(["--end_fsync=1", "--unlink=1"] if rw == "write" else []),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode == 0:
            report = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
            if report["error"] == 0:
                moved = report[rw]
                if moved["io_bytes"] == 0:
                    raise FioError(f"no file has {block} bytes")
                if size and abs(moved["io_bytes"] - size) > 64 << 20:
                    raise FioError(f"fio moved {moved['io_bytes']} bytes instead of {size}")
                bytes_moved = float(moved["io_bytes"])
                return float(moved["runtime"]) / 1000 * ((size or bytes_moved) / bytes_moved)
        message = done.stderr.strip() or done.stdout.strip()
    raise FioError(f"fio: {message[-300:]}")


def direct_write(folder: Path, size: int, setting: str) -> float:
    """Seconds for `size` bytes in one new file, synced at the end."""
    return _fio([folder / "fio-limit"], max(size, 32 << 20) >> 20 << 20, "write", setting) * _share(size)


def direct_read(files: list[Path], setting: str) -> float:
    """Seconds for these files, one after the other; scaled to all their bytes."""
    total = sum(file.stat().st_size for file in files)
    large = [file for file in files if file.stat().st_size >= MIN_READ]
    if not large:
        raise FioError("no file is large enough for a direct read")
    read = sum(file.stat().st_size for file in large)
    return _fio(large, None, "read", setting) * total / read


def _share(size: int) -> float:
    written = max(size, 32 << 20) >> 20 << 20
    return size / written
