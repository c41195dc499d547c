"""Reading parts of a snapshot: read_object, get_manifest, get_state_dict_for_key, metadata."""

from __future__ import annotations

import collections
import datetime
from typing import Any

import pytest
import torch
from support import CORPUS, assert_same, data_files, raises_clearly
from torch import nn
from torchsnapshot import Snapshot, StateDict
from torchsnapshot.knobs import override_max_chunk_size_bytes
from torchsnapshot.manifest import (
    ChunkedTensorEntry,
    DictEntry,
    Entry,
    ListEntry,
    ObjectEntry,
    OrderedDictEntry,
    PrimitiveEntry,
    ShardedTensorEntry,
    SnapshotMetadata,
    TensorEntry,
)
from torchsnapshot.manifest_utils import is_fully_replicated_entry
from torchsnapshot.rss_profiler import measure_rss_deltas

MB = 1 << 20


def sample() -> dict[str, Any]:
    return {
        "t": torch.arange(24.0).reshape(4, 6),
        "cut": torch.arange(24.0).reshape(4, 6)[1:, ::2],
        "i": 5,
        "f": 0.1,
        "s": "text",
        "b": True,
        "y": b"\0\1",
        "none": None,
        "pair": (1, torch.ones(2)),
        "list": [1, {"x": torch.zeros(2)}, []],
        "od": collections.OrderedDict([("z", 1), ("a", [2])]),
        "a/b": {"%": torch.ones(1)},
        7: {"deep": [torch.arange(3)]},
    }


@pytest.fixture
def snapshot(snap: str) -> Snapshot:
    Snapshot.take(snap, {"state": StateDict(sample()), "k/1": StateDict(x=1)})
    return Snapshot(snap)


