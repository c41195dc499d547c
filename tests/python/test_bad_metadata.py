"""Metadata and data objects that lie: truncated, malformed, hostile. Each is a clear error,
before anything is touched."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pathlib
import time
from typing import Any

import pytest
import torch
from support import METADATA, assert_same, data_files, files_below, raises_clearly, tensor_entry, write_snapshot
from torchsnapshot import Snapshot, StateDict
from torchsnapshot.knobs import override_is_batching_disabled

GOOD = torch.arange(8.0)


def manifest(bad: dict[str, Any], key: str = "bad") -> dict[str, Any]:
    """A good tensor, and beside it an entry to be refused."""
    return {
        "0/state": {"type": "dict", "keys": ["good", key]},
        "0/state/good": tensor_entry("data/good", "torch.float32", [8], [0, 32]),
        f"0/state/{key}": bad,
    }


FILES = {"data/good": GOOD.numpy().tobytes(), "data/x": bytes(range(64))}


def refused(path: str, *needles: str, target: Any = None) -> None:
    """Restoring raises, says why, and changes nothing; nothing on disk changes either."""
    good = torch.full((8,), -1.0)
    bad = torch.full((4,), -1.0) if target is None else target
    state = StateDict(good=good, bad=bad)
    before, disk = copy.deepcopy(state.data), files_below(pathlib.Path(path).parent)
    with raises_clearly(*needles, kind=(RuntimeError, ValueError, OSError)):
        Snapshot(path).restore({"state": state})
    assert_same(state.data, before)
    assert state["good"] is good
    assert files_below(pathlib.Path(path).parent) == disk


def broken(entry: dict[str, Any], **changes: Any) -> dict[str, Any]:
    entry = {**entry, **changes}
    return {k: v for k, v in entry.items() if v is not ...}


TENSOR = tensor_entry("data/x", "torch.float32", [4], [0, 16])
OBJECT = {"type": "object", "location": "data/x", "serializer": "torch_save", "obj_type": "tuple", "replicated": False}
INT = {"type": "int", "serialized_value": "5", "readable": None, "replicated": False}


def chunked(*chunks: dict[str, Any], shape: list[int]) -> dict[str, Any]:
    return {
        "type": "ChunkedTensor",
        "dtype": "torch.float32",
        "shape": shape,
        "chunks": list(chunks),
        "replicated": False,
    }


def piece(offset: int, size: int, begin: int | None = None, **changes: Any) -> dict[str, Any]:
    begin = offset * 4 if begin is None else begin
    tensor = tensor_entry("data/x", "torch.float32", [size], [begin, begin + size * 4])
    return {"offsets": [offset], "sizes": [size], "tensor": {**tensor, **changes}}


BAD_ENTRIES: dict[str, dict[str, Any]] = {
    "negative size": broken(TENSOR, shape=[-4]),
    "negative and positive": broken(TENSOR, shape=[-2, -2]),
    "size overflows": broken(TENSOR, shape=[2**62, 4]),
    "product overflows": broken(TENSOR, shape=[2**32, 2**32, 2**32]),
    "bytes overflow": broken(TENSOR, shape=[2**62]),
    "size beyond 64 bits": broken(TENSOR, shape=[2**70]),
    "huge with a zero": broken(TENSOR, shape=[2**62, 2**62, 0], byte_range=[0, 16]),
    "absurd size": broken(TENSOR, shape=[2**45], byte_range=[0, 2**47]),
    "absurd size, whole object": broken(TENSOR, shape=[2**45], byte_range=None),
    "size is text": broken(TENSOR, shape=["4"]),
    "size is a fraction": broken(TENSOR, shape=[4.5]),
    "size is true": broken(TENSOR, shape=[True]),
    "shape is no list": broken(TENSOR, shape=4),
    "shape is null": broken(TENSOR, shape=None),
    "a million dimensions": broken(TENSOR, shape=[1] * 1_000_000),
    "shape and range disagree": broken(TENSOR, byte_range=[0, 12]),
    "range longer than shape": broken(TENSOR, byte_range=[0, 20]),
    "range past the object": broken(TENSOR, byte_range=[56, 72]),
    "range far past the object": broken(TENSOR, byte_range=[2**40, 2**40 + 16]),
    "range beyond 63 bits": broken(TENSOR, byte_range=[2**63 - 8, 2**63 + 8]),
    "range beyond 64 bits": broken(TENSOR, byte_range=[2**64, 2**64 + 16]),
    "negative range": broken(TENSOR, byte_range=[-16, 0]),
    "reversed range": broken(TENSOR, byte_range=[16, 0]),
    "half a range": broken(TENSOR, byte_range=[0]),
    "three in a range": broken(TENSOR, byte_range=[0, 16, 32]),
    "range of text": broken(TENSOR, byte_range=["0", "16"]),
    "range of fractions": broken(TENSOR, byte_range=[0.0, 16.0]),
    "range is a number": broken(TENSOR, byte_range=16),
    "whole object of another size": broken(TENSOR, byte_range=None),
    "location above": broken(TENSOR, location="../x"),
    "location above, deeper": broken(TENSOR, location="data/../../x"),
    "absolute location": broken(TENSOR, location="/etc/passwd"),
    "empty location": broken(TENSOR, location=""),
    "location with a nul": broken(TENSOR, location="data/x\0y"),
    "location is a folder": broken(TENSOR, location="data"),
    "location is the root": broken(TENSOR, location="."),
    "location is null": broken(TENSOR, location=None),
    "location is a number": broken(TENSOR, location=5),
    "very long location": broken(TENSOR, location="x" * 100_000),
    "missing object": broken(TENSOR, location="data/missing"),
    "object above": broken(OBJECT, location="../../secret"),
    "object absolute": broken(OBJECT, location="/etc/passwd"),
    "object missing": broken(OBJECT, location="data/missing"),
    "object of garbage": OBJECT,
    "object serializer": broken(OBJECT, serializer="pickle"),
    "unknown dtype": broken(TENSOR, dtype="torch.float33"),
    "dtype is code": broken(TENSOR, dtype="__import__('os').system('true')"),
    "dtype is null": broken(TENSOR, dtype=None),
    "unknown serializer": broken(TENSOR, serializer="marshal"),
    "no serializer": broken(TENSOR, serializer=...),
    "no location": broken(TENSOR, location=...),
    "no shape": broken(TENSOR, shape=...),
    "no dtype": broken(TENSOR, dtype=...),
    "replicated is text": broken(TENSOR, replicated="no"),
    "unknown type": broken(TENSOR, type="Tensr"),
    "type is null": broken(TENSOR, type=None),
    "no type": broken(TENSOR, type=...),
    "torch_save garbage": broken(TENSOR, serializer="torch_save", byte_range=None),
    "quantized too short": broken(TENSOR, serializer="per_tensor_qtensor", dtype="torch.qint8"),
    "quantized axis": broken(TENSOR, serializer="per_channel_qtensor", dtype="torch.qint8", byte_range=None),
    "quantized float": broken(TENSOR, serializer="per_tensor_qtensor", byte_range=[0, 32]),
    "int is text": broken(INT, serialized_value="five"),
    "int is empty": broken(INT, serialized_value=""),
    "int with a space": broken(INT, serialized_value="5 6"),
    "int is no text": broken(INT, serialized_value=5),
    "bool is other": broken(INT, type="bool", serialized_value="yes"),
    "float is short": broken(INT, type="float", serialized_value="AAAA"),
    "float is no base64": broken(INT, type="float", serialized_value="!!!!"),
    "bytes are no base64": broken(INT, type="bytes", serialized_value="a"),
    "no value": broken(INT, serialized_value=...),
    "keys are no list": {"type": "dict", "keys": "ab"},
    "keys are null": {"type": "dict", "keys": None},
    "key is a fraction": {"type": "dict", "keys": [1.5]},
    "key is a list": {"type": "dict", "keys": [["a"]]},
    "key twice": {"type": "dict", "keys": ["a", "a"]},
    "key without an entry": {"type": "dict", "keys": ["nobody"]},
    "chunks missing": broken(chunked(shape=[4]), chunks=...),
    "chunks are a dict": broken(chunked(shape=[4]), chunks={}),
    "no chunks": chunked(shape=[4]),
    "hole between chunks": chunked(piece(0, 1), piece(2, 2), shape=[4]),
    "chunk beyond the tensor": chunked(piece(0, 4), piece(4, 4), shape=[4]),
    "negative offset": chunked({**piece(0, 4), "offsets": [-1]}, shape=[4]),
    "offset overflows": chunked({**piece(0, 4), "offsets": [2**63 - 1]}, shape=[4]),
    "offsets of two dimensions": chunked({**piece(0, 4), "offsets": [0, 0]}, shape=[4]),
    "sizes are not the tensor's": chunked({**piece(0, 4), "sizes": [2]}, shape=[4]),
    "chunk of another dtype": chunked(piece(0, 4, dtype="torch.int32"), shape=[4]),
    "chunk without a tensor": chunked({"offsets": [0], "sizes": [4]}, shape=[4]),
    "chunk past the object": chunked(piece(0, 2), piece(2, 2, begin=60), shape=[4]),
    "chunk above": chunked(piece(0, 4, location="../x"), shape=[4]),
    "sharded, no shards": {"type": "ShardedTensor"},
    "sharded, hole": {"type": "ShardedTensor", "shards": [piece(0, 1), piece(2, 2)]},
    "dtensor, no mesh": {"type": "DTensor", "shards": [piece(0, 4)]},
    "dtensor, mesh of text": {"type": "DTensor", "shards": [piece(0, 4)], "mesh": ["0"], "dim_map": [[0]]},
    "dtensor, dim_map of no list": {"type": "DTensor", "shards": [piece(0, 4)], "mesh": [0], "dim_map": 5},
    "entry is null": None,  # type: ignore[dict-item]
    "entry is a list": [],  # type: ignore[dict-item]
    "entry is text": "Tensor",  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
class TestBadEntry:
    def test_is_refused_into_a_tensor(self, name: str, snap: str) -> None:
        write_snapshot(snap, manifest(BAD_ENTRIES[name]), FILES)
        refused(snap, "state/bad")

    def test_is_refused_where_nothing_is(self, name: str, snap: str) -> None:
        write_snapshot(snap, manifest(BAD_ENTRIES[name]), FILES)
        if name in ("sharded, hole",):
            pytest.skip("left out where the target has no such tensor")
        state = StateDict()
        with raises_clearly("state/bad", kind=(RuntimeError, ValueError, OSError)):
            Snapshot(snap).restore({"state": state})
        assert state.data == {}

    def test_is_refused_by_read_object(self, name: str, snap: str) -> None:
        write_snapshot(snap, manifest(BAD_ENTRIES[name]), FILES)
        with raises_clearly("state/bad", kind=(RuntimeError, ValueError, OSError)):
            Snapshot(snap).read_object("0/state/bad")


def test_the_helper_makes_good_snapshots_too(snap: str) -> None:
    for good in (
        TENSOR,
        INT,
        chunked(piece(0, 2), piece(2, 2), shape=[4]),
        {"type": "ShardedTensor", "shards": [piece(0, 4)]},
    ):
        write_snapshot(snap, manifest(good), FILES)
        state = StateDict(bad=torch.zeros(4))
        Snapshot(snap).restore({"state": state})
        assert_same(state["good"], GOOD)
        if good is not INT:
            assert bytes(state["bad"].numpy().tobytes()) == bytes(range(16))


TREES: dict[str, dict[str, Any]] = {
    "no rank": {"state": {"type": "dict", "keys": []}},
    "rank is text": {"x/state": {"type": "dict", "keys": []}},
    "negative rank": {"-1/state": {"type": "dict", "keys": []}},
    "rank beyond the world": {"0/state": {"type": "dict", "keys": []}, "1/state": {"type": "dict", "keys": []}},
    "rank with a zero": {"00/state": {"type": "dict", "keys": []}},
    "huge rank": {f"{2**70}/state": {"type": "dict", "keys": []}},
    "empty path": {"": {"type": "dict", "keys": []}},
    "child of a leaf": {"0/state": {"type": "dict", "keys": ["a"]}, "0/state/a": INT, "0/state/a/b": INT},
    "no parent": {"0/state": {"type": "dict", "keys": []}, "0/state/a/b": INT},
    "list with a hole": {"0/state": {"type": "list"}, "0/state/0": INT, "0/state/2": INT},
    "list with a name": {"0/state": {"type": "list"}, "0/state/first": INT},
    "list with -1": {"0/state": {"type": "list"}, "0/state/-1": INT},
    "list with a huge index": {"0/state": {"type": "list"}, f"0/state/{10**18}": INT},
    "child not in keys": {"0/state": {"type": "dict", "keys": ["a"]}, "0/state/a": INT, "0/state/b": INT},
    "key without a child": {"0/state": {"type": "dict", "keys": ["a", "b"]}, "0/state/a": INT},
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_that_makes_no_sense(name: str, snap: str) -> None:
    write_snapshot(snap, TREES[name])
    state = StateDict(a="as it was")
    # What a state is not made of may pass; everything else is an error.
    if name in ("child not in keys", "rank beyond the world"):
        with contextlib.suppress(RuntimeError):
            Snapshot(snap).restore({"state": state})
        return
    with raises_clearly(kind=(RuntimeError, ValueError)):
        Snapshot(snap).restore({"state": state})
    assert state.data == {"a": "as it was"}


GOOD_TEXT = json.dumps({"version": "0.1.0", "world_size": 1, "manifest": manifest(TENSOR)}, indent=2)


def top(**changes: Any) -> bytes:
    return json.dumps(broken(json.loads(GOOD_TEXT), **changes)).encode()


TEXTS: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"  \n ",
    "null": b"null",
    "number": b"5",
    "text": b'"snapshot"',
    "list": b"[]",
    "empty object": b"{}",
    "no json": b"this is not a manifest",
    "nul bytes": bytes(1000),
    "binary": bytes(range(256)) * 20,
    "not utf-8": GOOD_TEXT.replace("good", "g\udcffod").encode("utf-8", "surrogateescape"),
    "latin-1 byte": GOOD_TEXT.encode().replace(b"good", b"g\xe9od"),
    "utf-16": GOOD_TEXT.encode("utf-16"),
    "garbage after": GOOD_TEXT.encode() + b"x",
    "twice": GOOD_TEXT.encode() * 2,
    "comment": b"// hello\n" + GOOD_TEXT.encode(),
    "no manifest": top(manifest=...),
    "manifest is null": top(manifest=None),
    "manifest is a list": top(manifest=[]),
    "no version": top(version=...),
    "version is a number": top(version=1),
    "no world size": top(world_size=...),
    "world of none": top(world_size=0),
    "negative world": top(world_size=-1),
    "world is text": top(world_size="1"),
    "world is a fraction": top(world_size=1.5),
    "huge world": top(world_size=10**30),
    "the same path twice": GOOD_TEXT.replace('"0/state/bad"', '"0/state/good"').encode(),
    "not a number": GOOD_TEXT.replace('"world_size": 1', '"world_size": NaN').encode(),
    "infinite": GOOD_TEXT.replace("16", "1e999").encode(),
    "yaml bomb": b"version: 0.1.0\nworld_size: 1\nmanifest:\n  a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"  %c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(20)),
    "yaml object": b"version: 0.1.0\nworld_size: 1\nmanifest: !!python/object/apply:os.system ['touch executed']\n",
    "yaml tab": b"version: 0.1.0\n\tworld_size: 1\n",
    "yaml open": b'version: "0.1.0\nworld_size: 1\n',
    "yaml documents": b"---\na: 1\n---\nb: 2\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_metadata_that_is_no_metadata(name: str, snap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(snap, manifest(TENSOR), FILES)
    (pathlib.Path(snap) / METADATA).write_bytes(TEXTS[name])
    monkeypatch.chdir(snap)
    refused(snap, r"\.snapshot_metadata|metadata")
    assert not os.path.exists("executed")
    with raises_clearly():
        Snapshot(snap).get_manifest()


def test_truncated_at_every_length(snap: str) -> None:
    write_snapshot(snap, manifest(TENSOR), FILES)
    whole = GOOD_TEXT.encode()
    for length in [*range(0, len(whole) - 1, 7), len(whole) - 2, len(whole) - 1]:
        (pathlib.Path(snap) / METADATA).write_bytes(whole[:length])
        with pytest.raises(RuntimeError):
            Snapshot(snap).get_manifest()


def test_any_byte_changed_never_crashes(snap: str) -> None:
    write_snapshot(snap, manifest(TENSOR), FILES)
    whole = GOOD_TEXT.encode()
    generator = torch.Generator().manual_seed(1)
    accepted = 0
    for _ in range(600):
        text = bytearray(whole)
        for place in torch.randint(0, len(text), (2,), generator=generator).tolist():
            text[place] = int(torch.randint(0, 256, (1,), generator=generator))
        (pathlib.Path(snap) / METADATA).write_bytes(text)
        state = StateDict(good=torch.full((8,), -1.0), bad=torch.full((4,), -1.0))
        try:
            Snapshot(snap).restore({"state": state})
            accepted += 1
        except (RuntimeError, ValueError, OSError):
            assert_same(state["good"], torch.full((8,), -1.0))
    assert accepted < 200


@pytest.mark.slow
@pytest.mark.no_sanitizer
@pytest.mark.parametrize(
    "opening", [b"[", b'{"a":', b"- ", b"[\n"], ids=["lists", "objects", "yaml lists", "lists by line"]
)
def test_a_hundred_megabytes_of_nesting(opening: bytes, snap: str) -> None:
    os.makedirs(snap)
    (pathlib.Path(snap) / METADATA).write_bytes(opening * (100_000_000 // len(opening)))
    started = time.monotonic()
    with raises_clearly(r"metadata"):
        Snapshot(snap).get_manifest()
    assert time.monotonic() - started < 20
    os.remove(os.path.join(snap, METADATA))


@pytest.mark.parametrize("depth", [600, 5_000, 100_000])
def test_nesting_inside_an_entry(depth: int, snap: str) -> None:
    write_snapshot(snap, {"0/state": {"type": "dict", "keys": ["@"]}})
    place = pathlib.Path(snap) / METADATA
    place.write_text(place.read_text().replace('"@"', "[" * depth + "]" * depth))
    with raises_clearly("metadata"):
        Snapshot(snap).get_manifest()


@pytest.mark.parametrize("depth", [600, 20_000])
def test_a_manifest_of_many_levels(depth: int, snap: str) -> None:
    entries: dict[str, Any] = {"0/state": {"type": "dict", "keys": ["a"]}}
    path = "0/state"
    for _ in range(min(depth, 3000)):
        path += "/a"
        entries[path] = {"type": "dict", "keys": ["a"]}
    entries[f"{path}/a"] = INT
    write_snapshot(snap, entries)
    with raises_clearly():
        Snapshot(snap).restore({"state": StateDict()})


class TestDamagedObjects:
    """A good snapshot whose data objects were cut, emptied, removed or replaced afterwards."""

    @pytest.fixture(params=[True, False], ids=["a file each", "slabs"])
    def taken(self, request: pytest.FixtureRequest, snap: str) -> str:
        state = StateDict(a=torch.arange(1000.0), b=torch.arange(500), c=(1, "two"), q=[torch.ones(3, 4)])
        with override_is_batching_disabled(request.param):
            Snapshot.take(snap, {"state": state})
        return snap

    def check(self, path: str, location: str) -> None:
        state = StateDict(a=torch.full((1000,), -1.0), b=torch.full((500,), -1), c="old", q=[torch.zeros(3, 4)])
        before = copy.deepcopy(state.data)
        manifest = Snapshot(path).get_manifest()
        owners = [p.removeprefix("0/") for p, e in manifest.items() if getattr(e, "location", None) == location]
        assert owners
        with raises_clearly("|".join(owners), location, kind=(RuntimeError, ValueError, OSError)):
            Snapshot(path).restore({"state": state})
        assert_same(state.data, before)

    def test_each_object_missing(self, taken: str) -> None:
        for location in data_files(taken):
            place = pathlib.Path(taken) / location
            content = place.read_bytes()
            place.unlink()
            self.check(taken, location)
            place.write_bytes(content)
        Snapshot(taken).restore({"state": StateDict()})

    @pytest.mark.parametrize("keep", [0.0, 0.5, -1.0])
    def test_each_object_cut(self, taken: str, keep: float) -> None:
        for location in data_files(taken):
            place = pathlib.Path(taken) / location
            content = place.read_bytes()
            place.write_bytes(content[: int(len(content) * keep)] if keep >= 0 else content[:-1])
            self.check(taken, location)
            place.write_bytes(content)

    def test_each_object_replaced_by_a_folder(self, taken: str) -> None:
        for location in data_files(taken):
            place = pathlib.Path(taken) / location
            content = place.read_bytes()
            place.unlink()
            place.mkdir()
            self.check(taken, location)
            place.rmdir()
            place.write_bytes(content)

    def test_a_pickled_object_of_garbage(self, taken: str) -> None:
        location = Snapshot(taken).get_manifest()["0/state/c"].location
        place = pathlib.Path(taken) / location
        place.write_bytes(bytes(255 - b for b in place.read_bytes()))
        state = StateDict(c="old")
        with raises_clearly("state/c"):
            Snapshot(taken).restore({"state": state})
        assert state.data == {"c": "old"}


def test_the_originals_short_bfloat16_is_an_error_that_says_so(snap: str) -> None:
    """Of a bfloat16 tensor with an odd number of elements the original stored all but the last one."""
    write_snapshot(snap, manifest(tensor_entry("data/b", "torch.bfloat16", [5], None)), {**FILES, "data/b": bytes(8)})
    refused(snap, "state/bad", "bfloat16", target=torch.full((5,), -1.0, dtype=torch.bfloat16))


def test_a_symbolic_link_of_the_user_is_followed(snap: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "elsewhere").write_bytes(FILES["data/x"])
    write_snapshot(snap, manifest(TENSOR), FILES)
    (pathlib.Path(snap) / "data/x").unlink()
    (pathlib.Path(snap) / "data/x").symlink_to(tmp_path / "elsewhere")
    state = StateDict()
    Snapshot(snap).restore({"state": state})
    assert state["bad"].numpy().tobytes() == bytes(range(16))


@pytest.mark.parametrize(
    "location", ["data/./x", "./data/x", "data/../data/x", "data//x", "a b/ü", "a%2Fb", ".hidden/x"]
)
def test_any_location_inside_is_accepted(location: str, snap: str) -> None:
    write_snapshot(snap, manifest(broken(TENSOR, location=location)), {**FILES, location: bytes(range(64))})
    state = StateDict()
    Snapshot(snap).restore({"state": state})
    assert state["bad"].numpy().tobytes() == bytes(range(16))


@pytest.mark.parametrize("begin", [0, 1, 3, 13, 48])
@pytest.mark.parametrize("dtype", ["torch.float32", "torch.int32"])
def test_ranges_at_any_offset(begin: int, dtype: str, snap: str) -> None:
    write_snapshot(snap, manifest(broken(TENSOR, dtype=dtype, byte_range=[begin, begin + 16])), FILES)
    for target in (StateDict(), StateDict(bad=torch.zeros(4, dtype=getattr(torch, dtype[6:])))):
        Snapshot(snap).restore({"state": target})
        assert target["bad"].numpy().tobytes() == bytes(range(begin, begin + 16))
