"""Every kind of tensor as a leaf: dtypes, shapes, views, layouts, quantized, shared memory, subclasses."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from leaf_classes import LoudTensor, TaggedTensor
from support import (
    assert_same,
    bits,
    data_files,
    files_below,
    raises_clearly,
    raw_metadata,
    restored,
    round_trip,
    stored_bytes,
    tensor_entries,
    zeroed,
)
from torch import nn
from torchsnapshot import Snapshot, StateDict
from torchsnapshot.knobs import override_is_batching_disabled

FIXED_SIZE_NAMES = [
    "float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
]  # fmt: skip
DTYPES = [getattr(torch, name) for name in FIXED_SIZE_NAMES if hasattr(torch, name)]
SHAPES = [(), (1,), (7,), (0,), (3, 0, 2), (5, 3), (2, 3, 4, 5), (1, 1, 9)]


def any_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of random bit patterns (of 0 and 1 for bool): NaNs with payloads and subnormals among them."""
    size = torch.empty(0, dtype=dtype).element_size()
    count = int(torch.Size(shape).numel())
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count * size,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestDtypes:
    def test_all_shapes_bit_for_bit(self, dtype: torch.dtype, snap: str) -> None:
        state = StateDict({str(shape): any_bits(dtype, shape) for shape in SHAPES})
        Snapshot.take(snap, {"state": state})
        assert_same(restored(snap), state.data)
        target = StateDict(zeroed_bits(state.data))
        report = Snapshot(snap).restore({"state": target})
        assert_same(target.data, state.data)
        assert report.mismatched == []

    def test_without_batching(self, dtype: torch.dtype, snap: str) -> None:
        state = StateDict({str(shape): any_bits(dtype, shape) for shape in SHAPES})
        with override_is_batching_disabled(True):
            Snapshot.take(snap, {"state": state})
            assert_same(restored(snap), state.data)

    def test_entry_and_stored_bytes(self, dtype: torch.dtype, snap: str) -> None:
        tensor = any_bits(dtype, (5, 3))
        Snapshot.take(snap, {"state": StateDict(t=tensor)})
        entry = raw_metadata(snap)["manifest"]["0/state/t"]
        assert (entry["type"], entry["dtype"], entry["shape"]) == ("Tensor", str(dtype), [5, 3])
        assert entry["serializer"] == "buffer_protocol"
        assert stored_bytes(snap, entry) == bits(tensor)


def zeroed_bits(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        k: torch.zeros_like(v.view(torch.uint8)).view(v.dtype) if v.dim() else new_scalar(v) for k, v in state.items()
    }


def new_scalar(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.element_size(), dtype=torch.uint8).view(tensor.dtype).reshape(())


def test_special_floats_bit_for_bit(snap: str) -> None:
    doubles = torch.tensor(
        [
            0x7FF8000000000001,
            0x7FF0000000000001,
            -0x0008000000000000,
            0x7FF0000000000000,
            -(1 << 63),
            1,
            0x000FFFFFFFFFFFFF,
        ]
    ).view(torch.float64)
    singles = torch.tensor([0x7FC00001, 0x7F800001, 0x7F800000, -(1 << 31), 1], dtype=torch.int32).view(torch.float32)
    halves = torch.tensor([0x7E01, 0x7C01, 0x7C00, -(1 << 15), 1], dtype=torch.int16)
    state = {"d": doubles, "s": singles, "h": halves.view(torch.float16), "b": halves.view(torch.bfloat16)}
    assert_same(round_trip(snap, state), state)


