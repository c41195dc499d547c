"""Runs in the original's virtual environment: takes or restores with the original torchsnapshot.

take PATH STATE EXPECTED [async]      take the named state, write what was saved to EXPECTED
restore PATH OUT [TARGET]             restore key "state" into an empty StateDict, or into the tree in TARGET, write it to OUT
take_training PATH EXPECTED           take model, optimizer, scheduler and RNG state
restore_training PATH OUT             restore them, continue nothing, write their state dicts
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from typing import Any

import interchange_states
import torch
import torchsnapshot
from torchsnapshot import RNGState, Snapshot, StateDict

warnings.simplefilter("ignore")


def dense(value: Any) -> Any:
    """A copy for torch.save that keeps every value and no view."""
    if isinstance(value, torch.Tensor):
        return value.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    if type(value) is list:
        return [dense(v) for v in value]
    if isinstance(value, dict):
        return type(value)((k, dense(v)) for k, v in value.items()) if type(value).__name__ != "Counter" else value
    return value


def take(path: str, name: str, expected: str, mode: str = "sync") -> None:
    state = StateDict(getattr(interchange_states, name)())
    torch.save(dense(state.data), expected)
    if mode == "sync":
        Snapshot.take(path, {"state": state})
        return
    # The original's async_take needs a process group even for one process.
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        Snapshot.async_take(path, {"state": state}).wait()
        torch.distributed.destroy_process_group()


def restore(path: str, out: str, target: str = "") -> None:
    state = StateDict(torch.load(target, weights_only=False) if target else {})
    Snapshot(path).restore({"state": state})
    torch.save(state.data, out)


def take_training(path: str, expected: str) -> None:
    parts = interchange_states.training()
    torch.manual_seed(77)
    rng = torch.get_rng_state()
    Snapshot.take(path, {**parts, "rng": RNGState()})
    torch.save({**{k: copy.deepcopy(v.state_dict()) for k, v in parts.items()}, "rng": rng}, expected)


def restore_training(path: str, out: str) -> None:
    parts = interchange_states.training(steps=0)
    Snapshot(path).restore({**parts, "rng": RNGState()})
    torch.save({**{k: v.state_dict() for k, v in parts.items()}, "rng": torch.get_rng_state()}, out)


if __name__ == "__main__":
    if "nightly" not in torchsnapshot.__version__ and not hasattr(torchsnapshot, "io_preparer"):
        import torchsnapshot.io_preparer
    {f.__name__: f for f in (take, restore, take_training, restore_training)}[sys.argv[1]](*sys.argv[2:])
