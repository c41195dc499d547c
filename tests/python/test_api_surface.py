"""The names that programs written for the original import, and the helpers among them."""

from __future__ import annotations

import datetime
import importlib
import inspect
import time
import unittest
from typing import Any

import pytest
import torch
import torchsnapshot
from support import assert_same
from torch import nn

NAMES = {
    "torchsnapshot": ["Snapshot", "StateDict", "Stateful", "RNGState", "__version__", "TorchSnapshotError"],
    "torchsnapshot.snapshot": ["Snapshot", "SNAPSHOT_METADATA_FNAME"],
    "torchsnapshot.stateful": ["Stateful", "AppState"],
    "torchsnapshot.state_dict": ["StateDict"],
    "torchsnapshot.rng_state": ["RNGState"],
    "torchsnapshot.manifest": [
        "Entry", "TensorEntry", "ChunkedTensorEntry", "ShardedTensorEntry", "DTensorEntry", "Shard", "ObjectEntry",
        "ListEntry",
        "DictEntry", "OrderedDictEntry", "PrimitiveEntry", "SnapshotMetadata", "Manifest",
    ],
    "torchsnapshot.manifest_utils": ["is_fully_replicated_entry"],
    "torchsnapshot.knobs": [
        "override_max_chunk_size_bytes", "override_max_shard_size_bytes", "override_is_batching_disabled",
        "override_slab_size_threshold_bytes", "override_max_per_rank_io_concurrency", "get_max_chunk_size_bytes",
        "get_max_shard_size_bytes", "get_slab_size_threshold_bytes", "get_max_per_rank_io_concurrency",
        "is_batching_disabled",
        "is_sharded_tensor_elasticity_enabled_at_root_only",
    ],
    "torchsnapshot.io_types": ["StoragePlugin", "ReadIO", "WriteIO"],
    "torchsnapshot.storage_plugin": ["url_to_storage_plugin"],
    "torchsnapshot.storage_plugins.fs": ["FSStoragePlugin"],
    "torchsnapshot.event": ["Event"],
    "torchsnapshot.event_handlers": ["EventHandler", "log_event", "get_event_handlers"],
    "torchsnapshot.rss_profiler": ["measure_rss_deltas"],
    "torchsnapshot.test_utils": ["assert_state_dict_eq", "check_state_dict_eq", "rand_tensor", "run_with_pet",
    "get_pet_launch_config"],
    "torchsnapshot.tricks.ddp": ["DistributedDataParallelAdapter"],
    "torchsnapshot.version": ["__version__"],
}  # fmt: skip


@pytest.mark.parametrize("module", NAMES)
def test_names(module: str) -> None:
    imported = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(imported, name)] == []


def test_version() -> None:
    from torchsnapshot.snapshot import SNAPSHOT_METADATA_FNAME

    assert torchsnapshot.__version__ == torchsnapshot.version.__version__
    assert int(torchsnapshot.__version__.split(".")[0]) >= 0
    assert SNAPSHOT_METADATA_FNAME == ".snapshot_metadata"


def test_signatures_begin_as_in_the_original() -> None:
    expected = {
        torchsnapshot.Snapshot: ["path", "pg", "storage_options"],
        torchsnapshot.Snapshot.take: ["path", "app_state", "pg", "replicated", "storage_options",
                                       "_custom_tensor_prepare_func"],
        torchsnapshot.Snapshot.restore: ["self", "app_state", "strict"],
        torchsnapshot.Snapshot.read_object: ["self", "path", "obj_out", "memory_budget_bytes"],
        torchsnapshot.Snapshot.get_state_dict_for_key: ["self", "key", "replicate_from_rank0"],
        torchsnapshot.Snapshot.get_manifest: ["self"],
    }  # fmt: skip
    for function, names in expected.items():
        parameters = list(inspect.signature(function).parameters.values())
        assert [p.name for p in parameters][: len(names)] == names
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(names) :])


def test_stateful_is_recognized_by_its_methods() -> None:
    for good in (nn.Linear(1, 1), torchsnapshot.StateDict(), torchsnapshot.RNGState()):
        assert isinstance(good, torchsnapshot.Stateful)
    assert not isinstance({}, torchsnapshot.Stateful)


def test_exceptions_have_one_base_and_pickle() -> None:
    import pickle

    classes = [
        value
        for value in vars(torchsnapshot).values()
        if isinstance(value, type) and issubclass(value, torchsnapshot.TorchSnapshotError)
    ]
    assert len(classes) > 3
    for cls in classes:
        error = cls("what went wrong")
        assert str(error) == "what went wrong"
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (cls, "what went wrong")


def test_the_package_is_typed() -> None:
    from importlib.resources import files

    assert (files("torchsnapshot") / "py.typed").is_file()


