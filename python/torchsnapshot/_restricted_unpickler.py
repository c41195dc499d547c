"""A ``pickle_module`` for ``torch.load`` that rebuilds only what is known to be harmless.

``torch.load(weights_only=True)`` refuses some standard containers and all of numpy, and knows only the opcodes that
plain state dicts need. This unpickler reads those too, and is as strict: a name stands only for what
_allowed_globals.py or the program's ``add_safe_globals`` lists; only what is listed is called, with checked arguments;
and only known classes get attributes or items. Each opcode that could do more is replaced or left out.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import struct
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, ClassVar, NoReturn

import torch

from . import _allowed_globals


class GlobalNotAllowedError(UnpicklingError):
    """A pickle names a class or function that is not allowed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not allowed")
        self.name = name


# Opcodes that only build plain values, or move them about.
# fmt: off
_PLAIN_OPCODES = [
    opcode[0]
    for opcode in (
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE,
        pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG,
        pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT, pickle.UNICODE, pickle.BINUNICODE,
        pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8,
        pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST,
        pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.LIST, pickle.DICT, pickle.FROZENSET, pickle.GET, pickle.BINGET,
        pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL,
    )
]
# fmt: on

_LISTS = (list, deque)
_DICTS = (dict, OrderedDict, Counter, defaultdict)


