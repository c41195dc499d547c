"""Objects as torch.save archives: what comes back, what is refused, and with which words."""

from __future__ import annotations

import collections
import contextlib
import datetime
import decimal
import io
import pathlib
import pickle
import random
import subprocess
import sys
import uuid
import warnings
import zipfile
from typing import Any

import numpy as np
import object_classes as oc
import pytest
import torch
from torchsnapshot import CorruptSnapshotError, ObjectNotAllowedError, UnsupportedError
from torchsnapshot.serialization import dumps, loads, type_name
from torchsnapshot.test_utils import check_state_dict_eq

UTC = datetime.timezone.utc
CYCLE: dict[str, Any] = {}
CYCLE["deque"] = collections.deque([1])

PYTHON: dict[str, Any] = {
    "None": None,
    "Ellipsis": ...,
    "one byte": b"a",
    "complex": complex(-0.0, float("nan")),
    "tuple": (1, ("a", None), ()),
    "bytes": (b"", b"\x00\xff" * 50),
    "bytearray": (bytearray(), bytearray(b"\x80a")),
    "big ints": (2**64, -(2**3000), 10**700),
    "text": ("", "é\U0001f600", "\ud800"),
    "set": {1, (2, "x")},
    "empty set": set(),
    "frozenset": frozenset({1, frozenset({2})}),
    "nested": [{(1, 2): {3.5: [None]}}],
    "deque": collections.deque([1, (2,)]),
    "bounded deque": collections.deque([1, 2], maxlen=2),
    "empty deque": collections.deque(),
    "Counter": collections.Counter("abca"),
    "OrderedDict": collections.OrderedDict([((1,), 2), ("b", None)]),
    **{
        f"defaultdict of {f.__name__}": collections.defaultdict(f, {"k": f()})
        for f in (list, dict, set, int, float, str, tuple, bool, bytes, frozenset)
    },
    "defaultdict of none": collections.defaultdict(None, {1: 2}),
    "defaultdict of Counter": collections.defaultdict(collections.Counter),
    "defaultdict of deque": collections.defaultdict(collections.deque, a=collections.deque([1])),
    "date": datetime.date(2024, 2, 29),
    "time": datetime.time(1, 2, 3, 4, tzinfo=UTC),
    "datetime": datetime.datetime(2024, 1, 1, 5, fold=1),
    "aware": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-3), "X")),
    "timedelta": datetime.timedelta(-1, 2, 3),
    "utc": UTC,
    "Decimal": (decimal.Decimal("-1.50"), decimal.Decimal("sNaN123"), decimal.Decimal("Infinity")),
    "UUID": uuid.UUID(int=5),
    "paths": (pathlib.Path("/a/b"), pathlib.Path("c"), pathlib.PurePosixPath("x"), pathlib.PureWindowsPath("C:\\y")),
    "range": (range(3), range(10**18, 0, -7)),
    "slice": (slice(1, None, 2), slice(None)),
    "types": (int, str, torch.Tensor),
}
TORCH: dict[str, Any] = {
    "tensors": (torch.arange(3), torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor(True)),
    "Size": torch.Size([1, 2]),
    "dtypes": (torch.float8_e4m3fn, torch.uint16, torch.complex32, torch.qint8, torch.bool),
    "device": torch.device("cuda", 3),
    "layouts": (torch.strided, torch.sparse_coo, torch.sparse_csr),
    "formats": (torch.contiguous_format, torch.channels_last, torch.preserve_format, torch.channels_last_3d),
    "schemes": (torch.per_tensor_affine, torch.per_channel_affine),
    "parameter": (torch.nn.Parameter(torch.ones(2), requires_grad=False),),
    "coo": (torch.tensor([[0, 0], [1, 2]]).to_sparse(),),
    "uncoalesced": (torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)),),
    "csr": (torch.eye(3).to_sparse_csr(),),
    "csc": (torch.eye(3).to_sparse_csc(),),
    "quantized": (torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),),
    "with odd things beside": {(1,): torch.ones(1), "d": collections.deque([torch.zeros(2)]), "n": np.arange(2)},
}
STRUCTURED = np.dtype(
    {"names": ["x", "y"], "formats": ["i1", "<f8"], "offsets": [0, 8], "titles": ["tx", None], "itemsize": 24}
)
DTYPES = [
    "?",
    "i1",
    "u2",
    "<i4",
    ">i4",
    "i8",
    "u8",
    "f2",
    "f4",
    ">f8",
    "g",
    "c8",
    "c16",
    "G",
    "U5",
    ">U3",
    "S3",
    "V7",
    "O",
    "M8[ns]",
    ">M8[25s]",
    "m8[D]",
    "M8",
    "i4,f8",
    "(2,3)i4",
]


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {
        "0-d": np.array(1.5),
        "empty": np.zeros((0, 3)),
        "fortran": np.asfortranarray(rng.random((3, 4))),
        "strided": np.arange(20.0)[::-3],
        "text": np.array(["é", "", "\U0001f600xx"]),
        "bytes": np.array([b"a", b"\x00b"]),
        "void": np.array([b"ab", b"cd"], dtype="V2"),
        "dates": np.array(["2024-01-01", "NaT"], dtype="M8[D]"),
        "spans": np.array([1, -5], dtype="m8[25ms]"),
        "objects": np.array([None, (1, "x"), {2}, np.float32(3), [torch.ones(1)]], dtype=object),
        "no objects": np.array([], dtype=object),
        "records": np.array([(1, 2.5), (3, -4.5)], dtype=STRUCTURED),
        "aligned": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        "nested": np.zeros(2, [("a", [("b", ">f4", (2, 3)), ("c", "U2")]), ("d", "M8[us]")]),
        "records of objects": np.array([(1, None), (2, [3])], dtype=[("a", "i4"), ("b", "O")]),
    }
    found |= {
        f"of {d}": np.arange(6).astype(d).reshape(2, 3)
        for d in ["?", "i1", ">i2", "u8", "f2", "g", ">c8", "M8[s]", "U7", "S4"]
    }
    if hasattr(np.dtypes, "StringDType"):
        found["StringDType"] = np.array(["abc", "é" * 100], dtype=np.dtypes.StringDType())
    return found