class TestManifestClasses:
    def test_are_made_and_compared_as_data(self) -> None:
        from torchsnapshot.manifest import DictEntry, ListEntry, PrimitiveEntry, Shard, ShardedTensorEntry, TensorEntry

        made = TensorEntry(
            location="a", serializer="buffer_protocol", dtype="torch.float32", shape=[2], replicated=False
        )
        assert (made.type, made.byte_range, made.byte_range_tuple) == ("Tensor", None, None)
        same = TensorEntry("a", "buffer_protocol", "torch.float32", [2], False, [0, 8])
        assert made != same
        assert same.byte_range_tuple == (0, 8)
        assert DictEntry(keys=["a", 1]) == DictEntry(keys=["a", 1])
        assert ListEntry() == ListEntry()
        sharded = ShardedTensorEntry(shards=[Shard(offsets=[0], sizes=[2], tensor=made), Shard([2], [3], made)])
        assert sharded.get_tensor_shape() == [5]
        for value in (5, -(10**30), 0.1, True, "x", b"\0"):
            entry = PrimitiveEntry.from_object(value)
            assert_same(entry.get_value(), value)

    def test_metadata_goes_to_text_and_back(self, snap: str) -> None:
        from torchsnapshot.manifest import SnapshotMetadata

        snapshot = torchsnapshot.Snapshot.take(
            snap, {"s": torchsnapshot.StateDict(t=torch.ones(2), i=1, o=None, l=[{}])}
        )
        text = snapshot.metadata.to_yaml()
        assert SnapshotMetadata.from_yaml(text) == snapshot.metadata


class TestTestUtils:
    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int16, torch.uint8, torch.bool]
    )
    def test_rand_tensor(self, dtype: torch.dtype) -> None:
        from torchsnapshot.test_utils import rand_tensor

        tensor = rand_tensor((16, 16), dtype=dtype)
        assert (tensor.dtype, tensor.shape) == (dtype, (16, 16))
        assert len(tensor.flatten().tolist()) > len(set(map(str, tensor[:1].tolist())))

    @pytest.mark.filterwarnings("ignore")
    def test_rand_tensor_quantized(self) -> None:
        from torchsnapshot.test_utils import rand_tensor

        assert rand_tensor((4, 4), torch.qint8).qscheme() == torch.per_tensor_affine
        channel = rand_tensor((4, 5), torch.quint8, qscheme=torch.per_channel_affine, channel_axis=1)
        assert channel.q_per_channel_axis() == 1

    def test_state_dict_comparison(self) -> None:
        from torchsnapshot.test_utils import assert_state_dict_eq, check_state_dict_eq

        case = unittest.TestCase()
        a = {"x": torch.arange(3), "n": [{"y": torch.ones(2)}], "i": 1}
        b = {"x": torch.arange(3), "n": [{"y": torch.ones(2)}], "i": 1}
        assert check_state_dict_eq(a, b)
        assert_state_dict_eq(case, a, b)
        different: list[Any] = [
            {**a, "i": 2},
            {**a, "n": [{"y": torch.zeros(2)}]},
            {**a, "x": torch.arange(4)},
            {"x": a["x"]},
        ]
        for other in different:
            assert not check_state_dict_eq(a, other)
            with pytest.raises(AssertionError):
                assert_state_dict_eq(case, a, other)

    def test_launch_config(self) -> None:
        from torchsnapshot.test_utils import get_pet_launch_config

        config = get_pet_launch_config(3)
        assert (config.nproc_per_node, config.min_nodes, config.max_nodes) == (3, 1, 1)

    def test_rss_profiler(self) -> None:
        from torchsnapshot.rss_profiler import measure_rss_deltas

        deltas: list[int] = []
        with measure_rss_deltas(rss_deltas=deltas, interval=datetime.timedelta(milliseconds=5)):
            block = torch.ones(64 << 18)
            time.sleep(0.05)
        assert max(deltas) > 50 << 20
        assert len(deltas) > 2
        del block
        count = len(deltas)
        time.sleep(0.03)
        assert len(deltas) == count

    def test_rss_profiler_passes_exceptions(self) -> None:
        from torchsnapshot.rss_profiler import measure_rss_deltas

        with pytest.raises(KeyError), measure_rss_deltas([]):
            raise KeyError


class TestTricks:
    def test_a_state_of_ddp_comes_into_a_plain_module(self, snap: str) -> None:
        from torchsnapshot.tricks.ddp import DistributedDataParallelAdapter

        saved, target = nn.Linear(3, 2), nn.Linear(3, 2)
        wrapped = torchsnapshot.StateDict({f"module.{k}": v for k, v in saved.state_dict().items()})
        torchsnapshot.Snapshot.take(snap, {"m": wrapped})
        adapter = DistributedDataParallelAdapter(target)
        torchsnapshot.Snapshot(snap).restore({"m": adapter})
        assert adapter.module is target
        assert_same(target.state_dict(), saved.state_dict())

    def test_deepspeed_without_deepspeed_is_a_clear_error(self) -> None:
        if importlib.util.find_spec("deepspeed") is not None:
            pytest.skip("deepspeed is installed")
        try:
            importlib.import_module("torchsnapshot.tricks.deepspeed")
        except ImportError as error:
            assert "deepspeed" in str(error)  # noqa: PT017 - importing may as well be lazy and succeed
