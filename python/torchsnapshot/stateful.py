"""What an object has to offer to be saved."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """An object that gives its state as a dict and takes it back.

    ``torch.nn.Module``, optimizers, schedulers, :class:`~torchsnapshot.StateDict` and
    :class:`~torchsnapshot.RNGState` are examples. ``isinstance`` checks that both methods exist.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state; tensors in it are saved as they are, without a copy by the caller."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state that :meth:`state_dict` gave earlier."""
        ...


T = TypeVar("T", bound=Stateful)

#: What a program saves: its stateful objects by name.
AppState = dict[str, T]
