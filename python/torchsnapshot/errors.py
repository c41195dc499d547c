"""The exception classes.

Every failure of the engine is a :class:`TorchSnapshotError`, and at the same time the built-in class
that a Python programmer would expect, so ``except FileNotFoundError`` and ``except RuntimeError`` work
as usual. ``str()`` of each is the plain message.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any, ClassVar


class TorchSnapshotError(Exception):
    """Base of all errors that this package raises on its own account.

    Attributes:
        code: name of the kind of error in the engine, such as ``"NOT_FOUND"``.
        message: the text, contexts outermost first.
        sys_errno: ``errno`` of the system call that failed, or 0.
    """

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str = "", sys_errno: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.sys_errno = sys_errno

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.sys_errno))


class StorageError(TorchSnapshotError, OSError):
    """A device, file system or object store failed. Carries ``errno`` and ``strerror``."""

    code: ClassVar[str] = "IO"
    default_errno: ClassVar[int] = _errno.EIO

    def __init__(self, message: str = "", sys_errno: int = 0) -> None:
        number = sys_errno or self.default_errno
        OSError.__init__(self, number, os.strerror(number))
        self.message = message
        self.sys_errno = sys_errno


class NotFoundError(StorageError, FileNotFoundError):
    """A file or an object on storage does not exist."""

    code: ClassVar[str] = "NOT_FOUND"
    default_errno: ClassVar[int] = _errno.ENOENT


class EntryNotFoundError(TorchSnapshotError, RuntimeError, KeyError):
    """A path or key that the snapshot does not have.

    A ``RuntimeError`` as in the original, and also a ``KeyError``.
    """

    code: ClassVar[str] = "ENTRY_NOT_FOUND"


class AccessError(StorageError, PermissionError):
    """The operating system or the store refused access."""

    code: ClassVar[str] = "PERMISSION_DENIED"
    default_errno: ClassVar[int] = _errno.EACCES


class AlreadyExistsError(StorageError, FileExistsError):
    """A name that must be new is taken."""

    code: ClassVar[str] = "ALREADY_EXISTS"
    default_errno: ClassVar[int] = _errno.EEXIST


class NotAFolderError(StorageError, NotADirectoryError):
    """A path that must be a folder is something else."""

    code: ClassVar[str] = "NOT_A_DIRECTORY"
    default_errno: ClassVar[int] = _errno.ENOTDIR


class NoSpaceError(StorageError):
    """The disk or a quota is exhausted."""

    code: ClassVar[str] = "NO_SPACE"
    default_errno: ClassVar[int] = _errno.ENOSPC


class InvalidArgumentError(TorchSnapshotError, ValueError):
    """The caller passed something that can't be right."""

    code: ClassVar[str] = "INVALID_ARGUMENT"


class TypeMismatchError(TorchSnapshotError, TypeError):
    """An argument is of a wrong type, such as an app state that is no dict."""

    code: ClassVar[str] = "TYPE_MISMATCH"


class MismatchError(TorchSnapshotError, RuntimeError):
    """A target has another type, dtype or shape than what was saved.

    A ``RuntimeError``, as ``torch.nn.Module.load_state_dict`` raises.
    """

    code: ClassVar[str] = "MISMATCH"


class SnapshotIncompleteError(TorchSnapshotError, RuntimeError):
    """No readable metadata: not a snapshot, or one that was never finished."""

    code: ClassVar[str] = "NOT_A_SNAPSHOT"


class CorruptSnapshotError(TorchSnapshotError, RuntimeError):
    """Bytes on storage contradict the manifest or are malformed."""

    code: ClassVar[str] = "CORRUPT"


class UnsupportedError(TorchSnapshotError, NotImplementedError):
    """Valid, but not possible in this build or with this value."""

    code: ClassVar[str] = "UNSUPPORTED"


class CancelledError(TorchSnapshotError, RuntimeError):
    """Stopped by the caller."""

    code: ClassVar[str] = "CANCELLED"


class PendingTakeError(TorchSnapshotError, RuntimeError):
    """A take that went on in the background failed; ``__cause__`` is what ended it."""

    code: ClassVar[str] = "PENDING_TAKE"


class InternalError(TorchSnapshotError, RuntimeError):
    """A bug in the engine."""

    code: ClassVar[str] = "INTERNAL"


class ObjectNotAllowedError(TorchSnapshotError, RuntimeError):
    """A serialized object needs a class or function that is not allowed to be loaded."""

    code: ClassVar[str] = "UNSUPPORTED"


_BY_CODE: dict[str, type[TorchSnapshotError]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "TYPE_MISMATCH": TypeMismatchError,
    "MISMATCH": MismatchError,
    "NOT_FOUND": NotFoundError,
    "ENTRY_NOT_FOUND": EntryNotFoundError,
    "PERMISSION_DENIED": AccessError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "NOT_A_DIRECTORY": NotAFolderError,
    "NO_SPACE": NoSpaceError,
    "IO": StorageError,
    "NOT_A_SNAPSHOT": SnapshotIncompleteError,
    "CORRUPT": CorruptSnapshotError,
    "UNSUPPORTED": UnsupportedError,
    "CANCELLED": CancelledError,
    "INTERNAL": InternalError,
}


def from_code(code: str, message: str, sys_errno: int = 0) -> TorchSnapshotError:
    """The exception for an error of the engine.

    An unknown code gives an :class:`InternalError` that names it.
    """
    cls = _BY_CODE.get(code)
    if cls is None:
        return InternalError(f"{message} (unknown error code {code!r})", sys_errno)
    return cls(message, sys_errno)