class TestReadObject:
    @pytest.mark.parametrize("key", [k for k in sample() if k not in ("a/b",)], ids=str)
    def test_every_kind(self, key: Any, snapshot: Snapshot) -> None:
        assert_same(snapshot.read_object(f"0/state/{key}"), sample()[key])

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("0/state/list/1", {"x": torch.zeros(2)}),
            ("0/state/list/1/x", torch.zeros(2)),
            ("0/state/od/a/0", 2),
            ("0/state/a%2Fb/%25", torch.ones(1)),
            ("0/state/7/deep/0", torch.arange(3)),
            ("0/k%2F1", {"x": 1}),
            ("0/state", sample()),
        ],
        ids=lambda v: v if isinstance(v, str) else "",
    )
    def test_paths(self, path: str, expected: Any, snapshot: Snapshot) -> None:
        assert_same(snapshot.read_object(path), expected)

    def test_in_place(self, snapshot: Snapshot) -> None:
        out = torch.zeros(4, 6)
        assert snapshot.read_object("0/state/t", obj_out=out) is out
        assert_same(out, sample()["t"])

    def test_in_place_into_a_view(self, snapshot: Snapshot) -> None:
        base = torch.full((12, 9), -1.0)
        out = base.t()[1:5, 3:9]
        assert snapshot.read_object("0/state/t", obj_out=out) is out
        assert_same(out, sample()["t"])
        assert (base != -1).sum() == 24

    def test_in_place_into_a_parameter(self, snapshot: Snapshot) -> None:
        out = nn.Parameter(torch.zeros(4, 6))
        assert snapshot.read_object("0/state/t", obj_out=out) is out
        assert_same(out.detach(), sample()["t"])

    @pytest.mark.parametrize("out", [torch.zeros(6, 4), torch.zeros(4, 6, dtype=torch.float64), torch.zeros(24)])
    def test_another_shape_or_dtype_is_an_error(self, out: torch.Tensor, snapshot: Snapshot) -> None:
        # The original returns the saved tensor and leaves obj_out as it was: who looks at obj_out has wrong values.
        before = out.clone()
        with pytest.raises(RuntimeError, match=r"'state/t': saved torch.float32 \[4, 6\], target torch"):
            snapshot.read_object("0/state/t", obj_out=out)
        assert_same(out, before)

    @pytest.mark.parametrize("out", [5, "x", [torch.zeros(4, 6)]])
    def test_obj_out_is_ignored_for_what_is_no_tensor(self, out: Any, snapshot: Snapshot) -> None:
        assert snapshot.read_object("0/state/i", obj_out=out) == 5
        assert_same(snapshot.read_object("0/state/pair", obj_out=out), sample()["pair"])

    def test_a_tensor_can_not_take_what_is_no_tensor(self, snapshot: Snapshot) -> None:
        with pytest.raises(RuntimeError, match="'state/i': saved no tensor"):
            snapshot.read_object("0/state/i", obj_out=torch.zeros(2))

    @pytest.mark.parametrize("budget", [1, 4, 7, 24, 100, 10**9])
    def test_a_budget_changes_nothing_but_the_memory(self, budget: int, snapshot: Snapshot) -> None:
        for key in ("t", "cut", "i", "list", "pair"):
            assert_same(snapshot.read_object(f"0/state/{key}", memory_budget_bytes=budget), sample()[key])
        out = torch.zeros(6, 4).t()
        assert snapshot.read_object("0/state/t", obj_out=out, memory_budget_bytes=budget) is out
        assert_same(out, sample()["t"])

    @pytest.mark.no_sanitizer
    @pytest.mark.parametrize("strided", [False, True])
    def test_a_tensor_larger_than_the_budget_is_read_in_pieces(self, strided: bool, snap: str) -> None:
        tensor = torch.randint(0, 256, (128 * MB,), dtype=torch.uint8)
        snapshot = Snapshot.take(snap, {"state": StateDict(t=tensor)})
        out = torch.zeros(128 * MB, 2, dtype=torch.uint8)[:, 0] if strided else torch.zeros_like(tensor)
        deltas: list[int] = []
        with measure_rss_deltas(deltas, datetime.timedelta(milliseconds=2)):
            snapshot.read_object("0/state/t", obj_out=out, memory_budget_bytes=8 * MB)
        assert torch.equal(out, tensor)
        assert max(deltas) < 48 * MB, f"{max(deltas) / MB:.0f} MB"

    def test_chunked_tensors(self, snap: str) -> None:
        tensor = torch.rand(100, 7)
        with override_max_chunk_size_bytes(300):
            snapshot = Snapshot.take(snap, {"state": StateDict(t=tensor)})
        out = torch.zeros(7, 100).t()
        assert_same(snapshot.read_object("0/state/t"), tensor)
        assert_same(snapshot.read_object("0/state/t", memory_budget_bytes=64), tensor)
        assert snapshot.read_object("0/state/t", obj_out=out) is out
        assert_same(out, tensor)

    @pytest.mark.parametrize(
        "path",
        ["", "0", "0/", "0/state/nothing", "state/t", "/0/state/t", "x/state/t", "-1/state/t", "0/state/t/x",
        "0/state/a/b", "9/state/t", "0/state/t/"],
    )  # fmt: skip
    def test_what_is_not_there_is_a_runtime_error(self, path: str, snapshot: Snapshot) -> None:
        with raises_clearly(kind=RuntimeError):
            snapshot.read_object(path)

    @pytest.mark.parametrize(
        ("path", "near"),
        [
            ("0/state/tt", "0/state/t"),
            ("0/stat/pair", "0/state/pair"),
            ("state/pair", "0/state/pair"),
            ("0/state/list/1/y", "0/state/list/1/x"),
            ("0/state/a/b", "0/state/a%2Fb"),
        ],
    )
    def test_near_misses_are_named(self, path: str, near: str, snapshot: Snapshot) -> None:
        with raises_clearly(path, near, kind=RuntimeError):
            snapshot.read_object(path)

    @pytest.mark.parametrize(("arguments", "kind"), [((5,), TypeError), ((None,), TypeError)])
    def test_wrong_arguments(self, arguments: Any, kind: Any, snapshot: Snapshot) -> None:
        with pytest.raises(kind):
            snapshot.read_object(*arguments)

    @pytest.mark.parametrize("budget", [0, -1])
    def test_a_budget_that_is_no_budget(self, budget: int, snapshot: Snapshot) -> None:
        with raises_clearly("budget"):
            snapshot.read_object("0/state/t", memory_budget_bytes=budget)

    def test_only_the_object_asked_for_is_needed(self, snap: str) -> None:
        import os

        from torchsnapshot.knobs import override_is_batching_disabled

        with override_is_batching_disabled(True):
            Snapshot.take(snap, {"state": StateDict(a=torch.ones(3), b=torch.zeros(3))})
        snapshot = Snapshot(snap)
        wanted = snapshot.get_manifest()["0/state/a"].location
        for name in data_files(snap):
            if name != wanted:
                os.remove(os.path.join(snap, name))
        assert_same(snapshot.read_object("0/state/a"), torch.ones(3))


class TestShardedWithoutAGroup:
    @pytest.mark.parametrize("name", ["row", "col", "grid"])
    @pytest.mark.parametrize("rank", [0, 1, 5])
    def test_the_full_tensor(self, name: str, rank: int) -> None:
        expected = torch.load(CORPUS / "sharded_2" / "expected.pt", weights_only=False)["global"][f"state/{name}"]
        snapshot = Snapshot(str(CORPUS / "sharded_2" / "snapshot"))
        assert_same(snapshot.read_object(f"{rank}/state/{name}"), expected)
        out = torch.zeros_like(expected)
        assert snapshot.read_object(f"{rank}/state/{name}", obj_out=out) is out
        assert_same(out, expected)
        assert_same(snapshot.read_object(f"{rank}/state/{name}", memory_budget_bytes=100), expected)


