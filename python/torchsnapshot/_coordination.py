"""The ranks of a process group, as the engine talks to them.

Exchanges are collectives of the group, on tensors of a device that its backend can move; they happen in the foreground
only. What goes on in the background uses a key-value store: the one that ``torch.distributed`` was started with, over
a connection of its own.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from . import _core
from .errors import StorageError, TorchSnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable

#: A broadcast up to this size takes one collective.
_SHORT_BYTES = 2048
_SIZE_BYTES = 8


#: What takes remember of their plan, by process group.
_remembered: weakref.WeakKeyDictionary[dist.ProcessGroup, _core.Remembered] = weakref.WeakKeyDictionary()


#: A store of torch.distributed, and our own connection to it.
_connection: tuple[Any, Any] | None = None


class GroupCoordinator:
    """Exchanges of bytes within a process group. The engine calls it through ``_core.Coordinator``.

    All ranks call the same methods in the same order. `exchanges` counts the collectives.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        self.exchanges = 0
        self._device = _exchange_device(group)
        self._root = dist.get_global_rank(group, 0) if group is not None else 0
        self._store = _own_connection(_store_of_default_group())

    def broadcast(self, data: bytes) -> bytes:
        """Rank 0's bytes."""
        first = self._padded(_with_size(data)[: _SIZE_BYTES + _SHORT_BYTES], _SIZE_BYTES + _SHORT_BYTES)
        self._collective(lambda: dist.broadcast(first, self._root, group=self.group))
        head = _bytes_of(first)
        size = int.from_bytes(head[:_SIZE_BYTES], "little")
        if size <= _SHORT_BYTES:
            return head[_SIZE_BYTES : _SIZE_BYTES + size]
        whole = self._padded(data if self.rank == 0 else b"", size)
        self._collective(lambda: dist.broadcast(whole, self._root, group=self.group))
        return _bytes_of(whole)

    def all_gather(self, data: bytes, limit: int) -> list[bytes]:
        """The bytes of all ranks, by rank; none has more than `limit`."""
        mine = self._padded(_with_size(data), _SIZE_BYTES + limit)
        theirs = [torch.empty_like(mine) for _ in range(self.world_size)]
        self._collective(lambda: dist.all_gather(theirs, mine, group=self.group))
        return [_without_size(_bytes_of(tensor)) for tensor in theirs]

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of all ranks, by rank, on rank 0; nothing elsewhere."""
        sizes = [int.from_bytes(size, "little") for size in self.all_gather(_size_of(data), _SIZE_BYTES)]
        mine = self._padded(data, max(1, *sizes))
        theirs = [torch.empty_like(mine) for _ in range(self.world_size)] if self.rank == 0 else None
        self._collective(lambda: dist.gather(mine, theirs, dst=self._root, group=self.group))
        return [_bytes_of(tensor)[:size] for tensor, size in zip(theirs or [], sizes, strict=False)]

    def gather_within(self, data: bytes, limit: int) -> list[bytes]:
        """As `gather`, in one collective: no rank passes more than `limit`."""
        mine = self._padded(_with_size(data), _SIZE_BYTES + limit)
        theirs = [torch.empty_like(mine) for _ in range(self.world_size)] if self.rank == 0 else None
        self._collective(lambda: dist.gather(mine, theirs, dst=self._root, group=self.group))
        return [_without_size(_bytes_of(tensor)) for tensor in theirs or []]

    def gather_from(self, senders: list[int], data: bytes) -> list[bytes]:
        """The bytes of `senders` on rank 0, in their order. The ranks in between have no part in it."""
        if self.rank == 0:
            sizes = self._receive(dict.fromkeys(senders, _SIZE_BYTES))
            return self._receive(
                {rank: int.from_bytes(size, "little") for rank, size in zip(senders, sizes, strict=True)}
            )
        if self.rank in senders:
            self._send(_size_of(data))
            self._send(data)
        return []

    def all_sum(self, data: bytes) -> bytes:
        """Unsigned numbers of 64 bits, added up over all ranks modulo 2^64."""
        # In halves, whose sums fit.
        numbers = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
        halves = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        self._collective(lambda: dist.all_reduce(halves, group=self.group))
        sums = [int(half) for half in halves.tolist()]
        return b"".join(
            ((low + (high << 32)) % 2**64).to_bytes(8, "little")
            for low, high in zip(sums[0::2], sums[1::2], strict=True)
        )

    def hand_round(self, parts: list[tuple[int, memoryview]]) -> None:
        """Fills the memory of each part, on all ranks, with that of the rank it belongs to. Counts as one exchange."""
        tensors = [torch.frombuffer(memory, dtype=torch.uint8) for _, memory in parts]
        moved = [tensor.to(self._device) for tensor in tensors]  # the same, if the backend moves CPU tensors

        def broadcast() -> None:
            works = [
                dist.broadcast(tensor, self._global_rank(owner), group=self.group, async_op=True)
                for (owner, _), tensor in zip(parts, moved, strict=True)
            ]
            for work in works:
                if work is not None:
                    work.wait()

        self._collective(broadcast)
        for tensor, there, (owner, _) in zip(tensors, moved, parts, strict=True):
            if there is not tensor and owner != self.rank:
                tensor.copy_(there)

    def _send(self, data: bytes) -> None:
        """To rank 0. Nothing is nothing."""
        if data:
            self._collective(lambda: dist.send(self._padded(data, len(data)), self._root, self.group))

    def _receive(self, sizes: dict[int, int]) -> list[bytes]:
        """Rank 0's side of gather_from: so many bytes of each rank."""
        tensors = {rank: torch.empty(size, dtype=torch.uint8, device=self._device) for rank, size in sizes.items()}

        def receive() -> None:
            works = [
                dist.irecv(tensor, self._global_rank(rank), group=self.group)
                for rank, tensor in tensors.items()
                if tensor.numel()
            ]
            for work in works:
                if work is not None:
                    work.wait()

        self._collective(receive)
        return [_bytes_of(tensor) for tensor in tensors.values()]

    def _global_rank(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    # The store. Values are bytes; none of the calls waits for another rank.

    def store_set(self, key: str, value: bytes) -> None:
        """Sets a key."""
        self._on_store(lambda: self._store.set(key, value))

    def store_get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        found = self._on_store(lambda: self._store.get(key) if self._store.check([key]) else None)
        return None if found is None else bytes(found)

    def store_add(self, key: str, amount: int) -> int:
        """Adds to a number, and returns the sum."""
        return int(self._on_store(lambda: self._store.add(key, amount)))

    def store_set_once(self, key: str, value: bytes) -> bytes:
        """Sets a key that is not set, and returns the value that it has then."""
        text = value.decode("utf-8", "backslashreplace")
        found = self._on_store(lambda: self._store.compare_set(key, "", text))
        return found if isinstance(found, bytes) else str(found).encode()

    def store_remove(self, key: str) -> None:
        """Removes a key, where the store can."""
        try:
            self._store.delete_key(key)
        except NotImplementedError:  # a store in a file
            return
        except RuntimeError as error:
            raise _store_error(error) from error

    def _on_store(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            raise _store_error(error) from error

    def _collective(self, call: Callable[[], Any]) -> None:
        self.exchanges += 1
        try:
            call()
        except RuntimeError as error:
            raise StorageError(
                f"an exchange between the ranks failed (has one of them died?): {_first_line(error)}"
            ) from error

    def _padded(self, data: bytes, size: int) -> torch.Tensor:
        buffer = bytearray(size)
        buffer[: len(data)] = data
        return torch.frombuffer(buffer, dtype=torch.uint8).to(self._device)


def coordinator_of(group: dist.ProcessGroup | None) -> GroupCoordinator | None:
    """The coordinator of a process group (None: the default one); None for a world of one."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) <= 1:
        return None
    if dist.get_rank(group) < 0:
        raise TorchSnapshotError("this process is no member of the process group `pg`")
    return GroupCoordinator(group)


def rank_of(group: dist.ProcessGroup | None) -> int:
    """This process's rank in the group; 0 for a world of one."""
    if not dist.is_available() or not dist.is_initialized():
        return 0
    return max(0, dist.get_rank(group))


def to_core(coordinator: GroupCoordinator | None) -> _core.Coordinator | None:
    """The same for the engine."""
    if coordinator is None:
        return None
    group = coordinator.group if coordinator.group is not None else dist.distributed_c10d._get_default_group()
    remembered = _remembered.setdefault(group, _core.Remembered())
    return _core.make_coordinator(coordinator, coordinator.rank, coordinator.world_size, remembered)


def _exchange_device(group: dist.ProcessGroup | None) -> torch.device:
    """A device whose tensors the group's backend moves; the CPU if it can."""
    pg = group if group is not None else dist.distributed_c10d._get_default_group()
    devices = list(pg._device_types)
    if not devices or torch.device("cpu") in devices:
        return torch.device("cpu")
    kind = devices[0].type
    module = getattr(torch, kind, None)
    if module is None or not hasattr(module, "current_device"):
        return torch.device(kind)
    return torch.device(kind, module.current_device())


def _store_of_default_group() -> Any:
    return dist.distributed_c10d._get_default_store()


def _own_connection(store: Any) -> Any:
    """The store over a connection of our own, so that a look at it never waits for another user of it. One for all
    takes: that a rank connects can hold up the store's server, and with it all ranks, for seconds."""
    global _connection
    if _connection is None or _connection[0] is not store:
        try:
            own = store.clone()
        except (AttributeError, NotImplementedError, RuntimeError):  # older torch; a store that has none
            own = store
        _connection = (store, own)
    return _connection[1]


def _store_error(error: BaseException) -> StorageError:
    return StorageError(f"the key-value store of torch.distributed failed (is its host gone?): {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _size_of(data: bytes) -> bytes:
    return len(data).to_bytes(_SIZE_BYTES, "little")


def _with_size(data: bytes) -> bytes:
    return _size_of(data) + data


def _without_size(data: bytes) -> bytes:
    return data[_SIZE_BYTES : _SIZE_BYTES + int.from_bytes(data[:_SIZE_BYTES], "little")]


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
