"""Every kind of leaf that is no tensor: numbers, text, bytes, numpy, standard containers, classes of the user."""

from __future__ import annotations

import collections
import datetime
import decimal
import pathlib
import struct
import uuid
from typing import Any

import numpy as np
import pytest
import torch
from leaf_classes import Color, Level, MyDict, MyInt, MyStr, Pair, Point
from support import assert_same, files_below, raises_clearly, raw_metadata, restored, round_trip
from torchsnapshot import Snapshot, StateDict


def double(pattern: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", pattern))[0]


PRIMITIVES: dict[str, Any] = {
    "zero": 0, "negative": -7, "64 bits": 2**63, "-64 bits": -(2**64) - 1, "huge": 10**4000,
    "huge negative": -(7**2000),
    "true": True, "false": False,
    "pi": 3.141592653589793, "tenth": 0.1, "negative zero": -0.0, "infinity": float("inf"),
    "-infinity": float("-inf"),
    "nan": float("nan"), "negative nan": double(0xFFF8000000000000), "nan payload": double(0x7FF800000000BEEF),
    "subnormal": 5e-324, "largest": 1.7976931348623157e308, "1e16": 1e16, "1e-7": 1e-7,
    "empty text": "", "text": "text", "long text": "x" * 1_000_000, "unicode": "žluťoučký кот 猫", "emoji": "😀👩‍👩‍👧",
    "lone surrogate": "a\ud800b", "reversed surrogates": "\udc00\ud800",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85",
    "line separators": "\u2028\u2029", "quotes": "\"'\\", "nul": "a\0b", "like yaml": "- a: [b, {c: *d}] # !!x",
    "null": "null",
    "digits": "1", "truth": "True", "bom": "\ufeffx", "noncharacter": "\ufffe\uffff", "spaces": "  a  ",
    "newlines": "\r\n\n\r",
    "no bytes": b"", "all bytes": bytes(range(256)), "many bytes": bytes(1_000_000), "one byte": b"\xff",
}  # fmt: skip


class TestPrimitives:
    @pytest.mark.parametrize("name", PRIMITIVES)
    def test_comes_back_and_lies_in_the_metadata(self, name: str, snap: str) -> None:
        value = PRIMITIVES[name]
        assert_same(round_trip(snap, value), value)
        assert raw_metadata(snap)["manifest"]["0/state/v"]["type"] == type(value).__name__

    def test_an_int_beyond_pythons_limit_for_text(self, snap: str) -> None:
        value = 7**20000  # 16,900 digits; str() refuses above 4,300
        assert round_trip(snap, value) == value

    def test_all_at_once(self, snap: str) -> None:
        assert_same(round_trip(snap, dict(PRIMITIVES)), PRIMITIVES)

    def test_a_value_is_not_taken_from_the_target(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(a=1, b="x", c=2.0, d=True)})
        target = StateDict(a="one", b=2, c=None, d=torch.ones(2))
        report = Snapshot(snap).restore({"state": target})
        assert_same(target.data, {"a": 1, "b": "x", "c": 2.0, "d": True})
        assert "state/d" in report.mismatched


CONTAINERS: dict[str, Any] = {
    "empty dict": {}, "empty list": [], "empty ordered": collections.OrderedDict(),
    "nested": {"a": [{"b": [1, [2, [torch.arange(3)]]]}, collections.OrderedDict(z=1, a=[{}])]},
    "order": {"z": 1, "a": 2, "m": 3},
    "ordered": collections.OrderedDict([("z", 1), ("a", torch.ones(2)), ("m", None)]),
    "long list": list(range(25)), "list of lists": [[i] * i for i in range(6)],
    "int keys": {0: "zero", -1: "neg", 10: torch.ones(2), 2**70: 1}, "mixed keys": {0: 1, "1": 2, "x": 3},
    "digits as text": {"0": 1, "10": 2, "01": 3, "-5": 4, "+7": 5, "1_0": 6, "٣": 7, "²": 8},
    "int and superscript": {2: 1, "²": 8}, "int and wide digit": {1: "a", "１": "b"}, "int and minus zero": {0: "a",
    "-0": "b"},
    "odd text keys": {k: i for i, k in enumerate(["", "..", ".", "/", "//", "a/b", "%", "%2F", "%25", "%2f",
    "a%2Fb", "../../x", "~", "\\", "*", "\n", "\0", " "])},
    "unicode keys": {"ключ": 1, "猫": torch.ones(1), "😀": 2, "é": 3, "e\u0301": 4, "\u2028": 5, "\x85": 6},
    "surrogate keys": {"\ud800": 1, "a\udfff": torch.ones(1), "%\udc80/": 3},
    "long key": {"k" * 4096: torch.ones(2), "/" * 4096: 1, "é" * 2048: (1,)},
    "keys like types": {"keys": 1, "type": "dict", "manifest": {"version": 1}, "null": None, "True": 1},
}  # fmt: skip