class TestManifest:
    def test_entries_have_their_classes_and_fields(self, snapshot: Snapshot) -> None:
        manifest = snapshot.get_manifest()
        assert all(isinstance(entry, Entry) for entry in manifest.values())
        tensor = manifest["0/state/t"]
        assert isinstance(tensor, TensorEntry)
        assert (tensor.type, tensor.dtype, tensor.shape, tensor.replicated) == (
            "Tensor",
            "torch.float32",
            [4, 6],
            False,
        )
        assert tensor.serializer == "buffer_protocol"
        assert tensor.byte_range is None or tensor.byte_range[1] - tensor.byte_range[0] == 96
        assert tensor.byte_range_tuple is None or tensor.byte_range_tuple == tuple(tensor.byte_range)
        assert isinstance(manifest["0/state"], DictEntry)
        assert manifest["0/state"].keys == list(sample())
        assert isinstance(manifest["0/state/list"], ListEntry)
        assert isinstance(manifest["0/state/od"], OrderedDictEntry)
        assert isinstance(manifest["0/state/none"], ObjectEntry)
        assert (manifest["0/state/pair"].obj_type, manifest["0/state/pair"].serializer) == (
            "builtins.tuple",
            "torch_save",
        )
        for key in "ifsby":
            entry = manifest[f"0/state/{key}"]
            assert isinstance(entry, PrimitiveEntry)
            assert entry.type == type(sample()[key]).__name__
            assert_same(entry.get_value(), sample()[key])
        assert manifest["0/state/f"].readable == "0.1"

    def test_a_deep_copy_every_time(self, snapshot: Snapshot) -> None:
        first = snapshot.get_manifest()
        first["0/state/t"].shape.append(99)
        first["0/state"].keys.clear()
        first.clear()
        second = snapshot.get_manifest()
        assert second["0/state/t"].shape == [4, 6]
        assert second["0/state"].keys == list(sample())
        assert_same(snapshot.read_object("0/state/t"), sample()["t"])

    def test_chunks_and_shards(self, snap: str) -> None:
        with override_max_chunk_size_bytes(100):
            snapshot = Snapshot.take(snap, {"state": StateDict(t=torch.rand(10, 8))})
        entry = snapshot.get_manifest()["0/state/t"]
        assert isinstance(entry, ChunkedTensorEntry)
        assert (entry.dtype, entry.shape) == ("torch.float32", [10, 8])
        assert [c.offsets for c in entry.chunks] == [[0, 0], [3, 0], [6, 0], [9, 0]]
        assert [c.sizes for c in entry.chunks] == [[3, 8], [3, 8], [3, 8], [1, 8]]
        assert all(isinstance(c.tensor, TensorEntry) for c in entry.chunks)
        sharded = Snapshot(str(CORPUS / "sharded_2" / "snapshot")).get_manifest()["1/state/row"]
        assert isinstance(sharded, ShardedTensorEntry)
        assert (sharded.shards[0].offsets, sharded.shards[0].sizes) == ([10, 0], [10, 16])

    def test_replicated(self) -> None:
        manifest = Snapshot(str(CORPUS / "replicated_2" / "snapshot")).get_manifest()
        assert is_fully_replicated_entry(manifest["0/rep/a"])
        assert not is_fully_replicated_entry(manifest["0/own/x"])
        assert not is_fully_replicated_entry(manifest["0/rep"])
        dtensor = Snapshot(str(CORPUS / "dtensor_2" / "snapshot")).get_manifest()["0/state/S0"]
        assert (dtensor.mesh, dtensor.dim_map) == ([0, 1], [[0], [-1]])
        assert not is_fully_replicated_entry(dtensor)

    def test_metadata(self, snapshot: Snapshot) -> None:
        metadata = snapshot.metadata
        assert isinstance(metadata, SnapshotMetadata)
        assert metadata.world_size == 1
        assert list(metadata.manifest) == list(snapshot.get_manifest())
        assert metadata.manifest == snapshot.get_manifest()
        assert Snapshot(str(CORPUS / "replicated_2" / "snapshot")).metadata.world_size == 2


class TestStateDictForKey:
    def test_the_whole_state(self, snapshot: Snapshot) -> None:
        assert_same(snapshot.get_state_dict_for_key("state"), sample())

    def test_a_key_with_a_slash(self, snapshot: Snapshot) -> None:
        assert snapshot.get_state_dict_for_key("k/1") == {"x": 1}

    def test_a_module(self, snap: str) -> None:
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        state = Snapshot.take(snap, {"m": model}).get_state_dict_for_key("m")
        assert list(state) == list(model.state_dict())
        assert_same(dict(state), dict(model.state_dict()))
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).load_state_dict(state)

    def test_an_unknown_key(self, snapshot: Snapshot) -> None:
        with raises_clearly("stat", "state"):
            snapshot.get_state_dict_for_key("stat")

    def test_from_rank_0(self, snapshot: Snapshot) -> None:
        assert_same(snapshot.get_state_dict_for_key("state", replicate_from_rank0=True), sample())
        two = Snapshot(str(CORPUS / "replicated_2" / "snapshot"))
        expected = torch.load(CORPUS / "replicated_2" / "expected.pt", weights_only=False)["ranks"][0]
        assert_same(two.get_state_dict_for_key("own", replicate_from_rank0=True), dict(expected["own"]))
