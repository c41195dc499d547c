"""The facts of the machine that belong beside a figure. No names and no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def facts(folder: Path) -> dict[str, Any]:
    """`folder`: where the snapshots are written."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int((_first("/proc/meminfo", "MemTotal") or "0").split()[0]) / (1 << 20), 1),
        "kernel": platform.release(),
        "huge_pages": _selected(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "file_system": _mount(folder)[1],
        "mount_options": _mount(folder)[2],
        "disk": _disk(folder),
        "python": platform.python_version(),
        "fio": _output(["fio", "--version"]),
    }


def available_memory() -> int:
    """Bytes that programs can still use."""
    return int((_first("/proc/meminfo", "MemAvailable") or "0").split()[0]) << 10


def _first(path: str, name: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _selected(path: Path) -> str:
    text = path.read_text() if path.exists() else ""
    return text[text.find("[") + 1 : text.find("]")] if "[" in text else "unknown"


def _mount(folder: Path) -> tuple[str, str, str]:
    """(mount point, type, options) of the file system that holds `folder`."""
    best = ("", "unknown", "")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        mount = mount.encode().decode("unicode_escape")
        if folder.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
            best = (mount, kind, options)
    return best


def _disk(folder: Path) -> str:
    """Kind of the block device: "vda, 252 GiB, scheduler none"."""
    number = os.stat(folder).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        return "no block device of its own"
    real = device.resolve()
    whole = real if (real / "queue").exists() else real.parent
    gib = int((whole / "size").read_text()) * 512 >> 30
    return f"{whole.name}, {gib} GiB, scheduler {_selected(whole / 'queue' / 'scheduler')}"


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "missing"
    except OSError:
        return "missing"