VIEWS: dict[str, Any] = {
    "transposed": lambda: torch.rand(4, 6).t(),
    "permuted": lambda: torch.rand(2, 3, 4, 5).permute(3, 0, 2, 1),
    "every second": lambda: torch.rand(20)[::2],
    "column": lambda: torch.rand(5, 6)[:, 2],
    "inner block": lambda: torch.rand(8, 8)[2:5, 3:7],
    "row slice": lambda: torch.rand(9, 3)[4:6],
    "expanded": lambda: torch.rand(1, 3).expand(4, 3),
    "expanded scalar": lambda: torch.tensor(2.5).expand(2, 2),
    "broadcast transposed": lambda: torch.rand(3, 1).expand(3, 4).t(),
    "diagonal": lambda: torch.rand(5, 5).diagonal(),
    "unfold": lambda: torch.arange(10).unfold(0, 4, 2),
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "offset": lambda: torch.arange(10.0)[3:],
    "one of many": lambda: torch.rand(10, 10)[3, 4],
    "empty slice": lambda: torch.rand(10)[4:4],
    "real": lambda: torch.rand(4, dtype=torch.complex64).real,
    "imaginary": lambda: torch.rand(4, dtype=torch.complex128).imag,
    "conj": lambda: torch.rand(4, dtype=torch.complex64).conj(),
    "conj transposed": lambda: torch.rand(4, 3, dtype=torch.complex128).mH,
    "neg": lambda: torch.rand(4, dtype=torch.complex64).conj().imag,
    "neg slice": lambda: torch.rand(9, dtype=torch.complex64).conj().imag[1::3],
    "other dtype": lambda: torch.rand(4).view(torch.int32),
    "requires grad": lambda: torch.rand(3, requires_grad=True),
    "part of a graph": lambda: torch.rand(3, requires_grad=True) * 2,
    "inference": lambda: inference_tensor(),
    "shared memory": lambda: torch.rand(4).share_memory_(),
    "from numpy": lambda: torch.from_numpy(__import__("numpy").arange(12.0).reshape(3, 4)[:, ::2]),
}


def inference_tensor() -> torch.Tensor:
    with torch.inference_mode():
        return torch.rand(4)


@pytest.mark.parametrize("name", VIEWS)
class TestViews:
    def test_the_values_come_back(self, name: str, snap: str) -> None:
        tensor = VIEWS[name]()
        back = round_trip(snap, tensor)
        assert_same(back, tensor)
        assert not back.is_conj()
        assert not back.is_neg()

    def test_only_the_elements_are_stored(self, name: str, snap: str) -> None:
        tensor = VIEWS[name]()
        Snapshot.take(snap, {"state": StateDict(v=tensor)})
        entries = [entry for _, entry in tensor_entries(raw_metadata(snap)["manifest"])]
        assert b"".join(stored_bytes(snap, entry) for entry in entries) == bits(tensor)

    def test_as_targets(self, name: str, snap: str) -> None:
        tensor = VIEWS[name]()
        expected = (torch.arange(tensor.numel()) + 1).reshape(tensor.shape).to(tensor.dtype)
        Snapshot.take(snap, {"state": StateDict(v=expected)})
        target = StateDict(v=VIEWS[name]())
        Snapshot(snap).restore({"state": target})
        assert_same(target["v"], expected)


def test_a_slice_of_a_big_tensor_stores_the_slice_alone(snap: str) -> None:
    big = torch.zeros(4_000_000)
    Snapshot.take(snap, {"state": StateDict(head=big[:10], tail=big[-10:], column=big.view(2000, 2000)[:5, 7])})
    assert sum(files_below(snap).values()) < 20_000


class TestParametersAndTies:
    def test_parameters_and_buffers_in_a_state_dict(self, snap: str) -> None:
        state = {"p": nn.Parameter(torch.rand(3)), "f": nn.Parameter(torch.rand(2), requires_grad=False)}
        Snapshot.take(snap, {"state": StateDict(state)})
        assert_same(restored(snap), state)
        target = StateDict(p=nn.Parameter(torch.zeros(3)), f=nn.Parameter(torch.zeros(2), requires_grad=False))
        kept = dict(target.data)
        Snapshot(snap).restore({"state": target})
        assert_same(target.data, state)
        assert target["p"] is kept["p"]
        assert isinstance(target["p"], nn.Parameter)
        assert (target["p"].requires_grad, target["f"].requires_grad) == (True, False)

    @pytest.mark.parametrize("batching", [True, False])
    def test_tied_weights_are_stored_once(self, batching: bool, snap: str) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
                self.head.weight = self.embed.weight

        saved, target = Tied(), Tied()
        with override_is_batching_disabled(not batching):
            Snapshot.take(snap, {"m": saved})
        manifest = raw_metadata(snap)["manifest"]
        entries = [manifest["0/m/embed.weight"], manifest["0/m/head.weight"]]
        assert len(manifest) == 3
        assert [stored_bytes(snap, e) for e in entries] == [bits(saved.embed.weight)] * 2
        assert sum(data_files(snap).values()) < 1.5 * 50 * 16 * 4
        Snapshot(snap).restore({"m": target})
        assert target.head.weight is target.embed.weight
        assert_same(target.state_dict(), saved.state_dict())
        untied = StateDict()
        Snapshot(snap).restore({"m": untied})
        assert untied["embed.weight"].data_ptr() != untied["head.weight"].data_ptr()

    def test_the_same_tensor_many_times_and_in_many_keys(self, snap: str) -> None:
        tensor = torch.rand(1000)
        state = {"list": [tensor] * 5, "again": {"x": tensor}, "part": tensor[:500], "flat": tensor.view(10, 100)}
        Snapshot.take(snap, {"state": StateDict(state), "other": StateDict(t=tensor)})
        assert_same(restored(snap), state)
        assert_same(restored(snap, "other"), {"t": tensor})
        assert sum(data_files(snap).values()) < 3.5 * 4000  # tensor, part, flat

    def test_equal_memory_of_another_shape_or_dtype_is_not_mixed_up(self, snap: str) -> None:
        base = torch.arange(12.0)
        state = {"a": base, "b": base.view(3, 4), "c": base.view(4, 3).t(), "d": base.view(torch.int32), "e": base[::2]}
        assert_same(round_trip(snap, state), state)

    def test_empty_tensors_of_many_kinds(self, snap: str) -> None:
        state = {str(i): torch.empty(shape) for i, shape in enumerate([(0,), (0, 5), (5, 0), (0, 0), (2, 0, 3)])}
        assert_same(round_trip(snap, state), state)


