"""Checkpoints of PyTorch training state: saved by a C++ engine, restored in place.

The names are those of the original ``torchsnapshot``, so programs written for it run unchanged.
"""

from .errors import (
    AccessError,
    AlreadyExistsError,
    CancelledError,
    CorruptSnapshotError,
    EntryNotFoundError,
    InternalError,
    InvalidArgumentError,
    MismatchError,
    NoSpaceError,
    NotAFolderError,
    NotFoundError,
    ObjectNotAllowedError,
    PendingTakeError,
    SnapshotIncompleteError,
    StorageError,
    TorchSnapshotError,
    TypeMismatchError,
    UnsupportedError,
)
from .pending_snapshot import PendingSnapshot, release_staging_memory
from .rng_state import RNGState
from .snapshot import Snapshot
from .state_dict import StateDict
from .stateful import Stateful
from .version import __version__

__all__ = [
    "AccessError",
    "AlreadyExistsError",
    "CancelledError",
    "CorruptSnapshotError",
    "EntryNotFoundError",
    "InternalError",
    "InvalidArgumentError",
    "MismatchError",
    "NoSpaceError",
    "NotAFolderError",
    "NotFoundError",
    "ObjectNotAllowedError",
    "PendingSnapshot",
    "PendingTakeError",
    "RNGState",
    "Snapshot",
    "SnapshotIncompleteError",
    "StateDict",
    "Stateful",
    "StorageError",
    "TorchSnapshotError",
    "TypeMismatchError",
    "UnsupportedError",
    "__version__",
    "release_staging_memory",
]
