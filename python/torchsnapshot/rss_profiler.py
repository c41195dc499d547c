"""How much memory a piece of code takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

_DEFAULT_MEASURE_INTERVAL = timedelta(milliseconds=100)


@contextmanager
def measure_rss_deltas(
    rss_deltas: list[int], interval: timedelta = _DEFAULT_MEASURE_INTERVAL
) -> Generator[None, None, None]:
    """Appends the growth of the resident set size since the start, in bytes, to `rss_deltas`.

    One value is measured at the start, one each `interval`, and one at the end. The maximum of the list is
    the extra memory that the block needed.
    """
    baseline = get_rss_bytes()
    done = threading.Event()

    def measure() -> None:
        while True:
            rss_deltas.append(get_rss_bytes() - baseline)
            if done.wait(interval.total_seconds()):
                return

    thread = threading.Thread(target=measure, name="torchsnapshot-rss", daemon=True)
    thread.start()
    try:
        yield
    finally:
        at_end = get_rss_bytes() - baseline
        done.set()
        thread.join()
        rss_deltas.append(at_end)


def get_rss_bytes() -> int:
    """The resident set size of this process, in bytes."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _rss_by_psutil()


def _rss_by_psutil() -> int:
    try:
        import psutil
    except ImportError:
        raise RuntimeError("measuring memory needs /proc or the package psutil") from None
    return int(psutil.Process().memory_info().rss)
