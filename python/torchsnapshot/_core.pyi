"""The torchsnapshot engine."""

from collections.abc import Mapping, Sequence


version: str = '0.2.0'

def parse_metadata(data: bytes) -> tuple[str, int, dict[str, dict[str, object]]]:
    """
    Reads and validates metadata, JSON or YAML. Returns (version, world_size, {path: entry}).
    """

def write_metadata(version: str, world_size: int, entries: dict[str, dict[str, object]]) -> str:
    """Validates entries and writes the metadata as JSON."""

class Coordinator:
    """The ranks of a process group."""

class Remembered:
    """What the takes of a process group remember of their plan."""

    def __init__(self) -> None: ...

def make_coordinator(object: object, rank: int, world_size: int, remembered: Remembered) -> Coordinator:
    """Wraps a GroupCoordinator."""

def agree_on_url(coordinator: Coordinator, url: str) -> tuple[str, str]:
    """(rank 0's URL, what there is to say about it). Collective."""

def refuse_take(coordinator: Coordinator, error: object) -> None:
    """
    Joins the first exchange of a take with an error, for a rank that failed before.
    """

def refuse_restore(coordinator: Coordinator, error: object) -> None:
    """
    Joins the exchange of a restore with an error, for a rank that failed before.
    """

class Storage:
    """A place for objects; shared by the snapshots in it."""

    @property
    def url(self) -> str: ...

def open_plugin_storage(bridge: object, url: str) -> Storage:
    """Wraps a PluginBridge."""

class IoOptions:
    """Limits and observers of one operation."""

    def __init__(self) -> None: ...

    @property
    def memory_budget_bytes(self) -> int: ...

    @memory_budget_bytes.setter
    def memory_budget_bytes(self, arg: int, /) -> None: ...

    @property
    def io_concurrency(self) -> int: ...

    @io_concurrency.setter
    def io_concurrency(self, arg: int, /) -> None: ...

    @property
    def checksums(self) -> bool: ...

    @checksums.setter
    def checksums(self, arg: bool, /) -> None: ...

    @property
    def on_progress(self) -> object: ...

    @on_progress.setter
    def on_progress(self, arg: object | None, /) -> None: ...

    @property
    def on_notice(self) -> object: ...

    @on_notice.setter
    def on_notice(self, arg: object | None, /) -> None: ...

class TakeOptions:
    """How a take lays out its objects."""

    def __init__(self) -> None: ...

    @property
    def replicated(self) -> list[str]: ...

    @replicated.setter
    def replicated(self, arg: Sequence[str], /) -> None: ...

    @property
    def max_chunk_bytes(self) -> int: ...

    @max_chunk_bytes.setter
    def max_chunk_bytes(self, arg: int, /) -> None: ...

    @property
    def max_shard_bytes(self) -> int: ...

    @max_shard_bytes.setter
    def max_shard_bytes(self, arg: int, /) -> None: ...

    @property
    def slab_bytes(self) -> int: ...

    @slab_bytes.setter
    def slab_bytes(self, arg: int, /) -> None: ...

    @property
    def on_planned(self) -> object: ...

    @on_planned.setter
    def on_planned(self, arg: object | None, /) -> None: ...

    @property
    def batching(self) -> bool: ...

    @batching.setter
    def batching(self, arg: bool, /) -> None: ...

    @property
    def staging(self) -> str: ...

    @staging.setter
    def staging(self, arg: str, /) -> None: ...

    @property
    def lazy_user_faults(self) -> bool: ...

    @lazy_user_faults.setter
    def lazy_user_faults(self, arg: bool, /) -> None: ...

    @property
    def coordinator(self) -> Coordinator: ...

    @coordinator.setter
    def coordinator(self, arg: Coordinator | None, /) -> None: ...

    @property
    def commit_timeout_seconds(self) -> float: ...

    @commit_timeout_seconds.setter
    def commit_timeout_seconds(self, arg: float, /) -> None: ...

    @property
    def group(self) -> object: ...

    @group.setter
    def group(self, arg: object | None, /) -> None: ...

class Snapshot:
    """A handle to a snapshot in a storage."""

    def __init__(self, storage: Storage) -> None: ...

    def metadata(self, verify: bool) -> tuple[str, int, dict[str, dict[str, object]]]:
        """(version, world_size, {path: entry})."""

    def restore(self, app: Sequence[tuple[str, object]], strict: bool, exact: Sequence[bool], weights_only: bool, keep_going: bool, on_state: object, io: IoOptions, coordinator: Coordinator | None, replicated_read: str) -> tuple[list[str], list[str], list[str], list[tuple[list[str], str, tuple[int, int], int, int]]]:
        """Restores; returns (missing, unexpected, mismatched, corrupt)."""

    def read_object(self, path: str, target: object | None, weights_only: bool, io: IoOptions) -> object:
        """One entry or subtree, in place where `target` has tensors."""

    def read_state(self, key: str, rank: int, weights_only: bool, io: IoOptions) -> object:
        """The tree of one key as a rank sees it."""

def take(storage: Storage, app: Sequence[tuple[str, object]], take_options: TakeOptions, io: IoOptions, prepare: object | None) -> Snapshot:
    """Takes a snapshot of (key, state dict) pairs."""

class PendingSnapshot:
    """A take that goes on by itself."""

    def done(self) -> bool:
        """Whether the take has ended."""

    def wait_for(self, seconds: float) -> bool:
        """
        Waits until the take has ended, at most so long (negative: without limit); whether it has.
        """

    def wait(self) -> Snapshot:
        """Waits, and returns the snapshot or raises what ended the take."""

    def wait_staged(self) -> None:
        """Makes the copies that are left to make."""

    def let_wait_staged(self, streams: Sequence[tuple[int, int]]) -> None:
        """
        As wait_staged, but tensors on CUDA devices may be changed by what these streams (device, CUstream) do from now on.
        """

    def cancel(self) -> None:
        """Tells the take to stop."""

def async_take(storage: Storage, app: Sequence[tuple[str, object]], take_options: TakeOptions, io: IoOptions, prepare: object | None, on_end: object, own: object | None, on_copied: object | None) -> PendingSnapshot:
    """
    Fixes what a snapshot of (key, state dict) pairs will hold; the rest goes on by itself.
    """

def release_staging_memory() -> None:
    """
    Gives the buffers that takes have left back to the system, but for 64 MiB.
    """

def open_storage(url: str, options: Mapping[str, str], credentials: object | None = None) -> Storage:
    """Opens a native backend."""

def storage_write(storage: Storage, location: str, data: object) -> None:
    """Creates or replaces an object."""

def storage_read(storage: Storage, location: str, begin: int | None = None, end: int | None = None) -> bytes:
    """The whole object, or [begin, end) of it."""

def storage_remove(storage: Storage, location: str) -> None:
    """Removes an object; one that is not there is no error."""

def storage_list(storage: Storage, prefix: str) -> list[str]:
    """Locations that start with a prefix, sorted."""