def test_a_meta_tensor_is_an_error_that_names_it(snap: str) -> None:
    state = StateDict(good=torch.ones(3), nested={"lost": [torch.empty(2, device="meta")]})
    with raises_clearly("state/nested/lost/0", "meta"):
        Snapshot.take(snap, {"state": state})
    assert files_below(snap) == {}


def test_a_module_on_meta_is_an_error_that_names_a_parameter(snap: str) -> None:
    with raises_clearly(r"model/(weight|bias)", "meta"):
        Snapshot.take(snap, {"model": nn.Linear(2, 2, device="meta")})
    assert not os.path.exists(os.path.join(snap, ".snapshot_metadata"))


def quantized() -> dict[str, torch.Tensor]:
    x = torch.randn(6, 4)
    scales, points = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), torch.tensor([0, 1, 2, 3, 4, 5])
    made = {f"tensor_{d}": torch.quantize_per_tensor(x, 0.05, 7, d) for d in (torch.qint8, torch.quint8, torch.qint32)}
    for dtype in (torch.qint8, torch.quint8):
        made[f"channel0_{dtype}"] = torch.quantize_per_channel(x, scales, points, 0, dtype)
        made[f"channel1_{dtype}"] = torch.quantize_per_channel(x, scales[:4], points[:4], 1, dtype)
    made["transposed"] = made["tensor_torch.qint8"].t()
    made["sliced"] = made["tensor_torch.quint8"][1:3]
    made["scalar"] = torch.quantize_per_tensor(torch.tensor(1.5), 0.1, 0, torch.qint8)
    made["empty"] = torch.quantize_per_tensor(torch.empty(0), 0.1, 0, torch.qint8)
    return made


@pytest.mark.filterwarnings("ignore")
class TestQuantized:
    @pytest.mark.parametrize("name", quantized())
    def test_fresh_and_into_other_parameters(self, name: str, snap: str) -> None:
        tensor = quantized()[name]
        assert_same(round_trip(snap, tensor), tensor)
        target = StateDict(v=zeroed(tensor))
        Snapshot(snap).restore({"state": target})
        assert_same(target["v"], tensor)

    def test_in_place_when_the_parameters_agree(self, snap: str) -> None:
        tensor = torch.quantize_per_tensor(torch.randn(5), 0.1, 3, torch.quint8)
        Snapshot.take(snap, {"state": StateDict(v=tensor)})
        target = StateDict(v=torch.quantize_per_tensor(torch.zeros(5), 0.1, 3, torch.quint8))
        place = target["v"].data_ptr()
        Snapshot(snap).restore({"state": target})
        assert_same(target["v"], tensor)
        assert target["v"].data_ptr() == place

    def test_a_quantized_module(self, snap: str) -> None:
        def make(seed: int) -> nn.Module:
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

        if torch.backends.quantized.engine in ("none", "NoQEngine"):
            pytest.skip("this torch has no engine for quantized modules")
        saved, target = make(1), make(2)
        Snapshot.take(snap, {"m": saved})
        Snapshot(snap).restore({"m": target}, weights_only=False)
        x = torch.randn(3, 4)
        assert_same(target(x), saved(x))


