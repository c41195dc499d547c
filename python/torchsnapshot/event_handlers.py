"""Who is told about events.

A handler is any object with ``handle_event(event)``. Packages bring one by an entry point of the group
``event_handlers`` (a factory without arguments); a program registers its own with
:func:`register_event_handler`. A handler never breaks what it observes: if it raises, a warning says so
once, and the operation goes on.
"""

from __future__ import annotations

import threading
import warnings
from typing import Protocol, runtime_checkable

from ._entry_points import entry_points
from .event import Event

ENTRY_POINT_GROUP = "event_handlers"


@runtime_checkable
class EventHandler(Protocol):
    """Receives events; may be called from any thread."""

    def handle_event(self, event: Event) -> None:
        """Called for each event, on the thread that the operation runs on."""
        ...


_lock = threading.Lock()
_registered: list[EventHandler] = []
_discovered: list[EventHandler] | None = None
_warned: list[EventHandler] = []


def register_event_handler(handler: EventHandler) -> None:
    """Adds a handler; one that is registered already is not added twice."""
    if not isinstance(handler, EventHandler):
        raise TypeError(f"an event handler needs a method handle_event(event), {handler!r} has none")
    with _lock:
        if not any(known is handler for known in _registered):
            _registered.append(handler)


def unregister_event_handler(handler: EventHandler) -> None:
    """Removes a handler that was registered. Raises ValueError if it was not."""
    with _lock:
        for index, known in enumerate(_registered):
            if known is handler:
                del _registered[index]
                _warned[:] = [item for item in _warned if item is not handler]
                return
    raise ValueError(f"{handler!r} is not registered")


def get_event_handlers() -> list[EventHandler]:
    """All handlers: those of entry points first (loaded at the first call), then the registered ones."""
    global _discovered
    with _lock:
        discovered = _discovered
    if discovered is None:
        discovered = _discover()
        with _lock:
            if _discovered is None:
                _discovered = discovered
            discovered = _discovered
    with _lock:
        return [*discovered, *_registered]


def log_event(event: Event) -> None:
    """Tells every handler."""
    for handler in get_event_handlers():
        try:
            handler.handle_event(event)
        except Exception as error:  # noqa: PERF203 - one handler must not keep the others from it
            _warn_once(handler, error)


def _discover() -> list[EventHandler]:
    handlers: list[EventHandler] = []
    for point in entry_points(ENTRY_POINT_GROUP):
        try:
            handler = point.load()()
        except Exception as error:
            warnings.warn(
                f"event handler {point.name!r} ({point.value}) could not be loaded: {error!r}",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        if isinstance(handler, EventHandler):
            handlers.append(handler)
        else:
            warnings.warn(
                f"event handler {point.name!r} ({point.value}) gave {handler!r}, which has no method handle_event",
                RuntimeWarning,
                stacklevel=2,
            )
    return handlers


def _warn_once(handler: EventHandler, error: Exception) -> None:
    with _lock:
        if any(known is handler for known in _warned):
            return
        _warned.append(handler)
    warnings.warn(
        f"event handler {handler!r} failed and its further failures are not reported: {error!r}",
        RuntimeWarning,
        stacklevel=3,
    )
