"""What a take leaves on disk: the form of the metadata, the places of the bytes, and nothing outside the folder."""

from __future__ import annotations

import base64
import collections
import itertools
import json
import os
import pathlib
import struct
from typing import Any

import pytest
import torch
from support import (
    METADATA,
    SIDECARS,
    data_files,
    encoded,
    files_below,
    raw_metadata,
    stored_bytes,
    tensor_entries,
)
from torch import nn
from torchsnapshot import RNGState, Snapshot, StateDict
from torchsnapshot.knobs import (
    override_is_batching_disabled,
    override_max_chunk_size_bytes,
    override_slab_size_threshold_bytes,
)

FIELDS = {
    "list": set(),
    "dict": {"keys"},
    "OrderedDict": {"keys"},
    "Tensor": {"location", "serializer", "dtype", "shape", "replicated", "byte_range"},
    "ChunkedTensor": {"dtype", "shape", "chunks", "replicated"},
    "object": {"location", "serializer", "obj_type", "replicated"},
    **{name: {"serialized_value", "readable", "replicated"} for name in ("int", "str", "bool", "bytes", "float")},
}
ITEM_SIZES = {"torch.float32": 4, "torch.int64": 8, "torch.uint8": 1, "torch.bfloat16": 2, "torch.complex64": 8}


def sample() -> dict[str, Any]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 20)).sum().backward()
    optimizer.step()
    tensors = {
        "f": torch.rand(7, 3), "c": torch.rand(5, dtype=torch.complex64), "b": torch.rand(9).bfloat16(),
        "e": torch.empty(0, 2),
        "s": torch.tensor(5), "t": torch.rand(50, 40).t(), "big": torch.rand(3000),
        "tied": [model[0].weight, model[0].weight],
    }  # fmt: skip
    others = {
        "i": 5, "h": -(10**30), "x": 0.1, "n": float("nan"), "y": True, "z": "text\n", "w": b"\0\xff", "none": None,
        "od": collections.OrderedDict(b=1, a=[]), "d": {7: {}, "a/b": [1, (2,)]}, "tuple": (torch.ones(3),),
    }  # fmt: skip
    return {"model": model, "optim": optimizer, "rng": RNGState(), "state": StateDict({**tensors, **others})}


@pytest.fixture(params=["default", "a file each", "small slabs", "chunks"])
def taken(request: pytest.FixtureRequest, snap: str) -> str:
    with (
        override_is_batching_disabled(request.param == "a file each"),
        override_slab_size_threshold_bytes(2000 if request.param == "small slabs" else 128 << 20),
        override_max_chunk_size_bytes(500 if request.param == "chunks" else 512 << 20),
    ):
        Snapshot.take(snap, sample())
    return snap


class TestMetadata:
    def test_is_json_with_exactly_three_fields(self, taken: str) -> None:
        text = (pathlib.Path(taken) / METADATA).read_text(encoding="utf-8")
        metadata = json.loads(text)
        assert list(metadata) == ["version", "world_size", "manifest"]
        assert isinstance(metadata["version"], str)
        assert metadata["world_size"] == 1
        assert text == json.dumps(metadata, indent=2) or text == json.dumps(metadata, indent=2, ensure_ascii=False)

    def test_every_entry_has_exactly_its_fields(self, taken: str) -> None:
        for path, entry in raw_metadata(taken)["manifest"].items():
            assert set(entry) == {"type"} | FIELDS[entry["type"]], path
            assert next(iter(entry)) == "type"
            for piece in entry.get("chunks", []):
                assert set(piece) == {"offsets", "sizes", "tensor"}
                assert set(piece["tensor"]) == {"type"} | FIELDS["Tensor"]
                assert piece["tensor"]["shape"] == piece["sizes"]

    def test_every_parent_is_there_and_lists_its_children(self, taken: str) -> None:
        manifest = raw_metadata(taken)["manifest"]
        for path, entry in manifest.items():
            parent = path.rpartition("/")[0]
            assert parent == "0" or manifest[parent]["type"] in ("list", "dict", "OrderedDict")
            if "keys" in entry:
                children = {p.rpartition("/")[2] for p in manifest if p.rpartition("/")[0] == path}
                assert children == {encoded(k) for k in entry["keys"]}
                assert all(type(k) in (str, int) for k in entry["keys"])

    def test_primitives_in_the_form_of_the_format(self, taken: str) -> None:
        manifest = raw_metadata(taken)["manifest"]
        expected = {
            "i": ("int", "5", None),
            "h": ("int", str(-(10**30)), None),
            "y": ("bool", "True", None),
            "z": ("str", "text\n", None),
            "w": ("bytes", base64.b64encode(b"\0\xff").decode(), None),
            "x": ("float", base64.b64encode(struct.pack("<d", 0.1)).decode(), "0.1"),
            "n": ("float", base64.b64encode(struct.pack("<d", float("nan"))).decode(), "nan"),
        }
        for key, (type_, value, readable) in expected.items():
            entry = manifest[f"0/state/{key}"]
            assert (entry["type"], entry["serialized_value"], entry["readable"]) == (type_, value, readable)
            assert entry["replicated"] is False

    @pytest.mark.parametrize(
        "value",
        [0.1, 1.0, -0.0, 1e16, 1e15, 123456789.123, 1e-7, 1e-4, 1.5e300, 5e-324, float("inf"), float("-inf"),
        2**53 + 0.0]
    )  # fmt: skip
    def test_floats_are_readable_as_python_writes_them(self, value: float, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(v=value)})
        assert raw_metadata(snap)["manifest"]["0/state/v"]["readable"] == str(value)

    def test_objects_name_their_type(self, taken: str) -> None:
        manifest = raw_metadata(taken)["manifest"]
        assert manifest["0/state/none"]["obj_type"] == "builtins.NoneType"
        assert manifest["0/state/tuple"]["obj_type"] == "builtins.tuple"
        value = torch.load(pathlib.Path(taken) / manifest["0/state/tuple"]["location"], weights_only=True)
        assert torch.equal(value[0], torch.ones(3))

    def test_int_keys_stay_numbers(self, taken: str) -> None:
        assert raw_metadata(taken)["manifest"]["0/state/d"]["keys"] == [7, "a/b"]


