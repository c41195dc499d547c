"""Takes that go on by themselves, and what becomes of them when the program ends."""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING

from . import _core, knobs
from ._operation import Operation
from ._staging import Staging
from .errors import PendingTakeError

if TYPE_CHECKING:
    import torch

    from .snapshot import Snapshot


class PendingSnapshot:
    """A snapshot that is being taken in the background; made by ``Snapshot.async_take``.

    What it will hold is fixed. The take goes on whether or not this object is kept. A program that ends waits for
    it, as long as the knob ``TORCHSNAPSHOT_EXIT_TIMEOUT_SECONDS`` allows. A failure that nobody asked for with
    :meth:`wait` or :meth:`exception` is a ``RuntimeWarning``. All methods may be called by several threads.
    """

    def __init__(self, snapshot: Snapshot, take: _Take) -> None:
        self._snapshot = snapshot
        self._take = take
        #: where the snapshot will be
        self.path: str = snapshot.path
        #: the process group of the take
        self.pg: torch.distributed.ProcessGroup | None = snapshot.pg
        weakref.finalize(self, take.forget)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {'done' if self.done() else 'pending'})"

    def done(self) -> bool:
        """Whether the take has ended, well or not."""
        return self._take.core.done()

    def wait_staged(self) -> None:
        """Makes the copies that lazy staging has left for later, on all cores. Afterwards everything may change."""
        self._take.finish_copies()

    def wait(self, timeout: float | None = None) -> Snapshot:
        """Waits for the take to end, and returns the committed snapshot.

        Raises:
            RuntimeError: the take failed; ``__cause__`` tells why. There is no new snapshot; an old one at that path is
                still valid.
            TimeoutError: `timeout` seconds have passed. The take goes on.
        """
        error = self.exception(timeout)
        if error is not None:
            raise PendingTakeError(str(error)) from error
        return self._snapshot

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits for the take to end, and returns the exception that ended it, or None.

        Raises TimeoutError when `timeout` seconds have passed; the take goes on.
        """
        if not self._take.core.wait_for(-1.0 if timeout is None else max(timeout, 0.0)):
            raise TimeoutError(f"the take to {self.path} has not ended within {timeout} s; it goes on")
        return self._take.result(self._snapshot)


class _Take:
    """One take of this process; the engine's threads tell it how it ends."""

    def __init__(self, operation: Operation, path: str) -> None:
        self.core: _core.PendingSnapshot
        self.staging: Staging | None = None
        self._operation = operation
        self._path = path
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._is_over = False
        self._is_told = False
        self._is_forgotten = False

    def on_end(self, error: BaseException | None) -> None:
        with self._lock:
            self._error = error
            self._is_over = True
        self._operation.end(error)
        self._warn()

    def finish_copies(self) -> None:
        if self.staging is not None:
            self.staging.finish()

    def forget(self) -> None:
        """The program has dropped its PendingSnapshot."""
        with self._lock:
            self._is_forgotten = True
        self._warn()

    def result(self, snapshot: Snapshot) -> BaseException | None:
        """The error, or None: then `snapshot` is the one that was taken. Only when the take is over."""
        with self._lock:
            self._is_told = True
            if self._error is None and snapshot._opened is None:
                snapshot._opened = self.core.wait()
            return self._error

    def _warn(self) -> None:
        with self._lock:
            if not self._is_over or not self._is_forgotten or self._is_told or self._error is None:
                return
            self._is_told = True
            error = self._error
        message = f"the take to {self._path} failed, and nobody waited for it: {type(error).__name__}: {error}"
        self._operation.notice(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


class _PendingTakes:
    """All takes of this process that may not have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._takes: list[tuple[_Take, Snapshot]] = []
        self._registered = False

    def add(self, take: _Take, snapshot: Snapshot) -> None:
        """Keeps both until the take has ended: the snapshot holds what the take's storage needs."""
        with self._lock:
            self._takes = [item for item in self._takes if not item[0].core.done()]
            self._takes.append((take, snapshot))
            if not self._registered:
                self._registered = True
                atexit.register(self.finish)

    def finish(self) -> None:
        """Waits for all of them, then cancels those that take longer than the knob allows."""
        limit = knobs.get_exit_timeout_seconds()
        deadline = None if limit is None else time.monotonic() + limit
        with self._lock:
            takes = list(self._takes)
            self._takes.clear()
        late = [
            take
            for take, _ in takes
            if not take.core.wait_for(-1.0 if deadline is None else max(0.0, deadline - time.monotonic()))
        ]
        for take in late:
            take.core.cancel()
        for take in late:
            take.core.wait_for(-1.0)

    def drop_all(self) -> None:
        """In a forked child: the takes are its parent's."""
        self._lock = threading.Lock()
        self._takes.clear()


_pending = _PendingTakes()
os.register_at_fork(after_in_child=_pending.drop_all)


def start(operation: Operation, snapshot: Snapshot) -> _Take:
    """A take that is about to begin; `follow` it when it has."""
    return _Take(operation, snapshot.path)


def follow(take: _Take, core: _core.PendingSnapshot, snapshot: Snapshot) -> PendingSnapshot:
    """The take has begun: from now on it is waited for when the program ends."""
    take.core = core
    _pending.add(take, snapshot)
    return PendingSnapshot(snapshot, take)


def release_staging_memory() -> None:
    """Gives the memory that async takes keep for the next one back to the system, but for 64 MiB."""
    _core.release_staging_memory()
