"""A progress line for a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class ProgressLine:
    """One line on a terminal that says how far a transfer has come; call it with the bytes done and in all.

    Nothing is printed unless the stream is a terminal (or `force` is set) and the work takes longer than `delay`
    seconds. A stream that fails ends the display, never the work. Thread-safe.

    Example::

        with ProgressLine("take") as line:
            line(1 << 20, 1 << 30)
    """

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        *,
        force: bool = False,
        delay: float = 0.5,
        interval: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._enabled = self._stream is not None and (force or _is_terminal(self._stream))
        self._interval = interval
        self._clock = clock
        self._start = clock()
        self._next = self._start + delay
        self._shown = 0  # width of the text on the line
        self._lock = threading.Lock()

    def __call__(self, bytes_done: int, bytes_total: int) -> None:
        """Updates the line; the last call, with all bytes done, always shows if the line is there already."""
        if not self._enabled:
            return
        with self._lock:
            now = self._clock()
            finished = bytes_done >= bytes_total and self._shown > 0
            if now < self._next and not finished:
                return
            self._next = now + self._interval
            text = format_progress(self._label, bytes_done, bytes_total, now - self._start)
            self._put("\r" + text.ljust(self._shown))
            self._shown = max(self._shown, len(text))

    def close(self) -> None:
        """Ends the line, if one was shown. Later calls do nothing."""
        with self._lock:
            if self._enabled and self._shown:
                self._put("\n")
            self._enabled = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a closed terminal, a closed stream
            self._enabled = False


def format_progress(label: str, bytes_done: int, bytes_total: int, seconds: float) -> str:
    """The text of the line: ``take  42 %  420.0 MiB of 1000.0 MiB  210.0 MiB/s  0:03 left``."""
    done = min(max(bytes_done, 0), bytes_total) if bytes_total > 0 else 0
    percent = 100 * done // bytes_total if bytes_total > 0 else 100
    parts = [label, f"{percent:3d} %", f"{format_bytes(done)} of {format_bytes(max(bytes_total, 0))}"]
    if seconds > 0 and done > 0:
        rate = done / seconds
        parts.append(f"{format_bytes(rate)}/s")
        if done < bytes_total:
            parts.append(f"{_format_seconds((bytes_total - done) / rate)} left")
    return "  ".join(parts)


def format_bytes(count: float) -> str:
    """A number of bytes for people: ``1.5 GiB``."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{int(count)} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def _format_seconds(seconds: float) -> str:
    whole = int(seconds + 0.5)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError, OSError):
        return False
