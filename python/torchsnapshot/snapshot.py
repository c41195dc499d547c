"""Take and restore: the main interface."""

from __future__ import annotations

import inspect
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, TypeVar, cast  # noqa: UP035

import torch
from torch.nn.parallel import DistributedDataParallel

from . import _core, knobs
from . import pending_snapshot as _pending
from ._coordination import GroupCoordinator, coordinator_of, rank_of, to_core
from ._in_place import skip_self_copies
from ._native_storage import open_native_storage
from ._operation import Operation, operation
from ._plugin_bridge import PluginBridge
from ._staging import staging_of
from .errors import InvalidArgumentError, TypeMismatchError
from .manifest import Entry, SnapshotMetadata, entry_from_dict
from .pending_snapshot import PendingSnapshot
from .rng_state import RNGState
from .stateful import AppState, Stateful
from .storage_plugin import has_registered_plugin, split_url

SNAPSHOT_METADATA_FNAME = ".snapshot_metadata"

T = TypeVar("T")
PrepareFn = Callable[[str, torch.Tensor, bool], torch.Tensor]

__all__ = ["SNAPSHOT_METADATA_FNAME", "Corruption", "PendingSnapshot", "RestoreReport", "Snapshot"]


@dataclass(frozen=True)
class Corruption:
    """A block of an object on storage whose bytes are not those that were written."""

    #: logical paths of the entries that have bytes in it
    paths: list[str]
    #: the object
    location: str
    #: first byte and the byte behind the last
    byte_range: tuple[int, int]
    #: CRC-32C of what was written
    expected: int
    #: CRC-32C of what is there
    found: int


@dataclass
class RestoreReport:
    """What a restore could not match one to one. Paths are logical paths such as ``"model/0.weight"``."""

    #: in the target, but not in the snapshot: left as they were
    missing: list[str] = field(default_factory=list)
    #: in the snapshot, but not in the target: handed to ``load_state_dict`` as new objects (sharded tensors: left out)
    unexpected: list[str] = field(default_factory=list)
    #: of another kind, dtype or shape than in the snapshot: the saved value was handed to ``load_state_dict``
    mismatched: list[str] = field(default_factory=list)
    #: damage on storage, with ``keep_going=True``: the tensors named hold what is there, objects were left as they were
    corrupt: list[Corruption] = field(default_factory=list)


