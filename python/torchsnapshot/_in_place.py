"""Loading a state dict whose tensors were restored in place already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _SkipSelfCopies(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.copy_ and len(args) >= 2 and _same_memory(args[0], args[1]):
            torch.autograd.graph.increment_version(args[0])  # it did change, only not here
            return args[0]
        return func(*args, **(kwargs or {}))


def _same_memory(a: object, b: object) -> bool:
    if type(a) not in _PLAIN or type(b) not in _PLAIN:
        return False
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    return (
        a.layout is torch.strided
        and b.layout is torch.strided
        and a.data_ptr() == b.data_ptr() != 0
        and a.dtype == b.dtype
        and a.device == b.device
        and a.shape == b.shape
        and a.stride() == b.stride()
        and not (a.is_conj() or b.is_conj() or a.is_neg() or b.is_neg() or a.is_quantized or b.is_quantized)
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def skip_self_copies() -> TorchFunctionMode:
    """A context in which copying a tensor onto its own memory does nothing.

    ``Module.load_state_dict`` copies each tensor of the state dict into the parameter. After a restore in place both
    are the same memory, and the copy would be one more pass over the whole model.
    """
    return _SkipSelfCopies()