ARRAYS = arrays()
SCALARS = [
    np.float64(0.1),
    np.float32("nan"),
    np.longdouble(1),
    np.float16(2),
    np.int8(-1),
    np.uint64(2**64 - 1),
    np.bool_(True),
    np.complex128(1j),
    np.str_("é"),
    np.str_(""),
    np.bytes_(b"ab"),
    np.bytes_(b""),
    np.datetime64("2024-01-01T00:00:01"),
    np.timedelta64(5, "s"),
    np.void(b"ab"),
    np.zeros(1, STRUCTURED)[0],
    np.array([(1, [2])], dtype=[("a", "i4"), ("b", "O")])[0],
]


def plain_save(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def plain_load(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, NaNs and tensors included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        factories = [getattr(value, "default_factory", None) for value in (a, b)]
        return (
            factories[0] is factories[1]
            and [*map(repr, a)] == [*map(repr, b)]
            and all(map(same, a.values(), b.values()))
        )
    if isinstance(a, (list, tuple, collections.deque)):
        return len(a) == len(b) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return same(a.tolist(), b.tolist()) if a.dtype.hasobject or a.dtype.kind == "T" else a.tobytes() == b.tobytes()
    if isinstance(a, np.void) and a.dtype.names:  # bytes between the fields are no part of a scalar
        return bool(a.dtype == b.dtype and a.tolist() == b.tolist())
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype) and a.tobytes() == b.tobytes()
    if isinstance(a, (float, complex, decimal.Decimal)):
        return repr(a) == repr(b)
    if isinstance(a, torch.Tensor):
        return check_state_dict_eq({"t": a}, {"t": b})
    return bool(a == b)


EVERYTHING = {
    **PYTHON,
    **TORCH,
    **{f"array {name}": array for name, array in ARRAYS.items()},
    **{f"scalar {i} {type(s).__name__}": s for i, s in enumerate(SCALARS)},
    **{f"dtype {text}": np.dtype(text) for text in DTYPES},
    "dtype structured": STRUCTURED,
    "scalar type": np.float32,
}


@pytest.fixture(autouse=True)
def _no_allowed_globals() -> Any:
    before = set(torch.serialization.get_safe_globals())
    yield
    # Parts of torch allow their own classes when they are imported; loads() allows nothing.
    added = set(torch.serialization.get_safe_globals()) - before
    assert not [item for item in added if not str(getattr(item, "__module__", "")).startswith("torch.")]


class TestRoundTrip:
    @pytest.mark.parametrize("name", EVERYTHING)
    def test_ours(self, name: str) -> None:
        assert same(loads(dumps(EVERYTHING[name]), "0/x"), EVERYTHING[name])

    @pytest.mark.parametrize("name", [name for name in EVERYTHING if name not in ("layouts", "formats")])
    def test_as_plain_torch_save_wrote_it(self, name: str) -> None:
        assert same(loads(plain_save(EVERYTHING[name]), "0/x"), EVERYTHING[name])

    @pytest.mark.parametrize("name", EVERYTHING)
    def test_plain_torch_load_reads_ours(self, name: str) -> None:
        for back in (plain_load(dumps(EVERYTHING[name])), loads(dumps(EVERYTHING[name]), "0/x", weights_only=False)):
            if isinstance(back, np.ndarray) and not EVERYTHING[name].dtype.isnative and back.dtype.isnative:
                back = back.astype(EVERYTHING[name].dtype)  # numpy's own unpickling gives the native byte order
            assert same(back, EVERYTHING[name])

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    @pytest.mark.parametrize("name", [name for name in EVERYTHING if name not in ("layouts", "formats")])
    def test_any_protocol(self, name: str, protocol: int) -> None:
        buffer = io.BytesIO()
        torch.save(EVERYTHING[name], buffer, pickle_protocol=protocol)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on the protocol
            assert same(loads(buffer.getvalue(), "0/x"), EVERYTHING[name])

    def test_all_together_and_shared_dtypes(self) -> None:
        dates = [np.datetime64("2024-01-01") + i for i in range(50)]
        big = np.arange(3, dtype=">f8")
        value = [
            EVERYTHING,
            dates,
            [big, big.dtype, np.float64(1), np.arange(2.0), big.dtype],
            [STRUCTURED, ARRAYS["records"]],
        ]
        assert same(loads(dumps(value)), value)

    @pytest.mark.filterwarnings("ignore:TypedStorage")
    def test_random_trees(self) -> None:
        rng = random.Random(11)
        leaves = [value for name, value in EVERYTHING.items() if name not in ("layouts", "formats")]

        def tree(depth: int) -> Any:
            if depth == 0 or rng.random() < 0.3:
                return rng.choice(leaves)
            items = [tree(depth - 1) for _ in range(rng.randrange(4))]
            return rng.choice([list, tuple, collections.deque, lambda i: dict(enumerate(i))])(items)

        for _ in range(150):
            value = tree(4)
            assert same(loads(dumps(value)), value)
            assert same(loads(plain_save((value, np.arange(1)))), (value, np.arange(1)))

    def test_identity_is_kept(self) -> None:
        shared, array, tensor = collections.deque([1]), np.arange(3), torch.arange(3)
        back = loads(dumps([shared, shared, array, array, tensor, tensor[1:]]))
        assert back[0] is back[1]
        assert back[2] is back[3]
        back[4][1] = 9
        assert back[5][0] == 9

    def test_arrays_can_be_written_to(self) -> None:
        for array in loads(dumps(list(ARRAYS.values()))):
            assert array.flags.writeable
            assert array.flags.aligned
        assert loads(dumps(ARRAYS["fortran"])).flags.f_contiguous

    def test_objects_that_contain_themselves(self) -> None:
        loop: collections.deque[Any] = collections.deque([1])
        loop.append(loop)
        back = loads(dumps(loop))
        assert back[1] is back
        table: collections.defaultdict[str, Any] = collections.defaultdict(list)
        table["self"] = table
        back = loads(dumps(table))
        assert back["self"] is back
        objects = np.array([None], dtype=object)
        objects[0] = objects
        back = loads(dumps(objects))
        assert back[0] is back

    def test_a_cuda_tensor_would_come_to_the_cpu(self) -> None:
        with zipfile.ZipFile(io.BytesIO(dumps((torch.ones(2), np.arange(2))))) as source:
            files = {item.filename: source.read(item) for item in source.infolist()}
        pickled = files["archive/data.pkl"].replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
        assert b"cuda:0" in pickled
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            for name, content in {**files, "archive/data.pkl": pickled}.items():
                target.writestr(name, content)
        assert loads(buffer.getvalue())[0].device.type == "cpu"

    def test_buffers_of_any_kind(self) -> None:
        data = dumps((1, 2))
        assert loads(bytearray(data)) == loads(memoryview(data)) == (1, 2)

    def test_weights_only_reader_of_torch_reads_ours_when_told_the_class(self) -> None:
        value = (collections.deque([1]), collections.defaultdict(list, a=[1]))
        with torch.serialization.safe_globals([collections.deque, collections.defaultdict, list]):
            assert torch.load(io.BytesIO(dumps(value)), weights_only=True) == value
            with pytest.raises(pickle.UnpicklingError):  # which is why dumps() is not plain
                torch.load(io.BytesIO(plain_save(value)), weights_only=True)

    @pytest.mark.parametrize(
        "name", ["None", "tuple", "set", "Counter", "OrderedDict", "complex", "one byte", "tensors", "Size", "dtypes"]
    )
    def test_torchs_own_weights_only_reads_ours(self, name: str) -> None:
        assert same(torch.load(io.BytesIO(dumps(EVERYTHING[name])), weights_only=True), EVERYTHING[name])


class TestBytes:
    @pytest.mark.parametrize(
        "name", ["None", "tuple", "deque", "date", "paths", "UUID", "tensors", "formats", "array records"]
    )
    def test_equal_objects_give_equal_bytes(self, name: str) -> None:
        assert dumps(EVERYTHING[name]) == dumps(EVERYTHING[name])

    def test_also_in_another_process(self) -> None:
        code = (
            "import sys, collections, torch; from torchsnapshot.serialization import dumps;"
            "sys.stdout.buffer.write(dumps((None, collections.deque([1.5]), torch.channels_last, torch.ones(2))))"
        )
        run = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
            capture_output=True,
            check=True,
            timeout=120,
        )
        assert run.stdout == dumps((None, collections.deque([1.5]), torch.channels_last, torch.ones(2)))

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            (None, "builtins.NoneType"),
            ((), "builtins.tuple"),
            (oc.Pair(1, 2), "object_classes.Pair"),
            (np.float32(1), "numpy.float32"),
        ],
    )
    def test_type_name(self, value: Any, name: str) -> None:
        assert type_name(value) == name

    def test_what_pickle_cannot_do_is_its_error(self) -> None:
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            dumps(lambda: 1)

    def test_values_beyond_4_gib_take_another_protocol(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchsnapshot import serialization

        def refuse_protocol_2(obj: Any, file: Any, **options: Any) -> None:
            if options["pickle_protocol"] == 2:
                raise OverflowError("cannot serialize a string larger than 4GiB")
            save(obj, file, **options)

        save = torch.save
        monkeypatch.setattr(serialization.torch, "save", refuse_protocol_2)
        data = dumps((np.arange(5), bytearray(b"x"), {1}, frozenset({2}), b"bytes"))
        assert b"\x80\x04" in data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert same(loads(data), (np.arange(5), bytearray(b"x"), {1}, frozenset({2}), b"bytes"))


USERS: dict[str, tuple[Any, list[Any]]] = {
    "dataclass": (oc.Plain(1, (np.arange(2).tolist(), None)), [oc.Plain]),
    "slots": (oc.Slotted(1, [2]), [oc.Slotted]),
    "with a state": (oc.WithState([1]), [oc.WithState]),
    "enum": (oc.Color.RED, [oc.Color]),
    "list": (oc.MyList([1, 2]), [oc.MyList]),
    "dict": (oc.MyDict(a=1, b=2), [oc.MyDict]),
    "named tuple": (oc.Pair(1, (2,)), [oc.Pair]),
    "function": (oc.a_function, [oc.a_function]),
    "with numpy beside": ((oc.Plain(1, 2), np.float32(3), collections.deque([oc.Pair(1, 2)])), [oc.Plain, oc.Pair]),
    "defaultdict of it": (collections.defaultdict(oc.MyList, a=oc.MyList([1])), [oc.MyList]),
}


class TestUsersClasses:
    @pytest.mark.parametrize("name", USERS)
    @pytest.mark.parametrize("save", [dumps, plain_save])
    def test_refused_with_entry_class_and_both_remedies(self, name: str, save: Any) -> None:
        value, classes = USERS[name]
        with pytest.raises(ObjectNotAllowedError) as caught:
            loads(save(value), "0/app/the%2Fentry")
        message = str(caught.value)
        assert "'0/app/the%2Fentry'" in message
        assert any(f"object_classes.{cls.__qualname__}" in message for cls in classes)
        assert any(f"torch.serialization.add_safe_globals([{cls.__qualname__}])" in message for cls in classes)
        assert "weights_only=False" in message

    @pytest.mark.parametrize("name", USERS)
    @pytest.mark.parametrize("save", [dumps, plain_save])
    def test_allowed_by_add_safe_globals(self, name: str, save: Any) -> None:
        value, classes = USERS[name]
        with torch.serialization.safe_globals(classes):
            back = loads(save(value), "0/x")
        assert type(back) is type(value)
        assert back == value

    @pytest.mark.parametrize("name", USERS)
    def test_allowed_by_the_option(self, name: str) -> None:
        assert loads(dumps(USERS[name][0]), "0/x", weights_only=False) == USERS[name][0]

    def test_allowed_under_another_name(self) -> None:
        with torch.serialization.safe_globals([(oc.OtherWithState, "object_classes.WithState")]):
            assert type(loads(dumps((oc.WithState(1), np.arange(1))))[0]) is oc.OtherWithState

    def test_a_class_that_is_not_importable(self) -> None:
        data = dumps(oc.Pair(1, 2)).replace(b"object_classes", b"object_klasses")
        data = repack(unpack(data))
        with pytest.raises(ObjectNotAllowedError, match="object_klasses.Pair"):
            loads(data, "0/x")
        with pytest.raises(UnsupportedError, match="'0/x'.*object_klasses"):
            loads(data, "0/x", weights_only=False)

    def test_forced_weights_only_leaves_no_other_reader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
        assert loads(dumps((1, None))) == (1, None)
        with pytest.raises(ObjectNotAllowedError, match="TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
            loads(dumps(np.arange(2)), "0/x")


def unpack(data: bytes) -> dict[str, bytes]:
    # strict checks of the archive are off: the caller may have changed bytes under their checksums
    zipfile_ = zipfile.ZipFile(io.BytesIO(data))
    files = {}
    for item in zipfile_.infolist():
        item.CRC = None  # type: ignore[assignment]
        with zipfile_.open(item) as file:
            file._expected_crc = None  # type: ignore[attr-defined]
            files[item.filename] = file.read()
    return files


def repack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return buffer.getvalue()


class TestMalformed:
    @pytest.mark.parametrize(
        "data", [b"", b"x", b"PK", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), pickle.dumps((1,)), b"\x80\x02N."]
    )
    @pytest.mark.parametrize("weights_only", [True, False])
    def test_no_archive(self, data: bytes, weights_only: bool) -> None:
        with pytest.raises(CorruptSnapshotError, match="entry '0/x' is corrupt"):
            loads(data, "0/x", weights_only=weights_only)

    @pytest.mark.parametrize(
        "value", [None, (np.arange(50),), (torch.ones(100), collections.deque([1]))], ids=["None", "numpy", "tensor"]
    )
    def test_truncated_anywhere(self, value: Any) -> None:
        data = dumps(value)
        for end in range(0, len(data) - 1, 37):
            with pytest.raises(CorruptSnapshotError, match="'0/x'"):
                loads(data[:end], "0/x")

    def test_flipped_bits_never_give_another_kind_of_error(self) -> None:
        rng = random.Random(5)
        original = unpack(
            dumps(
                (
                    np.arange(8),
                    ARRAYS["records"],
                    ARRAYS["dates"],
                    collections.deque([1]),
                    torch.arange(4),
                    uuid.UUID(int=1),
                )
            )
        )
        outcomes = collections.Counter()
        for _ in range(600):
            pickled = bytearray(original["archive/data.pkl"])
            for _ in range(rng.randint(1, 3)):
                pickled[rng.randrange(len(pickled))] = rng.randrange(256)
            with contextlib.suppress(CorruptSnapshotError, ObjectNotAllowedError):
                outcomes["tried"] += 1
                try:
                    loads(repack({**original, "archive/data.pkl": bytes(pickled)}), "0/x")
                except Exception as error:
                    outcomes[type(error).__name__] += "'0/x'" in str(error)
                    outcomes["errors"] += 1
                    raise
        assert outcomes["errors"] == outcomes["CorruptSnapshotError"] + outcomes["ObjectNotAllowedError"]
        assert outcomes["CorruptSnapshotError"] > 50
        assert outcomes["ObjectNotAllowedError"] > 20

    def test_messages_without_an_entry(self) -> None:
        with pytest.raises(CorruptSnapshotError, match="^object is corrupt"):
            loads(b"no")
