"""Something that happened, as told to event handlers."""

from __future__ import annotations

from dataclasses import dataclass, field

EventMetadataValue = str | int | float | bool | None


@dataclass
class Event:
    """The start or the end of a take, async_take, restore or read_object.

    Attributes:
        name: what happened, such as ``"take"``.
        metadata: ``action`` (``"start"`` or ``"end"``), ``unique_id`` (the same for start and end), ``rank``,
            and at the end ``is_success``, ``duration_s``, ``bytes`` and ``error``.
    """

    name: str
    metadata: dict[str, EventMetadataValue] = field(default_factory=dict)
