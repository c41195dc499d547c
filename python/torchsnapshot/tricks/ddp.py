"""State of a module that was wrapped by DistributedDataParallel, for one that is not."""

from __future__ import annotations

from typing import Any

import torch

DDP_STATE_DICT_PREFIX = "module."


class DistributedDataParallelAdapter:
    """Restores a plain module from a snapshot of the module wrapped in ``DistributedDataParallel``.

    DDP puts ``module.`` before every name; the adapter takes it off. A state dict without the prefix is loaded as it
    is. The module that comes back is the one that was given.

    Example::

        adapter = DistributedDataParallelAdapter(module)
        Snapshot(path).restore({"module": adapter})
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        """The module's own state dict, without the prefix."""
        return self.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any:
        """Loads a state dict with or without the prefix; the argument is left as it is.

        Returns what the module's ``load_state_dict`` returns.
        """
        return self.module.load_state_dict(strip_ddp_prefix(state_dict), strict=strict)


def strip_ddp_prefix(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy with the prefix taken off the names that have it, the metadata of the state dict included."""
    stripped = type(state_dict)(state_dict)
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is not None:
        # Else a shallow copy shares the metadata, and torch changes it in place.
        stripped._metadata = type(metadata)(metadata)  # type: ignore[attr-defined]
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(stripped, DDP_STATE_DICT_PREFIX)
    return stripped
