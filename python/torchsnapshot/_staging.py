"""When ``async_take`` copies: what its keyword ``staging`` means."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import _core
from .errors import InvalidArgumentError
from .stateful import AppState

MODES = ("eager", "lazy", "step")

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Staging(Protocol):
    """What a take with one of the modes needs."""

    def own(self, tensor: torch.Tensor, path: str) -> object | None:
        """What keeps the memory of `tensor`, which may be copied later; None: it is copied at once."""

    def copied(self) -> None:
        """All copies are made. Raises when the memory was changed before. May be called several times."""

    def begun(self, core: _core.PendingSnapshot) -> None:
        """The take goes on by itself from now on."""

    def finish(self) -> None:
        """Makes the copies that are left. Only when it has begun."""


def staging_of(mode: str, app_state: AppState[Any]) -> Staging | None:
    """None for the mode that copies everything at once."""
    if mode not in MODES:
        raise InvalidArgumentError(f"staging must be one of {', '.join(map(repr, MODES))}, not {mode!r}")
    if mode == "eager":
        return None
    if mode == "lazy":
        return _Protected()
    return _UntilStep([stateful for stateful in app_state.values() if isinstance(stateful, torch.optim.Optimizer)])


class _Protected:
    """The engine protects the memory."""

    def own(self, tensor: torch.Tensor, path: str) -> object | None:
        del path
        # Devices write to pinned memory, and nothing stops them. The rest the engine sees by itself.
        if type(tensor) not in _PLAIN or tensor.device.type != "cpu" or tensor.is_pinned():
            return None
        return tensor.detach()  # keeps the storage, whatever becomes of the tensor

    def copied(self) -> None:
        pass

    def begun(self, core: _core.PendingSnapshot) -> None:
        self._core = core

    def finish(self) -> None:
        self._core.wait_staged()


class _UntilStep:
    """The program promises that only the steps of its optimizers change what they optimize.

    Parameters and states of the optimizers are copied when there is time for it, or at the latest when one of them
    begins a step: on the CPU before it goes on, on CUDA devices before what its streams do then.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = weakref.WeakSet(optimizers)
        self._storages = {_storage(tensor) for optimizer in optimizers for tensor in _tensors_of(optimizer)}
        self._lock = threading.Lock()
        self._owned: list[tuple[str, torch.Tensor, int]] = []
        self._cuda: set[torch.device] = set()
        self._is_checked = False
        self._broken = ""
        self._core: _core.PendingSnapshot

    def own(self, tensor: torch.Tensor, path: str) -> object | None:
        if type(tensor) not in _PLAIN or tensor.is_inference() or _storage(tensor) not in self._storages:
            return None
        kept = tensor.detach()  # has the version of the original
        self._owned.append((path, kept, kept._version))
        if tensor.is_cuda:
            self._cuda.add(tensor.device)
        return kept

    def begun(self, core: _core.PendingSnapshot) -> None:
        self._core = core
        _before_step.add(self)

    def finish(self) -> None:
        self._core.wait_staged()
        self._check()

    def finish_before_step(self) -> None:
        if self._cuda:
            streams = [(device.index, torch.cuda.current_stream(device).cuda_stream) for device in self._cuda]
            self._core.let_wait_staged(streams)
        else:
            self._core.wait_staged()
        self._check()

    def is_over(self) -> bool:
        return self._core.done()

    def copied(self) -> None:
        self._check()
        if self._broken:
            raise InvalidArgumentError(self._broken)

    def _check(self) -> None:
        # Once: afterwards the optimizer may change what it likes.
        with self._lock:
            if self._is_checked:
                return
            self._is_checked = True
            changed = [path for path, tensor, version in self._owned if tensor._version != version]
            self._owned.clear()
            if changed:
                self._broken = (
                    f"'{changed[0]}' was changed in place before it was copied, and not by an optimizer's step: "
                    'call PendingSnapshot.wait_staged() before such a change, or use staging="lazy" or "eager"'
                )


class _BeforeStep:
    """The hook on all optimizers, and the takes that it finishes the copies of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._takes: list[_UntilStep] = []
        self._is_registered = False

    def add(self, take: _UntilStep) -> None:
        with self._lock:
            if not self._is_registered:
                self._is_registered = True
                register_optimizer_step_pre_hook(self._hook)
                atexit.register(self.forget)
            self._takes = [other for other in self._takes if not other.is_over()]
            self._takes.append(take)

    def forget(self) -> None:
        """In a forked child, whose memory is not what the takes look at; and at the end of the program."""
        self._lock = threading.Lock()
        self._takes.clear()

    def _hook(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if not self._takes:
            return
        with self._lock:
            takes = [take for take in self._takes if optimizer in take.optimizers]
        for take in takes:
            take.finish_before_step()
        with self._lock:
            self._takes = [take for take in self._takes if take not in takes]


_before_step = _BeforeStep()
os.register_at_fork(after_in_child=_before_step.forget)


def _tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Parameters and states; what can't be told by its storage is left out."""
    stack: list[Any] = [group["params"] for group in optimizer.param_groups] + list(optimizer.state.values())
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            if type(item) in _PLAIN and item.layout is torch.strided:
                yield item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
