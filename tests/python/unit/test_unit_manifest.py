"""Entries, their plain form, primitive values and the questions about them."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchsnapshot import CorruptSnapshotError, InvalidArgumentError
from torchsnapshot import manifest as m
from torchsnapshot import manifest_utils as u

TENSOR: dict[str, Any] = {
    "type": "Tensor",
    "location": "0/a",
    "serializer": "buffer_protocol",
    "dtype": "torch.float32",
    "shape": [2, 3],
    "replicated": False,
    "byte_range": [8, 32],
}
SHARD = {"offsets": [2, 0], "sizes": [2, 3], "tensor": TENSOR}
PLAIN: list[dict[str, Any]] = [
    TENSOR,
    {**TENSOR, "byte_range": None, "replicated": True},
    {"type": "ChunkedTensor", "dtype": "torch.float32", "shape": [4, 3], "chunks": [SHARD, SHARD], "replicated": True},
    {"type": "ShardedTensor", "shards": [SHARD]},
    {"type": "DTensor", "shards": [SHARD], "mesh": [[0, 1], [2, 3]], "dim_map": [[0], [-1]]},
    {
        "type": "object",
        "location": "0/o",
        "serializer": "torch_save",
        "obj_type": "builtins.tuple",
        "replicated": False,
    },
    {"type": "list"},
    {"type": "dict", "keys": ["a", 1, ""]},
    {"type": "OrderedDict", "keys": []},
    {"type": "int", "serialized_value": "-7", "replicated": False, "readable": None},
    {"type": "float", "serialized_value": "AAAAAAAA8D8=", "replicated": True, "readable": "1.0"},
]
CLASSES = {
    "Tensor": m.TensorEntry,
    "ChunkedTensor": m.ChunkedTensorEntry,
    "ShardedTensor": m.ShardedTensorEntry,
    "DTensor": m.DTensorEntry,
    "object": m.ObjectEntry,
    "list": m.ListEntry,
    "dict": m.DictEntry,
    "OrderedDict": m.OrderedDictEntry,
    "int": m.PrimitiveEntry,
    "float": m.PrimitiveEntry,
}


@pytest.mark.parametrize("plain", PLAIN, ids=lambda p: p["type"])
def test_plain_form_there_and_back(plain: dict[str, Any]) -> None:
    before = copy.deepcopy(plain)
    entry = m.entry_from_dict(plain)
    assert type(entry) is CLASSES[plain["type"]]
    back = m.entry_to_dict(entry)
    assert back == plain == before
    assert list(back) == list(plain)  # the order of the file
    assert back == dataclasses.asdict(entry)
    assert m.entry_from_dict(back) == entry == copy.deepcopy(entry)
    assert CLASSES[plain["type"]].from_yaml_obj(plain) == entry


@pytest.mark.parametrize("plain", PLAIN, ids=lambda p: p["type"])
def test_the_entry_shares_nothing_with_its_plain_form(plain: dict[str, Any]) -> None:
    def spoil(value: Any) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            spoil(item)
        if isinstance(value, list):
            value.clear()

    given_, entry = copy.deepcopy(plain), None
    entry = m.entry_from_dict(given_)
    spoil(given_)
    assert m.entry_to_dict(entry) == plain
    spoil(m.entry_to_dict(entry))
    assert m.entry_to_dict(entry) == plain


def test_metadata_through_the_engine() -> None:
    first = {**SHARD, "offsets": [0, 0]}
    children = {
        "t": TENSOR,
        "c": {
            "type": "ChunkedTensor",
            "dtype": "torch.float32",
            "shape": [4, 3],
            "chunks": [first, SHARD],
            "replicated": True,
        },
        "s": {"type": "ShardedTensor", "shards": [SHARD]},
        "d": {"type": "DTensor", "shards": [first], "mesh": [0, 1, 2], "dim_map": [[0], [-1]]},
        **{plain["type"]: plain for plain in PLAIN if plain["type"] in ("object", "list", "int", "float")},
    }
    manifest: m.Manifest = {"0/a": m.DictEntry(list(children)), "2/b": m.OrderedDictEntry([])}
    manifest |= {f"0/a/{key}": m.entry_from_dict(plain) for key, plain in children.items()}
    metadata = m.SnapshotMetadata("0.1.0", 3, manifest)
    text = metadata.to_yaml()
    assert list(json.loads(text)) == ["version", "world_size", "manifest"]
    assert m.SnapshotMetadata.from_yaml(text) == metadata
    assert m.SnapshotMetadata.from_yaml(text.encode()) == metadata
    with pytest.raises(CorruptSnapshotError):
        m.SnapshotMetadata.from_yaml(text[:-10])


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "unknown type of entry: None"),
    ({"type": "Tensr"}, "unknown type of entry: 'Tensr'"),
    ({"type": ["list"]}, "unknown type"),
    ({"type": "list", "keys": []}, "list entry"),
    ({"type": "dict"}, "dict entry"),
    ({k: v for k, v in TENSOR.items() if k != "dtype"}, "Tensor entry.*dtype"),
    ({**TENSOR, "stride": []}, "Tensor entry.*stride"),
    ({"type": "ShardedTensor", "shards": [{"offsets": [], "sizes": []}]}, "shard entry.*tensor"),
    ({"type": "ShardedTensor", "shards": [{**SHARD, "tensor": {"type": "list"}}]}, "holds a Tensor entry, not 'list'"),
    ({"type": "ChunkedTensor", "dtype": "d", "shape": None, "chunks": [], "replicated": False}, "ChunkedTensor entry"),
]


@pytest.mark.parametrize(("plain", "message"), BAD)
def test_what_is_no_entry(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        m.entry_from_dict(plain)


def test_from_yaml_obj_wants_its_own_class() -> None:
    with pytest.raises(InvalidArgumentError, match="no TensorEntry"):
        m.TensorEntry.from_yaml_obj({"type": "list"})
    without = {key: value for key, value in TENSOR.items() if key != "type"}
    assert m.TensorEntry.from_yaml_obj(without) == m.entry_from_dict(TENSOR)
    assert m.Shard.from_yaml_obj(SHARD).tensor.byte_range_tuple == (8, 32)


def test_constructors_of_the_original() -> None:
    tensor = m.TensorEntry(location="l", serializer="s", dtype="d", shape=[1], replicated=True)
    assert (tensor.type, tensor.byte_range, tensor.byte_range_tuple) == ("Tensor", None, None)
    sharded = m.ShardedTensorEntry(shards=[m.Shard([0, 4], [4, 4], tensor), m.Shard([4, 0], [2, 4], tensor)])
    assert sharded.get_tensor_shape() == [6, 8]
    with pytest.raises(InvalidArgumentError):
        m.ShardedTensorEntry([]).get_tensor_shape()
    assert m.PrimitiveEntry("int", "1", False).readable is None


@given(st.one_of(st.integers(), st.text(), st.booleans(), st.binary(), st.floats()))
def test_primitives_come_back(value: Any) -> None:
    entry = m.PrimitiveEntry.from_object(value)
    assert (entry.type, entry.replicated) == (type(value).__name__, False)
    back = entry.get_value()
    assert type(back) is type(value)
    if isinstance(value, float):
        assert struct.pack("<d", back) == struct.pack("<d", value)
        assert entry.readable == str(value)
    else:
        assert back == value
        assert entry.readable is None


def test_doubles_of_any_bits_come_back() -> None:
    rng = random.Random(3)
    for _ in range(500):
        bits = rng.getrandbits(64)
        value = struct.unpack("<d", struct.pack("<Q", bits))[0]
        back = m.PrimitiveEntry.from_object(value).get_value()
        assert struct.pack("<d", back) == struct.pack("<d", value)
    assert math.isnan(m.PrimitiveEntry("float", "AAAAAAAA+H8=", False, "nan").get_value())  # type: ignore[arg-type]


def test_a_huge_int_comes_back() -> None:
    assert m.PrimitiveEntry.from_object(-(7**30000)).get_value() == -(7**30000)


class Number(int):
    pass


@pytest.mark.parametrize("value", [None, 1j, (1,), Number(3), bytearray(b"x")])
def test_other_types_are_no_primitives(value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        m.PrimitiveEntry.from_object(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("int", "x"),
        ("int", "1_0"),
        ("bool", "true"),
        ("bytes", "a"),
        ("bytes", "é"),
        ("bytes", "a b="),
        ("float", "AAAA"),
        ("float", "!"),
    ],
)
def test_malformed_values(kind: str, text: str) -> None:
    with pytest.raises(CorruptSnapshotError, match=f"of a {kind} entry"):
        m.PrimitiveEntry(kind, text, False).get_value()


def test_value_of_an_unknown_type() -> None:
    with pytest.raises(InvalidArgumentError, match="'complex'"):
        m.PrimitiveEntry("complex", "1", False).get_value()


def dtensor(mesh: Any, dim_map: list[list[int]]) -> m.DTensorEntry:
    return m.DTensorEntry([], mesh, dim_map)


MESH_2D = [[0, 1], [2, 3]]
QUESTIONS: list[tuple[m.Entry, set[Callable[[m.Entry], bool]]]] = [
    (m.ListEntry(), {u.is_container_entry}),
    (m.DictEntry([]), {u.is_container_entry, u.is_dict_entry}),
    (m.OrderedDictEntry([]), {u.is_container_entry, u.is_dict_entry}),
    (m.ObjectEntry("l", "s", "t", False), set()),
    (m.ObjectEntry("l", "s", "t", True), {u.is_fully_replicated_entry, u.is_replicated_entry}),
    (m.PrimitiveEntry("int", "1", True), {u.is_fully_replicated_entry, u.is_replicated_entry}),
    (m.ChunkedTensorEntry("d", [], [], True), {u.is_fully_replicated_entry, u.is_replicated_entry}),
    (m.ShardedTensorEntry([]), {u.is_sharded_entry}),
    (dtensor([0, 1], [[-1], [-1]]), {u.is_fully_replicated_entry, u.is_replicated_entry}),
    (dtensor([0, 1], []), {u.is_fully_replicated_entry, u.is_replicated_entry}),
    (dtensor([0, 1], [[0], [-1]]), {u.is_sharded_entry}),
    (dtensor(MESH_2D, [[0], [1]]), {u.is_sharded_entry}),
    (dtensor(MESH_2D, [[0, 1], [-1]]), {u.is_sharded_entry}),
    (dtensor(MESH_2D, [[-1], [1]]), {u.is_sharded_entry, u.is_partially_replicated_entry, u.is_replicated_entry}),
]


@pytest.mark.parametrize(("entry", "true"), QUESTIONS, ids=repr)
def test_questions(entry: m.Entry, true: set[Callable[[m.Entry], bool]]) -> None:
    questions = [
        u.is_container_entry,
        u.is_dict_entry,
        u.is_sharded_entry,
        u.is_fully_replicated_entry,
        u.is_partially_replicated_entry,
        u.is_replicated_entry,
    ]
    assert {question for question in questions if question(entry)} == true