ONE_LEAF: dict[str, Any] = {
    "bool key": {True: 1}, "bool and int keys": {True: 1, 0: 2}, "float key": {0.5: 1},
    "tuple key": {(1, 2): torch.ones(2)},
    "none key": {None: 1}, "bytes key": {b"a": 1}, "1 beside '1'": {1: "a", "1": "b"}, "1 beside '01'": {1: "a",
    "01": "b"},
    "1 beside '+1'": {1: "a", "+1": "b"}, "0 beside '-0'": {0: "a", "-0": "b"},
    "ordered with bool": collections.OrderedDict([(True, 1), ("x", 2)]),
    "numpy int key": {np.int64(3): 1},
    "tuple": (1, (2.5, None), "x", [torch.arange(3)], {"k": {1, 2}}), "empty tuple": (),
    "tuple of tensors": (torch.ones(2), torch.zeros(3)),
    "none": None, "complex": 1 - 2j, "complex nan": complex(float("nan"), -0.0), "set": {1, "a", None},
    "frozenset": frozenset({1, 2}),
    "empty set": set(), "deque": collections.deque([1, torch.ones(2)], maxlen=5),
    "counter": collections.Counter("abca"),
    "defaultdict list": collections.defaultdict(list, {"a": [1]}),
    "defaultdict int": collections.defaultdict(int, {1: 2}),
    "defaultdict none": collections.defaultdict(None, {"a": 1}),
    "defaultdict dict": collections.defaultdict(dict, a={}),
    "datetime": datetime.datetime(2024, 6, 1, 12, 30, 15, 999999), "date": datetime.date(2024, 2, 29),
    "time": datetime.time(23, 59),
    "timedelta": datetime.timedelta(days=-1, microseconds=5), "utc": datetime.timezone.utc,
    "aware": datetime.datetime(2024, 6, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=45))),
    "decimal": decimal.Decimal("1.2300"), "decimal nan": decimal.Decimal("Infinity"),
    "uuid": uuid.UUID(int=2**127 + 5),
    "path": pathlib.Path("/a/../b"), "pure path": pathlib.PurePosixPath("x/y"),
    "windows path": pathlib.PureWindowsPath("c:\\x"),
    "range": range(5, -7, -3), "slice": slice(1, None, 2), "size": torch.Size([1, 0, 3]), "dtype": torch.bfloat16,
    "device": torch.device("cpu"), "cuda device": torch.device("cuda", 3), "bytearray": bytearray(b"abc"),
    "deep mix": ({"a": [frozenset({(1, 2)}), range(3)]}, collections.deque([np.float32(1)]), (np.arange(3),
    torch.ones(1))),
}  # fmt: skip