def sparse() -> dict[str, torch.Tensor]:
    dense = torch.tensor([[0.0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 4, 0]])
    uncoalesced = torch.sparse_coo_tensor(torch.tensor([[0, 0, 2], [1, 1, 0]]), torch.tensor([1.0, 2, 3]), (3, 4))
    return {
        "coo": dense.to_sparse(),
        "coo uncoalesced": uncoalesced,
        "coo hybrid": torch.rand(4, 3).to_sparse(1),
        "coo empty": torch.sparse_coo_tensor(size=(3, 4)),
        "coo int": dense.to(torch.int64).to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "bsc": dense.to_sparse_bsc((2, 2)),
        "csr batched": torch.stack([dense, dense]).to_sparse_csr(),
    }


@pytest.mark.filterwarnings("ignore")
class TestSparse:
    @pytest.mark.parametrize("name", sparse())
    def test_comes_back(self, name: str, snap: str) -> None:
        tensor = sparse()[name]
        assert_same(round_trip(snap, tensor), tensor)

    @pytest.mark.parametrize("name", sparse())
    def test_comes_back_where_something_is(self, name: str, snap: str) -> None:
        tensor = sparse()[name]
        Snapshot.take(snap, {"state": StateDict(v=tensor)})
        for other in (tensor.clone() * 2, torch.zeros(2), 5):
            target = StateDict(v=other)
            Snapshot(snap).restore({"state": target})
            assert_same(target["v"], tensor)

    def test_a_dense_tensor_comes_back_where_a_sparse_one_is(self, snap: str) -> None:
        dense = torch.rand(3, 4)
        Snapshot.take(snap, {"state": StateDict(v=dense)})
        target = StateDict(v=torch.eye(3, 4).to_sparse())
        Snapshot(snap).restore({"state": target})
        assert_same(target["v"], dense)


class TestSubclasses:
    @pytest.mark.parametrize("cls", [TaggedTensor, LoudTensor])
    def test_values_come_back(self, cls: type[torch.Tensor], snap: str) -> None:
        plain = torch.rand(4, 5)
        back = round_trip(snap, plain.as_subclass(cls))
        assert isinstance(back, torch.Tensor)
        assert bits(back.as_subclass(torch.Tensor)) == bits(plain)

    @pytest.mark.parametrize("cls", [TaggedTensor, LoudTensor])
    def test_a_subclass_target_is_filled_in_place(self, cls: type[torch.Tensor], snap: str) -> None:
        plain = torch.rand(4, 5)
        Snapshot.take(snap, {"state": StateDict(v=plain)})
        target = torch.zeros(4, 5).as_subclass(cls)
        state = StateDict(v=target)
        Snapshot(snap).restore({"state": state})
        assert state["v"] is target
        assert type(state["v"]) is cls
        assert bits(target.as_subclass(torch.Tensor)) == bits(plain)

    def test_noncontiguous_subclass(self, snap: str) -> None:
        plain = torch.rand(4, 6)
        back = round_trip(snap, plain.as_subclass(TaggedTensor).t()[1:4])
        assert bits(back.as_subclass(torch.Tensor)) == bits(plain.t()[1:4])

    def test_a_module_with_subclass_parameters(self, snap: str) -> None:
        def make() -> nn.Module:
            module = nn.Linear(3, 2)
            module.weight = nn.Parameter(torch.rand(2, 3).as_subclass(TaggedTensor))
            return module

        saved, target = make(), make()
        Snapshot.take(snap, {"m": saved}).restore({"m": target})
        assert bits(target.weight.as_subclass(torch.Tensor)) == bits(saved.weight.as_subclass(torch.Tensor))
        assert type(target.weight) is type(saved.weight)

    def test_a_wrapper_subclass(self, snap: str) -> None:
        two_tensor = pytest.importorskip("torch.testing._internal.two_tensor")
        a, b = torch.rand(3), torch.rand(3)
        with torch.serialization.safe_globals([two_tensor.TwoTensor]):
            back = round_trip(snap, two_tensor.TwoTensor(a, b), weights_only=False)
        assert_same((back.a, back.b), (a, b))
