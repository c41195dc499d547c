"""Hostile archives: what they want never happens, and the error says which entry it was."""

from __future__ import annotations

import collections
import io
import os
import pathlib
import pickle
import struct
import uuid
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from torchsnapshot import CorruptSnapshotError, ObjectNotAllowedError
from torchsnapshot._restricted_unpickler import GlobalNotAllowedError, Unpickler
from torchsnapshot.serialization import loads

MARK, STOP, REDUCE, BUILD = pickle.MARK, pickle.STOP, pickle.REDUCE, pickle.BUILD


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def plain(value: Any) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def call(function: bytes, *args: bytes) -> bytes:
    return function + MARK + b"".join(args) + pickle.TUPLE + REDUCE


def archive(opcodes: bytes, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr("archive/data.pkl", pickle.PROTO + bytes([protocol]) + opcodes + STOP)
        target.writestr("archive/version", "3\n")
        target.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def restricted(opcodes: bytes) -> Any:
    return Unpickler(io.BytesIO(pickle.PROTO + b"\x04" + opcodes + STOP)).load()


RECONSTRUCT = name("numpy._core.multiarray", "_reconstruct")
SCALAR = name("numpy._core.multiarray", "scalar")
NDARRAY, DTYPE = name("numpy", "ndarray"), name("numpy", "dtype")
RANGE = call(name("builtins", "range"), plain(10**12))
TENSOR_CLASS = name("torch", "Tensor")
REBUILD = name("torch._tensor", "_rebuild_from_type_v2")


def dtype(text: str, state: bytes | None = None) -> bytes:
    return call(DTYPE, plain(text), plain(False), plain(True)) + (b"" if state is None else state + BUILD)


def tuple_of(*items: bytes) -> bytes:
    return MARK + b"".join(items) + pickle.TUPLE


def array(state: bytes) -> bytes:
    return call(RECONSTRUCT, NDARRAY, plain((0,)), plain(b"b").replace(b"c_codecs", b"c_codecs")) + state + BUILD


def array_state(shape: bytes, dtype_: bytes, content: bytes) -> bytes:
    return tuple_of(plain(1), shape, dtype_, plain(False), content)


INT8 = dtype("i1", plain((3, "|", None, None, None, -1, -1, 0)))
OBJECT = dtype("O8", plain((3, "|", None, None, None, -1, -1, 63)))


def fields(offset: int, itemsize: int, field_dtype: bytes = OBJECT) -> bytes:
    """A structured dtype whose field lies anywhere."""
    field = pickle.EMPTY_DICT + plain("a") + tuple_of(field_dtype, plain(offset)) + pickle.SETITEM
    none = pickle.NONE
    return dtype(
        f"V{itemsize}", tuple_of(plain(3), plain("|"), none, plain(("a",)), field, plain(itemsize), plain(1), plain(63))
    )


FORBIDDEN_NAMES = {
    "os.system": name("posix", "system"),
    "eval": name("builtins", "eval"),
    "exec by its old name": name("__builtin__", "exec"),
    "getattr": name("builtins", "getattr"),
    "type": name("builtins", "type"),
    "importlib": name("importlib", "import_module"),
    "subprocess": name("subprocess", "Popen"),
    "an attribute of something allowed": name("torch", "Tensor.__init__"),
    "by STACK_GLOBAL": plain("torch.serialization") + plain("load") + pickle.STACK_GLOBAL,
    "dotted STACK_GLOBAL": plain("collections") + plain("deque.__class__") + pickle.STACK_GLOBAL,
    "numpy's own loader": name("numpy", "load"),
    "numpy's test code": name("numpy.testing._private.utils", "runstring"),
    "torch hub": name("torch.hub", "load"),
    "torch.jit": name("torch.jit", "load"),
    "our own checks": name("torchsnapshot._allowed_globals", "_deque"),
    "operator": name("operator", "attrgetter"),
    "functools": name("functools", "partial"),
}


@pytest.mark.parametrize("what", FORBIDDEN_NAMES)
def test_names_that_are_not_allowed(what: str) -> None:
    with pytest.raises(ObjectNotAllowedError, match="entry '0/x': the object needs"):
        loads(archive(FORBIDDEN_NAMES[what]), "0/x")
    with pytest.raises(GlobalNotAllowedError):
        restricted(FORBIDDEN_NAMES[what])


MALFORMED = {
    # calls of what may only be named
    "list(range)": call(name("builtins", "list"), RANGE),
    "int(text)": call(name("builtins", "int"), plain("9" * 100)),
    "object()": call(name("builtins", "object")),
    "str(object)": call(name("builtins", "str"), plain(1)),
    "np.ndarray(shape)": call(NDARRAY, plain((10**9,))),
    "torch.Tensor(size)": call(TENSOR_CLASS, plain(10)),
    "a legacy tensor type": call(name("torch", "FloatTensor"), plain(10)),
    "calling an instance": call(call(name("torch", "device"), plain("cpu"))),
    "no tuple of arguments": name("collections", "deque") + plain([1]) + REDUCE,
    # calls that would allocate more than the pickle holds, or take what they should not
    "deque(range)": call(name("collections", "deque"), RANGE),
    "frozenset(range)": call(name("builtins", "frozenset"), RANGE),
    "Counter(range)": call(name("collections", "Counter"), RANGE),
    "OrderedDict(range)": call(name("collections", "OrderedDict"), RANGE),
    "Size(range)": call(name("torch", "Size"), RANGE),
    "bytes(n)": call(name("builtins", "bytes"), plain(10**12)),
    "bytearray(n)": call(name("builtins", "bytearray"), plain(10**12)),
    "encode by zip": call(name("_codecs", "encode"), plain("x"), plain("zlib")),
    "Decimal(range)": call(name("decimal", "Decimal"), RANGE),
    "Path(1)": call(name("pathlib", "PosixPath"), plain(1)),
    "defaultdict(function)": call(name("collections", "defaultdict"), name("_codecs", "encode")),
    "date of nonsense": call(name("datetime", "date"), plain(b"\xff\xff\xff\xff").replace(b"\n_codecs", b"\n_codecs")),
    # tensors
    "subclass by another function": call(
        REBUILD, DTYPE, TENSOR_CLASS, plain(("f8",)), plain((3, "<", None, None, None, -1, -1, 0))
    ),
    "subclass of no tensor class": call(
        REBUILD, name("torch._utils", "_rebuild_tensor_v2"), NDARRAY, plain(()), plain({})
    ),
    "function of no function": call(
        REBUILD, call(name("torch", "device"), plain("cpu")), TENSOR_CLASS, plain(()), plain({})
    ),
    # states for what takes none
    "state of a class": TENSOR_CLASS + tuple_of(pickle.NONE, plain({"__add__": 1})) + BUILD,
    "state of a function": name("torch._utils", "_rebuild_tensor_v2")
    + tuple_of(pickle.NONE, plain({"__defaults__": (1,)}))
    + BUILD,
    "state of a deque": call(name("collections", "deque")) + plain({"x": 1}) + BUILD,
    "state of a list": plain([]) + plain({"x": 1}) + BUILD,
    "attributes for an OrderedDict by slots": call(name("collections", "OrderedDict"))
    + tuple_of(pickle.NONE, plain({"x": 1}))
    + BUILD,
    "malformed UUID": name("uuid", "UUID") + plain(()) + pickle.NEWOBJ + plain({"int": -1}) + BUILD,
    "UUID without a number": name("uuid", "UUID") + plain(()) + pickle.NEWOBJ + plain({"x": 1}) + BUILD,
    # new objects
    "new ndarray": NDARRAY + plain(((10**9,),)) + pickle.NEWOBJ,
    "new range": name("builtins", "range") + plain((5,)) + pickle.NEWOBJ,
    "new list": name("builtins", "list") + plain(()) + pickle.NEWOBJ,
    "new by keywords": name("collections", "deque") + plain(()) + plain({"maxlen": 1}) + pickle.NEWOBJ_EX,
    "new without a tuple": name("uuid", "UUID") + plain([]) + pickle.NEWOBJ,
    # items for the wrong object
    "items for a class": TENSOR_CLASS + plain(1) + pickle.APPEND,
    "items for a bytearray": call(name("builtins", "bytearray")) + MARK + plain(1) + pickle.APPENDS,
    "keys for a class": name("uuid", "UUID") + plain("x") + plain(1) + pickle.SETITEM,
    "keys for a list": plain([0]) + MARK + plain(0) + plain(1) + pickle.SETITEMS,
    "members for a list": plain([]) + MARK + plain(1) + pickle.ADDITEMS,
    # opcodes
    "INST": MARK + pickle.INST + b"collections\ndeque\n",
    "OBJ": MARK + name("collections", "deque") + pickle.OBJ,
    "EXT1": pickle.EXT1 + b"\x01",
    "PERSID": pickle.PERSID + b"0\n",
    "a reference to a module": plain(("module", "x")) + pickle.BINPERSID,
    "a reference by number": plain(7) + pickle.BINPERSID,
    "BYTEARRAY8": pickle.BYTEARRAY8 + struct.pack("<Q", 1 << 40),
    "NEXT_BUFFER": pickle.NEXT_BUFFER,
    "memo that is not there": pickle.BINGET + b"\x63",
    "empty stack": pickle.POP,
    "no opcode": b"\xff",
    "nothing": b"",
    "text that is no UTF-8": pickle.BINUNICODE + struct.pack("<I", 2) + b"\xff\xff",
    "text beyond the end": pickle.BINUNICODE + struct.pack("<I", 1 << 31),
    "unhashable key": plain({}) + plain([]) + plain(1) + pickle.SETITEM,
    # numpy
    "array of a subclass": call(RECONSTRUCT, name("numpy", "float64"), plain((0,)), plain("b")),
    "array of too few bytes": array(array_state(plain((4,)), INT8, plain(b"abc"))),
    "array of too many bytes": array(array_state(plain((2,)), INT8, plain(b"abc"))),
    "array of a negative size": array(array_state(plain((-3, -1)), INT8, plain(b"abc"))),
    "array of a bool size": array(array_state(plain((True,)), INT8, plain(b"a"))),
    "array of a shape that overflows": array(array_state(plain((1 << 62, 1 << 62)), INT8, plain(b"abc"))),
    "empty array of a shape that overflows": array(array_state(plain((1 << 62, 1 << 62, 0)), INT8, plain(b""))),
    "array without a dtype": array(array_state(plain((1,)), plain("i1"), plain(b"a"))),
    "array of objects from bytes": array(array_state(plain((1,)), OBJECT, plain(b"\x10" * 8))),
    "array of too few objects": array(array_state(plain((2,)), OBJECT, plain([1]))),
    "array with a short state": array(plain((1, 2))),
    "scalar of an object from bytes": call(SCALAR, OBJECT, plain(b"\x10" * 8)),
    "scalar of too few bytes": call(SCALAR, dtype("f8", plain((3, "<", None, None, None, -1, -1, 0))), plain(b"1234")),
    "scalar without a dtype": call(SCALAR, plain("f8"), plain(b"12345678")),
    "field beyond the end": fields(64, 16, INT8),
    "field before the beginning": fields(-8, 16, INT8),
    "object beyond the end": fields(16, 16),
    "object that is not aligned and outside": fields(12, 16),
    "text of another size": dtype("U5", plain((3, "<", None, None, None, 4000, 4, 8))),
    "dtype of nonsense": dtype("no such thing"),
    "dtype by a structure": call(DTYPE, plain([("a", "O")]), plain(False), plain(True)),
    "dtype with a short state": dtype("f8", plain((3,))),
    "dtype with a strange order": dtype("f8", plain((3, "!", None, None, None, -1, -1, 0))),
    "date of a strange unit": dtype("M8", plain((4, "<", None, None, None, -1, -1, 0, (None, ("parsec", 1, 1, 1))))),
    "date of no unit": dtype("M8", plain((4, "<", None, None, None, -1, -1, 0, None))),
    "sub-array of no dtype": dtype("V8", plain((3, "|", ("f4", (2,)), None, None, 8, 4, 0))),
    "sub-array of a huge shape": dtype(
        "V8",
        tuple_of(
            plain(3),
            plain("|"),
            tuple_of(INT8, plain((1 << 40,))),
            plain(None),
            plain(None),
            plain(8),
            plain(4),
            plain(0),
        ),
    ),
    "names without fields": dtype("V8", plain((3, "|", None, ("a",), {}, 8, 1, 16))),
}


# torch's own weights-only reader, which comes first, makes these.
MADE_BY_TORCH = {"bytearray(n)", "torch.Tensor(size)", "a legacy tensor type"}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed(what: str) -> None:
    with pytest.raises(pickle.UnpicklingError):
        restricted(MALFORMED[what])
    if what in MADE_BY_TORCH:
        return
    with pytest.raises(CorruptSnapshotError, match="entry '0/x' is corrupt"):
        loads(archive(MALFORMED[what]), "0/x")


def test_the_assembler_can_make_what_is_read() -> None:
    """Else the attacks above might fail for another reason than they should."""
    assert restricted(call(name("collections", "deque"), plain([1, 2]), plain(2))) == collections.deque([1, 2], 2)
    assert restricted(call(name("builtins", "frozenset"), plain([1]))) == frozenset({1})
    assert restricted(array(array_state(plain((3,)), INT8, plain(b"abc")))).tolist() == [97, 98, 99]
    assert restricted(array(array_state(plain((1,)), OBJECT, plain([None])))).tolist() == [None]
    assert restricted(call(SCALAR, INT8, plain(b"a"))) == np.int8(97)
    assert restricted(fields(8, 16)) == np.dtype({"names": ["a"], "formats": ["O"], "offsets": [8], "itemsize": 16})
    assert restricted(name("uuid", "UUID") + plain(()) + pickle.NEWOBJ + plain({"int": 5}) + BUILD) == uuid.UUID(int=5)
    assert restricted(dtype("M8", plain((4, ">", None, None, None, -1, -1, 0, (None, ("ns", 25, 1, 1)))))) == np.dtype(
        ">M8[25ns]"
    )
    assert loads(archive(call(name("builtins", "range"), plain(3)))) == range(3)


def test_nothing_of_torch_or_numpy_was_changed() -> None:
    assert torch.Tensor.__add__ is not None
    assert torch.Tensor.__add__ != 1
    assert torch._utils._rebuild_tensor_v2.__defaults__ != (1,)
    with pytest.raises(pickle.UnpicklingError):
        restricted(NDARRAY + tuple_of(pickle.NONE, plain({"tag": 1})) + BUILD)


@pytest.mark.parametrize("module", ["os", "posix", "sys", "nt"])
def test_some_modules_stay_blocked_whatever_is_allowed(module: str) -> None:
    def harmless() -> None: ...

    with torch.serialization.safe_globals([(harmless, f"{module}.harmless")]), pytest.raises(ObjectNotAllowedError):
        loads(archive(name(module, "harmless") + plain(()) + REDUCE), "0/x")


def test_a_class_that_reduces_to_a_command(tmp_path: pathlib.Path) -> None:
    flag = tmp_path / "ran"

    class Command:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {flag}",)

    buffer = io.BytesIO()
    torch.save((np.arange(2), Command()), buffer)
    with pytest.raises(ObjectNotAllowedError, match=r"posix\.system"):
        loads(buffer.getvalue(), "0/x")
    assert not flag.exists()


def test_a_torchscript_archive_is_not_run() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr("archive/data.pkl", pickle.PROTO + b"\x02" + FORBIDDEN_NAMES["eval"] + STOP)
        target.writestr("archive/constants.pkl", pickle.dumps((), 2))
        target.writestr("archive/version", "3\n")
    with pytest.warns(UserWarning, match="TorchScript"), pytest.raises(CorruptSnapshotError, match="TorchScript"):
        loads(buffer.getvalue(), "0/x")


def test_very_deep_nesting_is_read_or_refused() -> None:
    deep = pickle.EMPTY_LIST * 50_000 + pickle.APPEND * 49_999
    value = loads(archive(call(name("collections", "deque"), deep)), "0/x")
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 49_999