class TestContainers:
    @pytest.mark.parametrize("name", CONTAINERS)
    def test_comes_back_with_exact_keys_and_order(self, name: str, snap: str) -> None:
        assert_same(round_trip(snap, CONTAINERS[name]), CONTAINERS[name])

    @pytest.mark.parametrize("name", CONTAINERS)
    def test_as_the_state_itself_and_in_place(self, name: str, snap: str) -> None:
        value = CONTAINERS[name]
        if not isinstance(value, dict):
            pytest.skip("no dict")
        Snapshot.take(snap, {"state": StateDict(dict(value))})
        assert_same(restored(snap), dict(value))
        target = StateDict(dict(value))
        Snapshot(snap).restore({"state": target})
        assert_same(target.data, dict(value))

    @pytest.mark.parametrize("name", ["empty dict", "nested", "odd text keys", "int keys", "ordered", "digits as text"])
    def test_is_taken_apart(self, name: str, snap: str) -> None:
        round_trip(snap, CONTAINERS[name])
        entry = raw_metadata(snap)["manifest"]["0/state/v"]
        assert entry["type"] == type(CONTAINERS[name]).__name__
        assert entry["keys"] == list(CONTAINERS[name])

    @pytest.mark.parametrize("name", ONE_LEAF)
    def test_one_leaf_comes_back_without_any_opt_in(self, name: str, snap: str) -> None:
        value = ONE_LEAF[name]
        assert_same(round_trip(snap, value), value)
        manifest = raw_metadata(snap)["manifest"]
        assert set(manifest) == {"0/state", "0/state/v"}
        assert (manifest["0/state/v"]["type"], manifest["0/state/v"]["serializer"]) == ("object", "torch_save")

    def test_all_leaves_at_once_in_a_list(self, snap: str) -> None:
        assert_same(round_trip(snap, list(ONE_LEAF.values())), list(ONE_LEAF.values()))

    def test_deep_nesting(self, snap: str) -> None:
        value: Any = torch.ones(1)
        for i in range(200):
            value = [value] if i % 2 else {"k": value}
        assert_same(round_trip(snap, value), value)

    def test_nesting_too_deep_is_an_error_or_works(self, snap: str) -> None:
        value: Any = 1
        for _ in range(20_000):
            value = [value]
        with raises_clearly("deep|nest|recursion", kind=(RecursionError, RuntimeError, ValueError)):
            Snapshot.take(snap, {"state": StateDict(v=value)})
        assert files_below(snap) == {}

    def test_a_container_in_itself_is_an_error(self, snap: str) -> None:
        loop: list[Any] = [1]
        loop.append({"again": loop})
        with raises_clearly(kind=(RecursionError, RuntimeError, ValueError)):
            Snapshot.take(snap, {"state": StateDict(v=loop)})
        assert files_below(snap) == {}

    def test_ten_thousand_entries(self, snap: str) -> None:
        state = {f"k{i}": torch.tensor([i]) if i % 3 else i for i in range(10_000)}
        assert_same(round_trip(snap, state), state)


NUMPY_ARRAYS: dict[str, Any] = {
    str(np.dtype(d)): np.arange(6).astype(d).reshape(2, 3)
    for d in ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">f4", ">i8",
    "U5", "S3", "M8[s]", "m8[ms]"]
} | {
    "scalar array": np.array(1.5), "empty": np.zeros((0, 3)),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20.0)[::3], "nan": np.array([np.nan, -0.0, np.inf]),
    "structured": np.array([(1, 2.5, "ab"), (3, 4.5, "c")], dtype=[("i", "i4"), ("f", "f8"), ("s", "U2")]),
}  # fmt: skip
NUMPY_SCALARS = [
    np.float32(1.5), np.float64(0.1), np.float16(2), np.int8(-1), np.int64(2**62), np.uint64(2**64 - 1), np.bool_(True),
    np.complex64(1 + 2j), np.str_("text"), np.bytes_(b"ab"), np.datetime64("2024-06-01"), np.timedelta64(5, "s"),
    np.float64("nan"),
]  # fmt: skip


class TestNumpy:
    @pytest.mark.parametrize("name", NUMPY_ARRAYS)
    def test_arrays(self, name: str, snap: str) -> None:
        array = NUMPY_ARRAYS[name]
        back = round_trip(snap, array)
        assert type(back) is np.ndarray
        assert_same(back, array)
        assert back.flags.writeable

    @pytest.mark.parametrize("scalar", NUMPY_SCALARS, ids=lambda s: f"{type(s).__name__}-{s}")
    def test_scalars_keep_their_type(self, scalar: Any, snap: str) -> None:
        assert_same(round_trip(snap, scalar), scalar)

    @pytest.mark.parametrize("text", ["float32", "?", ">i4", "U7", "M8[ns]", "i4,f8"])
    def test_dtypes(self, text: str, snap: str) -> None:
        back = round_trip(snap, np.dtype(text))
        assert isinstance(back, np.dtype)
        assert back == np.dtype(text)

    def test_inside_other_objects(self, snap: str) -> None:
        value = (np.arange(3), {"k": (np.float32(1),)}, [np.dtype("f4")], {(1,): np.bool_(False)})
        assert_same(round_trip(snap, value), value)


