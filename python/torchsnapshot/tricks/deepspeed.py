"""State of DeepSpeed's ZeRO-3 optimizer.

DeepSpeed is imported only where it is needed; without it, :func:`patch_engine_to_use_torchsnapshot` raises an
ImportError that says so.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # DeepSpeed is no dependency, and its classes are only passed on here.
    DeepSpeedEngine = Any
    DeepSpeedZeroOptimizer_Stage3 = Any

logger = logging.getLogger(__name__)


class Zero3StateAdapter:
    """Gives ``DeepSpeedZeroOptimizer_Stage3`` the usual ``state_dict`` and ``load_state_dict``.

    Example::

        app_state = {"optimizer": Zero3StateAdapter(zero3_optimizer)}
    """

    def __init__(
        self,
        optimizer: DeepSpeedZeroOptimizer_Stage3,
        load_optimizer_states: bool = True,
        load_from_fp32_weights: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.load_optimizer_state = load_optimizer_states
        self.load_from_fp32_weights = load_from_fp32_weights

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, of this rank's partition."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads this rank's partition, then brings the parameters that are kept whole up to date."""
        self.optimizer._rigid_load_state_dict(state_dict=state_dict, load_optimizer_states=self.load_optimizer_state)
        persistent = self.optimizer.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)


def patch_engine_to_use_torchsnapshot(engine: DeepSpeedEngine) -> None:
    """Makes an engine save and load its optimizer's state by snapshots. The optimizer must be ZeRO stage 3."""
    stage3 = _import_stage3()
    if not isinstance(engine.optimizer, stage3):
        raise RuntimeError(
            f"only a ZeRO stage 3 optimizer can be saved by snapshots, not {type(engine.optimizer).__qualname__}"
        )
    engine._save_zero_checkpoint = MethodType(_save_zero_checkpoint, engine)
    engine._load_zero_checkpoint = MethodType(_load_zero_checkpoint, engine)


def _import_stage3() -> Any:
    try:
        from deepspeed.runtime.zero.stage3 import (  # type: ignore[import-not-found]
            DeepSpeedZeroOptimizer_Stage3,
        )
    except ImportError as error:
        raise ImportError(
            "torchsnapshot.tricks.deepspeed needs the package deepspeed (pip install deepspeed)"
        ) from error
    return DeepSpeedZeroOptimizer_Stage3


def _save_zero_checkpoint(self: DeepSpeedEngine, save_path: str, tag: str) -> None:
    from deepspeed import version  # type: ignore[import-not-found]

    from .. import Snapshot, StateDict

    logger.debug("saving the ZeRO state of tag %s", tag)
    app_state = {
        "optimizer": self.optimizer,
        "objects": StateDict(ds_config=self.config, ds_version=version),
    }
    Snapshot.take(path=save_path, app_state=app_state)
    if self.global_rank == 0:
        self._copy_recovery_script(save_path)


def _load_zero_checkpoint(self: DeepSpeedEngine, load_dir: str, tag: str, load_optimizer_states: bool = True) -> bool:
    from .. import Snapshot

    logger.debug("loading the ZeRO state of tag %s", tag)
    adapter = Zero3StateAdapter(
        optimizer=self.optimizer,
        load_optimizer_states=load_optimizer_states,
        load_from_fp32_weights=self.zero_load_from_fp32_weights(),
    )
    Snapshot(path=load_dir).restore(app_state={"optimizer": adapter})
    return True