class Unpickler(pickle._Unpickler):
    """Reads one pickle. ``find_class`` and the calls are restricted as the module says."""

    # What the base class keeps, as its type stubs don't tell.
    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        opcode: pickle._Unpickler.dispatch[opcode] for opcode in _PLAIN_OPCODES
    }

    def __init__(self, file: Any, *, encoding: str = "utf-8") -> None:
        super().__init__(file, encoding=encoding)
        self._user_globals = _allowed_globals.user_globals()
        self._user_ids = {id(value) for value in self._user_globals.values()}
        self._numpy_slots: dict[int, list[int]] = {}

    def load(self) -> Any:
        """The object. Raises UnpicklingError for anything malformed or not allowed."""
        self._numpy_slots.clear()
        try:
            return super().load()
        except (UnpicklingError, MemoryError, RecursionError):
            raise
        except Exception as error:
            raise UnpicklingError(f"{type(error).__name__}: {error}") from error

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for. Raises GlobalNotAllowedError."""
        if (module, name) in _compat_pickle.NAME_MAPPING:
            module, name = _compat_pickle.NAME_MAPPING[(module, name)]
        elif module in _compat_pickle.IMPORT_MAPPING:
            module = _compat_pickle.IMPORT_MAPPING[module]
        path = f"{module}.{name}"
        if module.partition(".")[0] not in _allowed_globals.BLOCKED_MODULES:
            tables = [_allowed_globals.own_globals(), self._user_globals]
            if module.partition(".")[0] == "numpy":
                tables.insert(0, _allowed_globals.numpy_globals())
            for table in tables:
                if path in table:
                    return table[path]
        raise GlobalNotAllowedError(path)

    def persistent_load(self, pid: Any) -> NoReturn:
        """Replaced by torch.load."""
        raise UnpicklingError("a reference to data outside the pickle")

    def _is_users(self, value: Any) -> bool:
        return id(value) in self._user_ids

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        target = self.stack[-1]
        function = _allowed_globals.callable_for(target) or (target if self._is_users(target) else None)
        if function is None or not callable(function):
            raise UnpicklingError(f"a call of {target!r:.100}, which may not be called")
        if type(args) is not tuple:
            raise UnpicklingError("a call without a tuple of arguments")
        self.stack[-1] = function(*args)

    def _load_newobj(self) -> None:
        args = self.stack.pop()
        self._new_object(self.stack.pop(), args, {})

    def _load_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        self._new_object(self.stack.pop(), args, kwargs)

    def _new_object(self, cls: Any, args: Any, kwargs: Any) -> None:
        if type(args) is not tuple or type(kwargs) is not dict:
            raise UnpicklingError("a new object without a tuple of arguments")
        if cls is torch.nn.Parameter:
            self.append(torch.nn.Parameter(*args))
        elif cls is uuid.UUID and not args and not kwargs:
            self.append(object.__new__(uuid.UUID))
        elif isinstance(cls, type) and self._is_users(cls):
            self.append(cls.__new__(cls, *args, **kwargs))
        else:
            raise UnpicklingError(f"a new object of {cls!r:.100}, which may not be made")

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        cls = type(target)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(target, numpy.dtype):
            self._replace(target, _numpy_objects().build_dtype(target, state))
        elif numpy is not None and cls is numpy.ndarray:
            self._replace(target, _numpy_objects().build_array(target, state))
        elif cls is torch.Tensor:
            target.set_(*state)
        elif cls is torch.nn.Parameter:
            target.__setstate__(state)
        elif cls is OrderedDict and type(state) is dict:
            target.__dict__.update(state)
        elif cls is uuid.UUID:
            _build_uuid(target, state)
        elif self._is_users(cls):
            _build_object(target, state)
        else:
            raise UnpicklingError(f"a state for a {cls.__module__}.{cls.__qualname__}, which takes none")

    def _replace(self, unfinished: Any, built: Any) -> None:
        # A dtype or array can't be completed without numpy trusting the state, so a new one takes its place, also in
        # the memo.
        self.stack[-1] = built
        for slot in self._numpy_slots.pop(id(unfinished), []):
            self.memo[slot] = built

    def _remember(self, slot: int) -> None:
        value = self.stack[-1]
        self.memo[slot] = value
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, (numpy.dtype, numpy.ndarray)):
            self._numpy_slots.setdefault(id(value), []).append(slot)

    def _load_put(self) -> None:
        self._remember(int(self.readline()[:-1]))

    def _load_binput(self) -> None:
        self._remember(self.read(1)[0])

    def _load_long_binput(self) -> None:
        self._remember(struct.unpack("<I", self.read(4))[0])

    def _load_memoize(self) -> None:
        self._remember(len(self.memo))

    def _load_append(self) -> None:
        item = self.stack.pop()
        self._list_on_top().append(item)

    def _load_appends(self) -> None:
        items = self.pop_mark()
        self._list_on_top().extend(items)

    def _list_on_top(self) -> Any:
        target = self.stack[-1]
        if type(target) not in _LISTS and not (isinstance(target, (list, deque)) and self._is_users(type(target))):
            raise UnpicklingError(f"items for a {type(target).__qualname__}")
        return target

    def _load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._dict_on_top()[key] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        target = self._dict_on_top()
        for index in range(0, len(items), 2):
            target[items[index]] = items[index + 1]

    def _dict_on_top(self) -> Any:
        target = self.stack[-1]
        if type(target) not in _DICTS and not self._is_users(type(target)):
            raise UnpicklingError(f"keys for a {type(target).__qualname__}")
        return target

    def _load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise UnpicklingError(f"members for a {type(self.stack[-1]).__qualname__}")
        self.stack[-1].update(items)

    def _load_binpersid(self) -> None:
        pid = self.stack.pop()
        if type(pid) is not tuple or not pid or pid[0] not in ("storage", b"storage"):
            raise UnpicklingError("a reference to something else than a tensor's storage")
        self.append(self.persistent_load(pid))


_OVERRIDES: dict[bytes, Callable[[Unpickler], None]] = {
    pickle.REDUCE: Unpickler._load_reduce,
    pickle.NEWOBJ: Unpickler._load_newobj,
    pickle.NEWOBJ_EX: Unpickler._load_newobj_ex,
    pickle.BUILD: Unpickler._load_build,
    pickle.PUT: Unpickler._load_put,
    pickle.BINPUT: Unpickler._load_binput,
    pickle.LONG_BINPUT: Unpickler._load_long_binput,
    pickle.MEMOIZE: Unpickler._load_memoize,
    pickle.APPEND: Unpickler._load_append,
    pickle.APPENDS: Unpickler._load_appends,
    pickle.SETITEM: Unpickler._load_setitem,
    pickle.SETITEMS: Unpickler._load_setitems,
    pickle.ADDITEMS: Unpickler._load_additems,
    pickle.BINPERSID: Unpickler._load_binpersid,
}
Unpickler.dispatch.update({opcode[0]: handler for opcode, handler in _OVERRIDES.items()})


def load(file: Any, *, encoding: str = "utf-8") -> Any:
    """Reads one pickle, as ``pickle.load`` does."""
    return Unpickler(file, encoding=encoding).load()


def _numpy_objects() -> ModuleType:
    # Imported late: numpy is optional.
    from . import _numpy_objects as module

    return module


def _build_uuid(target: uuid.UUID, state: Any) -> None:
    number = state.get("int") if type(state) is dict else None
    if type(number) is not int or not 0 <= number < 1 << 128:
        raise UnpicklingError("malformed pickle of UUID")
    safe = state.get("is_safe", uuid.SafeUUID.unknown.value)
    object.__setattr__(target, "int", number)
    object.__setattr__(target, "is_safe", uuid.SafeUUID(safe))


def _build_object(target: Any, state: Any) -> None:
    """As pickle does: ``__setstate__``, else the attributes."""
    set_state = getattr(target, "__setstate__", None)
    if set_state is not None:
        set_state(state)
        return
    slots = None
    if type(state) is tuple and len(state) == 2:
        state, slots = state
    if state:
        target.__dict__.update(state)
    for name, value in (slots or {}).items():
        setattr(target, name, value)
