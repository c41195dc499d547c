"""A dict that can be saved."""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Base = UserDict[Any, Any]
else:
    _Base = UserDict


class StateDict(_Base):
    """A dict that is itself stateful, for values that are not: counters, tensors, plain objects.

    Example::

        progress = StateDict(epoch=0, best=float("inf"))
        Snapshot.take(path, {"model": model, "progress": progress})
    """

    def state_dict(self) -> dict[Any, Any]:
        """The dict itself, not a copy."""
        return self.data

    def load_state_dict(self, state_dict: dict[Any, Any]) -> None:
        """Sets the keys of `state_dict`; keys that it lacks keep their values."""
        self.data.update(state_dict)
