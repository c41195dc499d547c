"""The frame of every operation: its limits, its events, its progress line."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from . import _core, knobs
from ._coordination import GroupCoordinator
from .event import Event, EventMetadataValue
from .event_handlers import log_event
from .progress import ProgressLine

_logger = logging.getLogger("torchsnapshot")
_PROGRESS_EVENT_SECONDS = 1.0


class Operation:
    """One take, restore or read, as its observers see it: a start, perhaps progress and notices, one end.

    `show`: whether a progress line appears on a terminal. The engine calls the methods from its threads, one at a time.
    """

    def __init__(
        self, name: str, path: str, *, show: bool, ranks: GroupCoordinator | None = None, rank: int = 0
    ) -> None:
        self._name = name
        self._path = path
        self._ranks = ranks
        self._common: dict[str, EventMetadataValue] = {"unique_id": uuid.uuid4().hex, "rank": rank, "path": path}
        self._started = time.monotonic()
        self._moved = 0
        self._plan: dict[str, EventMetadataValue] = {}
        self._next_event = self._started + _PROGRESS_EVENT_SECONDS
        # A line that is not to be shown is one whose time never comes.
        self._line = ProgressLine(name, force=knobs.is_progress_forced(), delay=0.5 if show else float("inf"))
        self._log("start")

    def io_options(self) -> _core.IoOptions:
        """Limits by the knobs, and observers that belong to this operation."""
        io = _core.IoOptions()
        io.memory_budget_bytes = knobs.get_per_rank_memory_budget_bytes() or 0
        io.io_concurrency = knobs.get_max_per_rank_io_concurrency()
        io.checksums = not knobs.are_checksums_disabled()
        io.on_progress = self._on_progress
        io.on_notice = self.notice
        return io

    def notice(self, message: str) -> None:
        """Something worth telling that is no error."""
        _logger.warning("%s of %s: %s", self._name, self._path, message)
        self._log("notice", message=message)

    def planned(self, is_unchanged: bool, exchange_bytes: int) -> None:
        """Several ranks have agreed on the plan of a take."""
        self._plan = {"plan_unchanged": is_unchanged, "exchange_bytes": exchange_bytes}

    def end(self, error: BaseException | None) -> None:
        """It is over; with an error, or well."""
        self._line.close()
        self._log(
            "end",
            is_success=error is None,
            duration_s=time.monotonic() - self._started,
            bytes=self._moved,
            exchanges=0 if self._ranks is None else self._ranks.exchanges,
            error=None if error is None else f"{type(error).__name__}: {error}",
            **self._plan,
        )

    def _on_progress(self, bytes_done: int, bytes_total: int) -> None:
        self._moved = bytes_done
        self._line(bytes_done, bytes_total)
        if time.monotonic() >= self._next_event and bytes_done < bytes_total:
            self._next_event = time.monotonic() + _PROGRESS_EVENT_SECONDS
            self._log("progress", bytes=bytes_done, bytes_total=bytes_total)

    def _log(self, action: str, **values: EventMetadataValue) -> None:
        log_event(Event(self._name, {"action": action, **self._common, **values}))


@contextmanager
def operation(
    name: str, path: str, progress: bool | None, ranks: GroupCoordinator | None = None, rank: int = 0
) -> Iterator[Operation]:
    """An operation that is over when the block is left. `progress`: None means as the knob says."""
    show = knobs.is_progress_enabled() if progress is None else progress
    frame = Operation(name, path, show=show, ranks=ranks, rank=rank)
    error: BaseException | None = None
    try:
        yield frame
    except BaseException as raised:
        error = raised
        raise
    finally:
        frame.end(error)