class TestPlaces:
    def test_every_range_lies_in_its_object_and_has_the_size_of_its_tensor(self, taken: str) -> None:
        sizes = data_files(taken)
        for path, entry in tensor_entries(raw_metadata(taken)["manifest"]):
            begin, end = entry["byte_range"] or (0, sizes[entry["location"]])
            assert 0 <= begin <= end <= sizes[entry["location"]], path
            if entry["serializer"] == "buffer_protocol":
                assert end - begin == torch.Size(entry["shape"]).numel() * ITEM_SIZES[entry["dtype"]], path

    def test_ranges_are_the_same_or_apart(self, taken: str) -> None:
        ranges = collections.defaultdict(set)
        for _, entry in tensor_entries(raw_metadata(taken)["manifest"]):
            begin, end = entry["byte_range"] or (0, data_files(taken)[entry["location"]])
            if end > begin:
                ranges[entry["location"]].add((begin, end))
        for places in ranges.values():
            ordered = sorted(places)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(ordered))

    def test_every_file_is_accounted_for(self, taken: str) -> None:
        manifest = raw_metadata(taken)["manifest"]
        named = {e["location"] for _, e in tensor_entries(manifest)} | {
            e["location"] for e in manifest.values() if e["type"] == "object"
        }
        assert named == set(data_files(taken))
        assert all(not n.startswith(SIDECARS + "/") for n in named)

    def test_little_beyond_the_tensors_is_stored(self, snap: str) -> None:
        state = {f"t{i}": torch.rand(10_000) for i in range(20)}
        Snapshot.take(snap, {"state": StateDict(state)})
        assert sum(data_files(snap).values()) <= 20 * 40_000 * 1.02

    def test_the_bytes_are_little_endian_rows(self, snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(t=torch.tensor([[1, 2], [3, 4]], dtype=torch.int32).t())})
        entry = raw_metadata(snap)["manifest"]["0/state/t"]
        assert stored_bytes(snap, entry) == struct.pack("<4i", 1, 3, 2, 4)

    def test_locations_are_unique_to_a_take(self, tmp_path: pathlib.Path) -> None:
        seen: set[str] = set()
        for i in range(5):
            path = str(tmp_path / ("same" if i < 3 else f"other{i}"))
            with override_is_batching_disabled(i % 2 == 0):
                Snapshot.take(path, sample())
            names = set(data_files(path))
            assert names
            assert not names & seen
            seen |= names

    def test_no_temporary_files_stay(self, taken: str) -> None:
        folders = {str(p.relative_to(taken)) for p in pathlib.Path(taken).rglob("*") if p.is_dir()}
        used = {str(parent) for name in files_below(taken) for parent in pathlib.PurePath(name).parents} - {"."}
        assert folders == used
        assert [n for n in os.listdir(taken) if n.startswith(".") and n not in (METADATA, SIDECARS)] == []

    def test_overwriting_leaves_only_the_new_take(self, snap: str) -> None:
        for _ in range(3):
            Snapshot.take(snap, sample())
            self.test_every_file_is_accounted_for(snap)
            self.test_no_temporary_files_stay(snap)


EVIL = ["../../x", "..", ".", "", "/", "//", "/etc/passwd", "../" * 30 + "tmp/evil", "a/../../b",
    ".snapshot_metadata", ".torchsnapshot",
        "x" * 4096, "/" * 500, "%2e%2e%2fx", "..\\..\\x", "~/x", "$HOME", "nul\0byte", "new\nline", "\ud800", "CON",
        "-rf"]  # fmt: skip


class TestNothingLeavesTheFolder:
    @pytest.mark.parametrize("unbatched", [True, False])
    def test_whatever_the_keys(self, unbatched: bool, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "a" / "b" / "snap"
        state = {key: {key: torch.full((2,), i), "o": (i,)} for i, key in enumerate(EVIL)}
        with override_is_batching_disabled(unbatched):
            Snapshot.take(str(path), {key: StateDict(state) for key in EVIL})
        outside = [name for name in files_below(tmp_path) if not name.startswith("a/b/snap/")]
        assert outside == []
        assert os.listdir(tmp_path / "a" / "b") == ["snap"]
        assert [n for n in files_below(path) if "x" * 20 in n or "evil" in n or "passwd" in n] == []
        for key in EVIL:
            target = StateDict()
            Snapshot(str(path)).restore({key: target})
            assert list(target.data) == EVIL
            assert all(torch.equal(target[k][k], torch.full((2,), i)) for i, k in enumerate(EVIL))

    def test_locations_do_not_come_from_keys(self, snap: str) -> None:
        with override_is_batching_disabled(True):
            Snapshot.take(snap, {"secretkey": StateDict(secretname=torch.ones(2), secretobject=(1,))})
        assert not any("secret" in name for name in files_below(snap))

    def test_every_location_is_a_plain_relative_path(self, snap: str) -> None:
        Snapshot.take(snap, {key: StateDict({key: torch.ones(2)}) for key in EVIL})
        for name in data_files(snap):
            parts = name.split("/")
            assert all(part and part not in ("..", ".") and len(part) < 100 for part in parts)
