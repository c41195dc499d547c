"""Which classes and functions a serialized object may name without an opt-in, and how each may be called.

Two tables: what a name in a pickle stands for, and what happens when the pickle calls it. Something may be named and
yet not be called (the type ``list`` as the factory of a defaultdict), and what may be called checks its arguments, so
that no call allocates more than the pickle itself holds.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import functools
import pathlib
import uuid
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import torch
from torch._weights_only_unpickler import _get_allowed_globals

# Torch never allows these, whatever the user says.
BLOCKED_MODULES = frozenset({"sys", "os", "posix", "nt"})

_BUILTIN_TYPES = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object"),
    *("range", "set", "slice", "str", "tuple"),
)
_PATH_CLASSES = ("PurePath", "PurePosixPath", "PureWindowsPath", "Path", "PosixPath", "WindowsPath")
_MEMORY_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
_SEQUENCES = (list, tuple, set, frozenset, dict)


@functools.lru_cache(maxsize=1)
def own_globals() -> dict[str, Any]:
    """What a name stands for, by its full name; numpy's are apart, in numpy_globals()."""
    table: dict[str, Any] = dict(_get_allowed_globals())
    table.update({f"builtins.{name}": getattr(builtins, name) for name in _BUILTIN_TYPES})
    table["builtins.Ellipsis"] = Ellipsis
    table["builtins.NotImplemented"] = NotImplemented
    table.update({f"collections.{c.__name__}": c for c in (collections.deque, collections.defaultdict)})
    for cls in (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone):
        table[f"datetime.{cls.__name__}"] = cls
    table["decimal.Decimal"] = decimal.Decimal
    table["uuid.UUID"] = uuid.UUID
    for module in ("pathlib", "pathlib._local"):  # Python 3.13 names them by the latter
        table.update({f"{module}.{name}": _path_class(name) for name in _PATH_CLASSES})
    table.update({f"torch.{name}": getattr(torch, name) for name in _MEMORY_FORMATS})
    return table


@functools.lru_cache(maxsize=1)
def numpy_globals() -> dict[str, Any]:
    """As own_globals(), for names in numpy; empty without numpy."""
    try:
        from . import _numpy_objects
    except ImportError:
        return {}
    return _numpy_objects.known_globals()


def user_globals() -> dict[str, Any]:
    """What the program allowed by ``torch.serialization.add_safe_globals``."""
    table: dict[str, Any] = {}
    for item in torch.serialization.get_safe_globals():
        if isinstance(item, tuple):
            value, name = item
            table[name] = value
        else:
            table[f"{item.__module__}.{item.__qualname__}"] = item
    return table


@functools.lru_cache(maxsize=1)
def _own_callables() -> dict[int, Callable[..., Any]]:
    # Making tensors by size allocates whatever the pickle says; it is never how one is saved.
    tensor_classes = {id(cls) for cls in (torch.Tensor, *torch._tensor_classes)}
    callables: dict[int, Callable[..., Any]] = {
        id(value): value
        for value in _get_allowed_globals().values()
        if callable(value) and id(value) not in tensor_classes
    }
    callables.update(
        {
            id(own_globals()["_codecs.encode"]): _encode,
            id(own_globals()["torch._tensor._rebuild_from_type_v2"]): _rebuild_tensor_subclass,
            id(bytearray): _bytearray,
            id(bytes): _empty_bytes,
            id(collections.Counter): _counter,
            id(collections.OrderedDict): _ordered_dict,
            id(collections.defaultdict): _defaultdict,
            id(collections.deque): _deque,
            id(complex): complex,
            id(decimal.Decimal): _decimal,
            id(frozenset): _collection_of(frozenset),
            id(range): range,
            id(set): _collection_of(set),
            id(slice): slice,
            id(torch.Size): _size,
        }
    )
    for cls in (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone):
        callables[id(cls)] = cls
    for name in _PATH_CLASSES:
        path_class = _path_class(name)
        callables[id(path_class)] = functools.partial(_path, path_class)
    return callables


@functools.lru_cache(maxsize=1)
def _numpy_callables() -> dict[int, Callable[..., Any]]:
    try:
        from . import _numpy_objects as numpy_objects
    except ImportError:
        return {}
    checked = (numpy_objects.new_array, numpy_objects.scalar, numpy_objects.string_dtype)
    callables: dict[int, Callable[..., Any]] = {id(function): function for function in checked}
    callables[id(numpy_globals()["numpy.dtype"])] = numpy_objects.base_dtype
    return callables


def callable_for(target: Any) -> Callable[..., Any] | None:
    """The checked form of what a pickle wants to call; None: it may not be called."""
    return _own_callables().get(id(target)) or _numpy_callables().get(id(target))


def _path_class(name: str) -> type[pathlib.PurePath]:
    # A concrete path of the other system can't exist here; its pure form keeps the value.
    here = type(pathlib.Path()).__name__
    if name in ("PosixPath", "WindowsPath") and name != here:
        name = f"Pure{name}"
    cls: type[pathlib.PurePath] = getattr(pathlib, name)
    return cls


def _refuse(what: str) -> UnpicklingError:
    return UnpicklingError(f"malformed pickle of {what}")


def _collection_of(cls: type[Any]) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if type(items) not in _SEQUENCES:
            raise _refuse(cls.__name__)
        return cls(items)

    return make


def _deque(items: Any = (), maxlen: Any = None) -> collections.deque[Any]:
    if type(items) not in (list, tuple):
        raise _refuse("deque")
    return collections.deque(items, maxlen)


def _counter(items: Any = None) -> collections.Counter[Any]:
    if items is not None and type(items) is not dict:
        raise _refuse("Counter")
    return collections.Counter(items)


def _ordered_dict(items: Any = ()) -> collections.OrderedDict[Any, Any]:
    if type(items) not in (list, tuple, dict):
        raise _refuse("OrderedDict")
    return collections.OrderedDict(items)


def _defaultdict(factory: Any = None, items: Any = ()) -> collections.defaultdict[Any, Any]:
    # The factory can only be something that the pickle may name; it runs when the program looks up a missing key.
    if not (factory is None or isinstance(factory, type)) or type(items) not in (dict, tuple, list):
        raise _refuse("defaultdict")
    return collections.defaultdict(factory, items)


def _decimal(text: Any = "0") -> decimal.Decimal:
    if type(text) is not str:
        raise _refuse("Decimal")
    return decimal.Decimal(text)


def _path(cls: type[pathlib.PurePath], *parts: Any) -> pathlib.PurePath:
    if any(type(part) is not str for part in parts):
        raise _refuse(cls.__name__)
    return cls(*parts)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise _refuse("bytes")
    return text.encode("latin-1")


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise _refuse("bytes")
    return b""


def _bytearray(*args: Any) -> bytearray:
    if not args:
        return bytearray()
    if len(args) == 1 and type(args[0]) is bytes:
        return bytearray(args[0])
    return bytearray(_encode(*args))


def _size(sizes: Any = ()) -> torch.Size:
    if type(sizes) not in (tuple, list):
        raise _refuse("torch.Size")
    return torch.Size(sizes)


def _rebuild_tensor_subclass(function: Any, cls: Any, args: Any, state: Any) -> Any:
    # Torch's own calls any function it is given, and sets the state of whatever comes out.
    if not (isinstance(cls, type) and issubclass(cls, torch.Tensor)):
        raise _refuse("a tensor")
    if getattr(function, "__module__", None) != "torch._utils" or id(function) not in _own_callables():
        raise _refuse(f"a {cls.__name__}")
    return torch._tensor._rebuild_from_type_v2(function, cls, args, state)  # type: ignore[no-untyped-call]
