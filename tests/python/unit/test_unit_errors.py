"""torchsnapshot.errors: classes, attributes, text, pickling."""

from __future__ import annotations

import builtins
import copy
import errno
import pickle

import pytest
import torchsnapshot
from torchsnapshot import errors
from torchsnapshot.errors import from_code

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.TorchSnapshotError)]

BY_CODE = {
    "INVALID_ARGUMENT": (errors.InvalidArgumentError, ValueError, 0),
    "TYPE_MISMATCH": (errors.TypeMismatchError, TypeError, 0),
    "MISMATCH": (errors.MismatchError, RuntimeError, 0),
    "NOT_FOUND": (errors.NotFoundError, FileNotFoundError, errno.ENOENT),
    "ENTRY_NOT_FOUND": (errors.EntryNotFoundError, RuntimeError, 0),
    "PERMISSION_DENIED": (errors.AccessError, PermissionError, errno.EACCES),
    "ALREADY_EXISTS": (errors.AlreadyExistsError, FileExistsError, errno.EEXIST),
    "NOT_A_DIRECTORY": (errors.NotAFolderError, NotADirectoryError, errno.ENOTDIR),
    "NO_SPACE": (errors.NoSpaceError, OSError, errno.ENOSPC),
    "IO": (errors.StorageError, OSError, errno.EIO),
    "NOT_A_SNAPSHOT": (errors.SnapshotIncompleteError, RuntimeError, 0),
    "CORRUPT": (errors.CorruptSnapshotError, RuntimeError, 0),
    "UNSUPPORTED": (errors.UnsupportedError, RuntimeError, 0),
    "CANCELLED": (errors.CancelledError, RuntimeError, 0),
    "INTERNAL": (errors.InternalError, RuntimeError, 0),
}


@pytest.mark.parametrize("code", BY_CODE)
def test_each_code_gives_its_class_and_the_builtin(code: str) -> None:
    cls, builtin, number = BY_CODE[code]
    error = from_code(code, "writing 0/a: gone", number)
    assert type(error) is cls
    assert isinstance(error, builtin)
    assert isinstance(error, errors.TorchSnapshotError)
    assert (error.code, error.message, error.sys_errno) == (code, "writing 0/a: gone", number)


def test_every_code_of_the_engine_is_covered() -> None:
    assert set(BY_CODE) == set(errors._BY_CODE)


def test_an_entry_that_is_not_there() -> None:
    error = from_code("ENTRY_NOT_FOUND", "no entry 'a', did you mean 'b'?", 0)
    assert type(error) is errors.EntryNotFoundError
    assert isinstance(error, (RuntimeError, KeyError))
    assert not isinstance(error, OSError)
    assert str(error) == "no entry 'a', did you mean 'b'?"  # a plain KeyError would quote it


def test_an_unknown_code_is_named() -> None:
    error = from_code("SOMETHING_NEW", "message")
    assert type(error) is errors.InternalError
    assert str(error) == "message (unknown error code 'SOMETHING_NEW')"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("number", [0, errno.EDQUOT])
def test_text_pickle_and_copy(cls: type[errors.TorchSnapshotError], number: int) -> None:
    error = cls("reading 'x': ü %s {}", number)
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(same) is cls
        assert str(same) == "reading 'x': ü %s {}"
        assert repr(same) == f"{cls.__name__}(\"reading 'x': ü %s {{}}\")"
        assert same.sys_errno == number
        if isinstance(same, OSError):
            assert same.errno == (number or cls.default_errno)  # type: ignore[attr-defined]
            assert same.strerror


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_can_be_made_like_any_exception(cls: type[errors.TorchSnapshotError]) -> None:
    assert str(cls()) == ""
    assert str(cls("only a message")) == "only a message"


def test_each_is_caught_by_the_builtin_of_its_name_and_exported() -> None:
    for cls in CLASSES:
        assert getattr(torchsnapshot, cls.__name__) is cls
        assert cls.__doc__
        if cls is not errors.TorchSnapshotError:
            builtin = [base for base in cls.__mro__ if getattr(builtins, base.__name__, None) is base]
            assert builtin[0] not in (Exception, BaseException, object), cls