CUSTOM: dict[str, tuple[Any, type]] = {
    "dataclass": (Point(1, 2.5), Point),
    "enum": (Level.LOW, Level),
    "int enum": (Color.BLUE, Color),
    "int enum key": ({Color.RED: 1}, Color),
    "subclass of int": (MyInt(5), MyInt),
    "subclass of str": (MyStr("x"), MyStr),
    "key of a str subclass": ({MyStr("x"): 1}, MyStr),
    "subclass of dict": (MyDict(a=1), MyDict),
    "named tuple": (Pair(1, torch.ones(2)), Pair),
    "in a tuple": ((1, [Point(1, 2.0)]), Point),
}


class TestCustomClasses:
    @pytest.mark.parametrize("name", CUSTOM)
    def test_refused_with_entry_class_and_remedy(self, name: str, snap: str) -> None:
        value, cls = CUSTOM[name]
        Snapshot.take(snap, {"state": StateDict(deep={"odd/key": [value]})})
        target = StateDict(deep="as it was")
        with raises_clearly("state/deep/odd%2Fkey/0", cls.__name__, "add_safe_globals", "weights_only"):
            Snapshot(snap).restore({"state": target})
        assert target.data == {"deep": "as it was"}

    @pytest.mark.parametrize("name", CUSTOM)
    def test_allowed_by_torchs_list(self, name: str, snap: str) -> None:
        value, cls = CUSTOM[name]
        with torch.serialization.safe_globals([cls]):
            back = round_trip(snap, value)
        assert_same(back, value)

    @pytest.mark.parametrize("name", CUSTOM)
    def test_allowed_by_the_option_of_restore(self, name: str, snap: str) -> None:
        value, _ = CUSTOM[name]
        back = round_trip(snap, value, weights_only=False)
        assert_same(back, value)

    def test_read_object_refuses_and_allows_too(self, snap: str) -> None:
        snapshot = Snapshot.take(snap, {"state": StateDict(p=Point(1, 2.0))})
        with raises_clearly("state/p", "Point", "add_safe_globals"):
            snapshot.read_object("0/state/p")
        with torch.serialization.safe_globals([Point]):
            assert snapshot.read_object("0/state/p") == Point(1, 2.0)
        assert snapshot.read_object("0/state/p", weights_only=False) == Point(1, 2.0)

    def test_reading_others_needs_no_permission_for_it(self, snap: str) -> None:
        snapshot = Snapshot.take(snap, {"state": StateDict(p=Point(1, 2.0), t=torch.ones(2)), "ok": StateDict(a=(1,))})
        assert_same(snapshot.read_object("0/state/t"), torch.ones(2))
        assert restored(snap, "ok") == {"a": (1,)}

    def test_nothing_of_a_pickle_runs_by_default(self, snap: str, tmp_path: pathlib.Path) -> None:
        flag = tmp_path / "executed"
        Snapshot.take(snap, {"state": StateDict(v=Payload(str(flag)))})
        flag.unlink(missing_ok=True)
        with raises_clearly("state/v"):
            restored(snap)
        assert not flag.exists()

    @pytest.mark.parametrize("value", [lambda: 1, open, (i for i in ())], ids=["lambda", "builtin", "generator"])
    def test_what_cannot_be_stored_is_an_error_that_names_it(self, value: Any, snap: str) -> None:
        if value is open:
            Snapshot.take(snap, {"state": StateDict(v=value)})
            with raises_clearly("state/v", "open"):
                restored(snap)
            return
        with raises_clearly("state/v", kind=Exception):  # type: ignore[arg-type]
            Snapshot.take(snap, {"state": StateDict(good=torch.ones(2), v=value)})
        assert files_below(snap) == {}


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (pathlib.Path.touch, (pathlib.Path(self.path),))