class Snapshot:
    """A handle to a snapshot, which need not exist yet; nothing is read until needed.

    A snapshot is taken with :meth:`take` and read with :meth:`restore`, :meth:`read_object` and
    :meth:`get_state_dict_for_key`. Several threads may read through one handle.

    Example::

        app_state = {"model": model, "optim": optimizer, "progress": StateDict(epoch=0)}
        Snapshot.take("/checkpoints/step-100", app_state)
        Snapshot("/checkpoints/step-100").restore(app_state)
    """

    def __init__(
        self,
        path: str,
        pg: torch.distributed.ProcessGroup | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        """`path`: a folder or a URL. `pg`: the process group of all operations (None: the default one).
        `storage_options`: settings of the storage backend."""
        if not isinstance(path, str):
            raise TypeMismatchError(f"path must be a str, not {type(path).__name__}")
        self.path = path
        self.pg = pg
        self._storage_options = dict(storage_options or {})
        self._opened: _core.Snapshot | None = None
        self._metadata: SnapshotMetadata | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    @classmethod
    def take(
        cls,
        path: str,
        app_state: AppState[Any],
        pg: torch.distributed.ProcessGroup | None = None,
        replicated: list[str] | None = None,
        storage_options: dict[str, Any] | None = None,
        _custom_tensor_prepare_func: PrepareFn | None = None,
        *,
        progress: bool | None = None,
    ) -> Snapshot:
        """Saves the state of every object in `app_state` and commits it durably.

        A snapshot that is already at `path` stays valid until the new one is committed, and is then removed.

        Args:
            path: a folder or a URL.
            app_state: objects with ``state_dict`` and ``load_state_dict``, by key. At most one ``RNGState``, which is
                saved first; taking a snapshot does not advance it.
            pg: the process group (None: the default one).
            replicated: globs over ``KEY/SUB/PATH``; what matches is the same on all ranks.
            storage_options: settings of the storage backend. Of a file system: ``{"io": "auto" | "uring" | "direct" |
                "buffered"}``, how data moves (auto: the fastest that works). Of s3:// and gs://: docs/object-stores.md.
            _custom_tensor_prepare_func: called with (logical path, tensor, False) for each tensor; what it returns is
                stored in its place.
            progress: show a progress line on a terminal (None: as the knob TORCHSNAPSHOT_PROGRESS says).

        Raises:
            TypeError: `app_state` is no dict of str to stateful objects.
            TorchSnapshotError: anything else; the message names the entry or the object.
        """
        ranks = coordinator_of(pg)
        with operation("take", str(path), progress, ranks, rank_of(pg)) as frame:
            begun = _begin_take(cls, frame, ranks, path, app_state, pg, replicated, storage_options)
            with begun as (snapshot, storage, state_dicts, options):
                snapshot._opened = _core.take(
                    storage, state_dicts, options, frame.io_options(), _custom_tensor_prepare_func
                )
        return snapshot

    @classmethod
    def async_take(
        cls,
        path: str,
        app_state: AppState[Any],
        pg: torch.distributed.ProcessGroup | None = None,
        replicated: list[str] | None = None,
        storage_options: dict[str, Any] | None = None,
        _custom_tensor_prepare_func: PrepareFn | None = None,
        *,
        staging: str = "eager",
    ) -> PendingSnapshot:
        """As :meth:`take`, but returns as soon as the content is fixed: training may go on and change everything.

        The state is copied into memory that stays for the next call; ``torchsnapshot.release_staging_memory`` gives it
        back. What exceeds the memory budget is written before this returns. Checksums, writing and the commit follow in
        the background. Takes to one path commit in the order of the calls.

        Arguments are those of :meth:`take`, and so are the errors that wrong ones raise. Failures of the storage come
        from :meth:`PendingSnapshot.wait`.

        `staging` says when large contiguous CPU tensors are copied; everything else is, before this returns.
        ``"eager"``: before this returns. ``"lazy"``: in the background; their memory is write-protected, and a thread
        that writes to it waits for the copy of a few MB. Where that is not possible it is as eager, with a notice.
        ``"step"``: parameters and states of the optimizers in `app_state` are copied in the background, at the latest
        when ``optimizer.step()`` begins; nothing else may change them before. See docs/async.md.
        """
        ranks = coordinator_of(pg)
        frame = Operation("async_take", str(path), show=False, ranks=ranks, rank=rank_of(pg))
        try:
            begun = _begin_take(cls, frame, ranks, path, app_state, pg, replicated, storage_options)
            with begun as (snapshot, storage, state_dicts, options):
                with _told_to_others(options.coordinator, _core.refuse_take):
                    lazily = staging_of(staging, app_state)
                options.staging = staging
                options.lazy_user_faults = knobs.are_lazy_user_faults_enabled()
                take = _pending.start(frame, snapshot)
                core = _core.async_take(
                    storage,
                    state_dicts,
                    options,
                    frame.io_options(),
                    _custom_tensor_prepare_func,
                    take.on_end,
                    lazily and lazily.own,
                    lazily and lazily.copied,
                )
        except BaseException as error:
            frame.end(error)
            raise
        if lazily:
            lazily.begun(core)
            take.staging = lazily
        return _pending.follow(take, core, snapshot)

    def restore(
        self,
        app_state: AppState[Any],
        strict: bool = True,
        *,
        weights_only: bool = True,
        keep_going: bool = False,
        progress: bool | None = None,
        replicated_read: str = "auto",
    ) -> RestoreReport:
        """Reads the state of every object in `app_state` back.

        A tensor of the target that has the saved shape and dtype is filled in place.

        Args:
            app_state: a subset of the saved keys. An ``RNGState`` is restored last.
            strict: handed to ``load_state_dict`` where that takes it. False also tolerates a key of `app_state` that
                the snapshot does not have.
            weights_only: False allows pickled objects of any class. Only for snapshots you trust: such an object can
                run any code.
            keep_going: True: bytes that are not those that were saved are reported (``RestoreReport.corrupt``)
                instead of being an error.
            progress: show a progress line on a terminal (None: as the knob TORCHSNAPSHOT_PROGRESS says).
            replicated_read: who reads what all ranks of the process group need. ``"direct"``: each rank, for itself.
                ``"share"``: one rank, divided by bytes, which hands it round over the group. ``"auto"``: as ``"share"``
                where the storage is an object store or a plugin, else as ``"direct"``. They share only if no rank
                asks for ``"direct"``.

        Raises:
            RuntimeError: the snapshot is incomplete or corrupt, lacks a key, or a tensor of a module has another shape
                or dtype than what was saved. Nothing was changed, unless the message says so.
        """
        ranks = coordinator_of(self.pg)
        core_ranks = to_core(ranks)
        with operation("restore", self.path, progress, ranks, rank_of(self.pg)) as frame:
            with _told_to_others(core_ranks, _core.refuse_restore):
                _check_app_state(app_state)
                statefuls = _rng_last(_in_common_order(app_state, ranks))
                targets = [(key, stateful.state_dict()) for key, stateful in statefuls]
                exact = [isinstance(stateful, torch.nn.Module) for _, stateful in statefuls]
                snapshot = self._core_snapshot()

            def load(index: int, state_dict: Any) -> None:
                if _has_no_generators(statefuls[index][1], state_dict, rank_of(self.pg)):
                    return
                _keep_metadata(targets[index][1], state_dict)
                _load(statefuls[index][1], state_dict, strict)

            missing, unexpected, mismatched, corrupt = snapshot.restore(
                targets, strict, exact, weights_only, keep_going, load, frame.io_options(), core_ranks, replicated_read
            )
        return RestoreReport(missing, unexpected, mismatched, [Corruption(*found) for found in corrupt])

    def read_object(
        self,
        path: str,
        obj_out: T | None = None,
        memory_budget_bytes: int | None = None,
        *,
        weights_only: bool = True,
    ) -> T:
        """Reads one entry, or a container with all that is in it.

        Args:
            path: ``RANK/KEY/SUB/PATH`` as in :meth:`get_manifest`.
            obj_out: a tensor to read into; it is returned. Its dtype and shape must be the saved ones.
            memory_budget_bytes: at most this many bytes of buffers beside the result.
            weights_only: as in :meth:`restore`.

        Raises:
            RuntimeError: the snapshot has no such entry (the message names similar ones), is incomplete or corrupt.
        """
        if memory_budget_bytes is not None and memory_budget_bytes <= 0:
            raise InvalidArgumentError(f"memory_budget_bytes must be positive, not {memory_budget_bytes}")
        with operation("read_object", self.path, progress=False, rank=rank_of(self.pg)) as frame:
            io = frame.io_options()
            if memory_budget_bytes is not None:
                io.memory_budget_bytes = memory_budget_bytes
            result = self._core_snapshot().read_object(path, obj_out, weights_only, io)
        return cast("T", result)

    @property
    def metadata(self) -> SnapshotMetadata:
        """Version, world size and manifest; read once.

        Raises RuntimeError if there is none, or it can't be read.
        """
        if self._metadata is None:
            version, world_size, entries = self._core_snapshot().metadata(not knobs.are_checksums_disabled())
            manifest = {path: entry_from_dict(entry) for path, entry in entries.items()}
            self._metadata = SnapshotMetadata(version=version, world_size=world_size, manifest=manifest)
        return self._metadata

    def get_manifest(self) -> dict[str, Entry]:
        """All entries by ``RANK/KEY/SUB/PATH``: a copy that may be changed."""
        _, _, entries = self._core_snapshot().metadata(not knobs.are_checksums_disabled())
        return {path: entry_from_dict(entry) for path, entry in entries.items()}

    def get_state_dict_for_key(
        self, key: str, replicate_from_rank0: bool = False, *, weights_only: bool = True
    ) -> dict[Any, Any]:
        """The state dict saved under `key` of the app state, as new objects on the CPU.

        `replicate_from_rank0`: that of rank 0 instead of this rank's. `weights_only`: as in :meth:`restore`.
        Raises RuntimeError if the snapshot has nothing under that key.
        """
        rank = rank_of(self.pg)
        with operation("get_state_dict_for_key", self.path, progress=False, rank=rank) as frame:
            saver = 0 if replicate_from_rank0 else rank
            state_dict = self._core_snapshot().read_state(key, saver, weights_only, frame.io_options())
        return cast("dict[Any, Any]", state_dict)

    def _core_snapshot(self) -> _core.Snapshot:
        if self._opened is None:
            self._opened = _core.Snapshot(self._open_storage())
        return self._opened

    def _open_storage(self) -> _core.Storage:
        scheme, _ = split_url(self.path)
        if not has_registered_plugin(scheme):
            return open_native_storage(self.path, self._storage_options)
        bridge = PluginBridge.open(self.path, self._storage_options)
        weakref.finalize(self, bridge.close)
        return _core.open_plugin_storage(bridge, self.path)


@contextmanager
def _told_to_others(
    ranks: _core.Coordinator | None, refuse: Callable[[_core.Coordinator, BaseException], None]
) -> Iterator[None]:
    """What is raised here is raised on the other ranks too: they wait for this one in an exchange."""
    try:
        yield
    except BaseException as error:
        if ranks is not None:
            refuse(ranks, error)
        raise


@contextmanager
def _begin_take(
    cls: type[Snapshot],
    frame: Operation,
    ranks: GroupCoordinator | None,
    path: str,
    app_state: AppState[Any],
    pg: torch.distributed.ProcessGroup | None,
    replicated: list[str] | None,
    storage_options: dict[str, Any] | None,
) -> Iterator[tuple[Snapshot, _core.Storage, list[tuple[str, Any]], _core.TakeOptions]]:
    """The handle, the storage, the state dicts and the options of a take that the engine can begin with. All that can
    go wrong on this rank alone goes wrong here, and is told to the others."""
    core_ranks = to_core(ranks)
    if core_ranks is not None:
        agreed, notice = _core.agree_on_url(core_ranks, path if isinstance(path, str) else "")
        path = agreed if isinstance(path, str) else path
        if notice:
            frame.notice(notice)
    with ExitStack() as stack:
        with _told_to_others(core_ranks, _core.refuse_take):
            snapshot = cls(path, pg, storage_options)
            _check_app_state(app_state)
            options = _take_options(app_state, replicated)
            options.coordinator = core_ranks
            options.group = pg
            options.on_planned = frame.planned if ranks is not None else None
            state_dicts = stack.enter_context(_state_dicts(_in_common_order(app_state, ranks)))
            storage = snapshot._open_storage()
        yield snapshot, storage, state_dicts, options


def _in_common_order(app_state: AppState[Any], ranks: GroupCoordinator | None) -> AppState[Any]:
    """With several ranks, by key: a state_dict() may be collective, and ranks may have other keys in another order."""
    return app_state if ranks is None else dict(sorted(app_state.items()))


def _check_app_state(app_state: AppState[Any]) -> None:
    if not isinstance(app_state, dict):
        raise TypeMismatchError(f"app_state must be a dict of str to Stateful, not {type(app_state).__name__}")
    for key, stateful in app_state.items():
        if not isinstance(key, str):
            raise TypeMismatchError(f"app_state has the key {key!r} of type {type(key).__name__}; keys must be str")
        if not isinstance(stateful, Stateful):
            raise TypeMismatchError(
                f"app_state[{key!r}] of type {type(stateful).__name__} has no state_dict() and load_state_dict(); "
                "wrap plain values in a torchsnapshot.StateDict"
            )
    generators = [key for key, stateful in app_state.items() if isinstance(stateful, RNGState)]
    if len(generators) > 1:
        raise MultipleRNGStatesError(f"app_state has more than one RNGState: {generators}; keep one of them")


class MultipleRNGStatesError(InvalidArgumentError, RuntimeError):
    """An app state with two RNGStates: which one is to be restored last can't be known."""


def _rng_first(app_state: AppState[Any]) -> list[tuple[str, Stateful]]:
    return sorted(app_state.items(), key=lambda item: not isinstance(item[1], RNGState))


def _rng_last(app_state: AppState[Any]) -> list[tuple[str, Stateful]]:
    return sorted(app_state.items(), key=lambda item: isinstance(item[1], RNGState))


@contextmanager
def _state_dicts(app_state: AppState[Any]) -> Iterator[list[tuple[str, Any]]]:
    """Yields the state of every object in `app_state`; an RNGState comes first, and is set again at the end."""
    state_dicts: list[tuple[str, Any]] = []
    try:
        for key, stateful in _rng_first(app_state):
            state_dicts.append((key, stateful.state_dict()))
        yield state_dicts
    finally:
        for key, state_dict in state_dicts[:1]:
            if isinstance(app_state[key], RNGState):
                app_state[key].load_state_dict(state_dict)


def _replicated_globs(replicated: list[str] | None, app_state: AppState[Any]) -> list[str]:
    """The caller's globs, and those of what DistributedDataParallel keeps equal on all ranks."""
    if replicated is not None and (
        not isinstance(replicated, (list, tuple, set)) or not all(isinstance(glob, str) for glob in replicated)
    ):
        raise TypeMismatchError(f"replicated must be a list of globs, not {replicated!r}")
    globs = list(replicated or [])
    for key, stateful in app_state.items():
        if not isinstance(stateful, DistributedDataParallel):
            continue
        ignored = set(stateful.parameters_to_ignore)
        names = stateful.state_dict().keys() if ignored else ["**"]
        prefix = "module."
        globs += [f"{key}/{name}" for name in names if name[len(prefix) :] not in ignored]
    return globs


def _take_options(app_state: AppState[Any], replicated: list[str] | None) -> _core.TakeOptions:
    options = _core.TakeOptions()
    options.replicated = _replicated_globs(replicated, app_state)
    options.max_chunk_bytes = knobs.get_max_chunk_size_bytes()
    options.max_shard_bytes = knobs.get_max_shard_size_bytes()
    options.slab_bytes = knobs.get_slab_size_threshold_bytes()
    options.batching = not knobs.is_batching_disabled()
    options.commit_timeout_seconds = knobs.get_commit_timeout_seconds()
    return options


def _keep_metadata(target: Any, state_dict: Any) -> None:
    """A module's state dict carries the versions of its modules' formats, which no snapshot holds: without them
    quantized modules can't load theirs. If the keys are the same, so are the formats."""
    metadata = getattr(target, "_metadata", None)
    if metadata is not None and isinstance(state_dict, OrderedDict) and state_dict.keys() == target.keys():
        state_dict._metadata = metadata  # type: ignore[attr-defined]


def _has_no_generators(stateful: Stateful, state_dict: Any, rank: int) -> bool:
    """True for the RNGState of a rank beyond the saved world (rank 0 is always in it): its generators stay as they are,
    which the report and a notice tell."""
    return isinstance(stateful, RNGState) and rank > 0 and "rng_state" not in state_dict


def _load(stateful: Stateful, state_dict: Any, strict: bool) -> None:
    with skip_self_copies():
        if _takes_strict(stateful):
            stateful.load_state_dict(state_dict, strict=strict)  # type: ignore[call-arg]
        else:
            stateful.load_state_dict(state_dict)


def _takes_strict(stateful: Stateful) -> bool:
    if isinstance(stateful, torch.nn.Module):
        return True
    try:
        return "strict" in inspect.signature(stateful.load_state_dict).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
