"""The GPT-2-small-sized state, and the ways to save and load it that are compared."""

from __future__ import annotations

import gc
import math
import os
from pathlib import Path
from typing import Any

import torch
from gpt2_model import make_trained
from measure import Measured, direct_read, direct_write, measured, sync_file
from state_tools import first_difference, leaves
from torchsnapshot import Snapshot

#: What one candidate measured: rows of the table by name.
Results = dict[str, Measured]

TAKE, RESTORE = "Snapshot.take", "snapshot.restore"
TORCH_SAVE, TORCH_LOAD = "torch.save + fsync", "torch.load + load_state_dict"
DISK = "the disk itself (O_DIRECT, 8 x 4 MiB)"


class State:
    """The model and its optimizer, and a copy of both to compare with."""

    def __init__(self, seed: int) -> None:
        self.model, self.optimizer = make_trained(seed)
        self.expected = self._clone()
        unique = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in self.tensors()}
        self.bytes = sum(unique.values())

    def tree(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optim": self.optimizer.state_dict()}

    def tensors(self) -> list[torch.Tensor]:
        return [leaf for _, leaf in leaves(self.tree()) if isinstance(leaf, torch.Tensor)]

    def scramble(self) -> None:
        for tensor in self.tensors():
            tensor.fill_(math.nan)

    def check(self, after: str) -> None:
        difference = first_difference(self.tree(), self.expected)
        if difference is not None:
            raise SystemExit(f"FAILED: after {after} the state differs: {difference}")

    def _clone(self) -> dict[str, Any]:
        def clone(tree: Any) -> Any:
            if isinstance(tree, dict):
                return {key: clone(child) for key, child in tree.items()}
            if isinstance(tree, (list, tuple)):
                return type(tree)(clone(child) for child in tree)
            return tree.detach().clone() if isinstance(tree, torch.Tensor) else tree

        copied: dict[str, Any] = clone(self.tree())
        return copied


def take(state: State, path: Path) -> Results:
    with measured() as result:
        Snapshot.take(str(path), {"model": state.model, "optim": state.optimizer}, progress=True)
    return {TAKE: result}


def torch_save(state: State, path: Path) -> Results:
    with measured() as durable:
        torch.save(state.tree(), path)
        returned = durable.so_far()
        sync_file(path)
    returned.extra_memory = durable.extra_memory
    return {TORCH_SAVE: durable, "  the same when it returned, not durable": returned}


def restore(state: State, path: Path) -> Results:
    with measured() as result:
        Snapshot(str(path)).restore({"model": state.model, "optim": state.optimizer}, progress=True)
    return {RESTORE: result}


def torch_load(state: State, path: Path) -> Results:
    with measured() as result:
        loaded = torch.load(path, weights_only=True)
        state.model.load_state_dict(loaded["model"])
        state.optimizer.load_state_dict(loaded["optim"])
        del loaded
    return {TORCH_LOAD: result}


def torch_load_mapped(state: State, path: Path) -> Results:
    """By hand at its best: load_state_dict of an optimizer would keep the mapped tensors, not yet read."""
    with measured() as result:
        loaded = torch.load(path, weights_only=True, mmap=True)
        state.model.load_state_dict(loaded["model"])
        target = state.optimizer.state_dict()
        for index, saved in loaded["optim"]["state"].items():
            for name, tensor in saved.items():
                target["state"][index][name].copy_(tensor)
        for group, saved in zip(state.optimizer.param_groups, loaded["optim"]["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        del loaded, saved, tensor
        gc.collect()
    return {"torch.load(mmap=True) + copy_": result}


def disk_write(state: State, path: Path) -> Results:
    """To compare with: as many bytes of noise. Nothing where there is no O_DIRECT."""
    try:
        with measured() as result:
            direct_write(path, state.bytes)
    except OSError:
        return {}
    finally:
        path.unlink(missing_ok=True)
    return {DISK: result}


def disk_read(_: State, path: Path) -> Results:
    """To compare with: the whole blocks of torch.save's file."""
    try:
        with measured() as result:
            direct_read(path, os.stat(path).st_size)
    except OSError:
        return {}
    return {DISK: result}
