"""What is compared: each library saves and loads a flat dict of tensors, at its best settings for durable local files.

A load ends when the bytes are in memory: in the given tensors, or in new ones (torch.load; the copy into the model is
not counted, in its favour). A library that only maps the file is given the copy, which reads it.
Runs in the original's environment too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

State = dict[str, torch.Tensor]


class Library:
    """save() and load(); async_save() returns something whose wait() ends when the snapshot is complete."""

    durable = False  #: every file and folder is synced when save returns, or wait()

    def save(self, state: State, path: Path) -> None:
        raise NotImplementedError

    def load(self, state: State, path: Path) -> State:
        """Returns the loaded tensors: `state` itself if they were loaded in place."""
        raise NotImplementedError

    def async_save(self, state: State, path: Path) -> Any:
        raise NotImplementedError

    def read_one(self, path: Path, names: list[str], again: Any) -> tuple[Any, list[torch.Tensor]]:
        """Opens the snapshot (unless `again` is what an earlier call returned) and reads single tensors."""
        raise NotImplementedError


class Torchsnapshot(Library):
    """Ours, and the original: the same calls, whichever package the interpreter has."""

    durable = True

    def save(self, state: State, path: Path) -> None:
        from torchsnapshot import Snapshot, StateDict

        Snapshot.take(str(path), {"state": StateDict(state)})

    def load(self, state: State, path: Path) -> State:
        from torchsnapshot import Snapshot, StateDict

        target = StateDict(state)
        Snapshot(str(path)).restore({"state": target})
        return dict(target)

    def async_save(self, state: State, path: Path) -> Any:
        from torchsnapshot import Snapshot, StateDict

        return Snapshot.async_take(str(path), {"state": StateDict(state)})

    def read_one(self, path: Path, names: list[str], again: Any) -> tuple[Any, list[torch.Tensor]]:
        from torchsnapshot import Snapshot

        snapshot = again or Snapshot(str(path))
        return snapshot, [snapshot.read_object(f"0/state/{name}") for name in names]


class LazyTorchsnapshot(Torchsnapshot):
    def async_save(self, state: State, path: Path) -> Any:
        from torchsnapshot import Snapshot, StateDict

        return Snapshot.async_take(str(path), {"state": StateDict(state)}, staging="lazy")


class OriginalTorchsnapshot(Torchsnapshot):
    durable = False

    def async_save(self, state: State, path: Path) -> Any:
        # It needs a process group even for one process.
        if not torch.distributed.is_initialized():
            store = Path(tempfile.mkdtemp()) / "store"
            torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        return super().async_save(state, path)


class TorchSave(Library):
    def save(self, state: State, path: Path) -> None:
        path.mkdir()
        torch.save(state, path / "state.pt")

    def load(self, state: State, path: Path) -> State:
        loaded: State = torch.load(path / "state.pt", weights_only=True)
        return loaded


class TorchMmap(TorchSave):
    """torch.load(mmap=True) reads nothing yet; the copy into the tensors in place does."""

    def load(self, state: State, path: Path) -> State:
        mapped: State = torch.load(path / "state.pt", weights_only=True, mmap=True)
        for name, tensor in state.items():
            tensor.copy_(mapped[name])
        return state

    def read_one(self, path: Path, names: list[str], again: Any) -> tuple[Any, list[torch.Tensor]]:
        mapped = again or torch.load(path / "state.pt", weights_only=True, mmap=True)
        return mapped, [mapped[name].clone() for name in names]


class Safetensors(Library):
    """load_file maps the file; the copy into the tensors in place reads it."""

    def save(self, state: State, path: Path) -> None:
        from safetensors.torch import save_file

        path.mkdir()
        save_file(state, path / "state.safetensors")

    def load(self, state: State, path: Path) -> State:
        from safetensors.torch import load_file

        loaded = load_file(path / "state.safetensors")
        for name, tensor in state.items():
            tensor.copy_(loaded[name])
        return state

    def read_one(self, path: Path, names: list[str], again: Any) -> tuple[Any, list[torch.Tensor]]:
        from safetensors import safe_open

        opened = again or safe_open(path / "state.safetensors", "pt")
        return opened, [opened.get_tensor(name).clone() for name in names]


class DistributedCheckpoint(Library):
    def __init__(self) -> None:
        self._stager: Any = None

    def _writer(self, path: Path) -> Any:
        from torch.distributed.checkpoint import FileSystemWriter

        return FileSystemWriter(path, single_file_per_rank=True, sync_files=True, thread_count=os.cpu_count() or 1)

    def save(self, state: State, path: Path) -> None:
        from torch.distributed import checkpoint

        checkpoint.save(state, storage_writer=self._writer(path), no_dist=True)

    def load(self, state: State, path: Path) -> State:
        from torch.distributed import checkpoint

        checkpoint.load(state, checkpoint_id=path, no_dist=True)
        return state

    def async_save(self, state: State, path: Path) -> Any:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        if self._stager is None:  # it keeps its buffers, so that only the first call pays for them
            options = StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
            )
            self._stager = DefaultStager(options)
        future: Any = checkpoint.async_save(
            state, storage_writer=self._writer(path), async_stager=self._stager, no_dist=True
        )
        return _Waiting(getattr(future, "upload_completion", future))


class _Waiting:
    def __init__(self, future: Any) -> None:
        self.future = future

    def wait(self) -> None:
        self.future.result()


LIBRARIES: dict[str, type[Library]] = {
    "torchsnapshot": Torchsnapshot,
    "torchsnapshot, lazy": LazyTorchsnapshot,
    "torch.save": TorchSave,
    "torch.load mmap": TorchMmap,
    "safetensors": Safetensors,
    "DCP": DistributedCheckpoint,
    "original": OriginalTorchsnapshot,
}


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
