"""State of an optimizer whose parameters FullyShardedDataParallel owns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.distributed.fsdp import FullyShardedDataParallel


class FSDPOptimizerAdapter:
    """Saves and restores an optimizer of an FSDP module in FSDP's own form, keyed by parameter name.

    Example::

        app_state = {"module": fsdp_module, "optim": FSDPOptimizerAdapter(fsdp_module, optimizer)}
    """

    def __init__(self, module: FullyShardedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, sharded as FSDP is configured to."""
        return _fsdp().optim_state_dict(self.module, self.optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Translates to the parameters that this rank holds, and loads."""
        local = _fsdp().optim_state_dict_to_load(self.module, self.optimizer, state_dict)
        self.optimizer.load_state_dict(local)


def _fsdp() -> type[FullyShardedDataParallel]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel
