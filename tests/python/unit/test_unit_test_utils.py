"""The helpers that tests of other programs use."""

from __future__ import annotations

import collections
import math
import os
import unittest
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torchsnapshot import test_utils as u

DTYPES = [
    getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "complex128",
        "complex64",
        "complex32",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
        "bits8",
        "bits16",
        "qint8",
        "quint8",
        "qint32",
    ]
    if hasattr(torch, name)
]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_random_tensors_of_each_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = u.rand_tensor(shape, dtype)
    assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
    assert u.tensor_eq(tensor, tensor.clone())
    if tensor.numel() >= 5 and dtype is not torch.bool:
        assert not all(u.tensor_eq(tensor, u.rand_tensor(shape, dtype)) for _ in range(5))


def test_random_quantized_tensors_per_channel() -> None:
    tensor = u.rand_tensor([3, 4], torch.quint8, torch.per_channel_affine, channel_axis=1)
    assert tensor.q_per_channel_axis() == 1
    with pytest.raises(AssertionError):
        u.rand_tensor([3], torch.qint8, torch.per_channel_symmetric)


NAN = torch.tensor([float("nan"), 1.0])
EYE = torch.eye(3)
SAME: list[tuple[Any, Any]] = [
    (NAN, NAN.clone()),
    (torch.ones(2, 3).t(), torch.ones(3, 2)),
    (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
    (EYE.to_sparse(), EYE.to_sparse()),
    (EYE.to_sparse_csr(), EYE.to_sparse_csr()),
    (EYE.to_sparse_csc(), EYE.to_sparse_csc()),
    (torch.ones(2).requires_grad_(), torch.ones(2)),
]
OTHER: list[tuple[Any, Any]] = [
    (torch.ones(2), torch.ones(3)),
    (torch.ones(2), torch.ones(2, 1)),
    (torch.ones(2), torch.ones(2, dtype=torch.float64)),
    (torch.ones(2), torch.nn.Parameter(torch.ones(2))),
    (torch.ones(2), 1.0),
    (torch.tensor([0.0]), torch.tensor([-0.0])),
    (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])),
    (NAN, torch.tensor([1.0, float("nan")])),
    (EYE, EYE.to_sparse()),
    (EYE.to_sparse(), (2 * EYE).to_sparse()),
    (EYE.to_sparse_csr(), (2 * EYE).to_sparse_csr()),
]


@pytest.mark.parametrize(("lhs", "rhs"), SAME)
def test_same_tensors(lhs: Any, rhs: Any) -> None:
    assert u.tensor_eq(lhs, rhs)
    assert u.check_state_dict_eq({"k": [lhs]}, {"k": [rhs]})


@pytest.mark.parametrize(("lhs", "rhs"), OTHER)
def test_other_tensors(lhs: Any, rhs: Any) -> None:
    assert not u.tensor_eq(lhs, rhs)
    assert not u.check_state_dict_eq({"k": (lhs,)}, {"k": (rhs,)})
    assert not u.check_state_dict_eq({"k": rhs}, {"k": lhs})
    with pytest.raises(AssertionError, match="differ at k/0"):
        u.assert_state_dict_eq(unittest.TestCase(), {"k": [lhs]}, {"k": [rhs]})


def test_quantized_tensors() -> None:
    def quantize(scale: float, axis: int | None = None) -> torch.Tensor:
        if axis is None:
            return torch.quantize_per_tensor(torch.zeros(2, 2), scale, 1, torch.qint8)
        return torch.quantize_per_channel(
            torch.zeros(2, 2), torch.tensor([scale, 1]), torch.zeros(2), axis, torch.qint8
        )

    assert u.tensor_eq(quantize(0.5), quantize(0.5))
    assert u.tensor_eq(quantize(0.5, 0), quantize(0.5, 0))
    different = [quantize(0.5), quantize(0.25), quantize(0.5, 0), quantize(0.5, 1), quantize(0.25, 0)]
    for i, lhs in enumerate(different):
        assert [u.tensor_eq(lhs, rhs) for rhs in different] == [i == j for j in range(len(different))]


def test_no_tensor_at_all() -> None:
    with pytest.raises(AssertionError, match="not a tensor: int"):
        u.tensor_eq(1, torch.ones(1))
    with pytest.raises(AssertionError):
        u.tensor_local_sz_bytes("x")
    assert u.tensor_local_sz_bytes(torch.ones(3, dtype=torch.float64)) == 24


EQUAL_DICTS: list[tuple[Any, Any]] = [
    ({}, {}),
    ({"a": math.nan}, {"a": float("nan")}),
    ({"a": {"b": [1, (2, "x")]}}, {"a": {"b": [1, (2, "x")]}}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"a": {}}, {"a": collections.OrderedDict()}),
    ({"a": np.array([np.nan])}, {"a": np.array([np.nan])}),
    ({"a": np.float32(1)}, {"a": np.float32(1)}),
    ({1: None}, {1: None}),
]
UNEQUAL_DICTS: list[tuple[Any, Any, str]] = [
    ({"a": 1}, {"a": 2}, "a: 1 and 2"),
    ({"a": 1}, {}, "key 'a' is in one only"),
    ({"x": {}}, {"x": {"b": 1}}, "x: key 'b' is in one only"),
    ({"a": [1]}, {"a": (1,)}, r"a: \[1\] and \(1,\)"),
    ({"a": [1, 2]}, {"a": [1]}, "a: "),
    ({"a": {"b": [0, 1.0]}}, {"a": {"b": [0, -1.0]}}, "a/b/1: 1.0 and -1.0"),
    ({"a": 0.0}, {"a": -0.0}, "a: 0.0 and -0.0"),
    ({"a": {}}, {"a": 1}, "a: dict and int"),
    ({"a": 1}, {"a": torch.ones(1)}, "a: 1 and tensor"),
    ({"a": np.array([1])}, {"a": np.array([1.0])}, "a: array"),
    ({"a": np.array([1, 2])}, {"a": np.array([1, 3])}, "a: array"),
]


@pytest.mark.parametrize(("lhs", "rhs"), EQUAL_DICTS)
def test_equal_state_dicts(lhs: Any, rhs: Any) -> None:
    assert u.check_state_dict_eq(lhs, rhs)
    u.assert_state_dict_eq(unittest.TestCase(), lhs, rhs)


@pytest.mark.parametrize(("lhs", "rhs", "message"), UNEQUAL_DICTS)
def test_unequal_state_dicts(lhs: Any, rhs: Any, message: str) -> None:
    assert not u.check_state_dict_eq(lhs, rhs)
    with pytest.raises(AssertionError, match=message):
        u.assert_state_dict_eq(unittest.TestCase(), lhs, rhs)


def test_async_test() -> None:
    @u.async_test
    async def coroutine(value: int, *, more: int) -> int:
        """Doc."""
        return value + more

    assert coroutine(1, more=2) == 3
    assert (coroutine.__name__, coroutine.__doc__) == ("coroutine", "Doc.")


def test_launch_config() -> None:
    config = u.get_pet_launch_config(3)
    assert (config.nproc_per_node, config.max_restarts) == (3, 0)
    assert config.run_id != u.get_pet_launch_config(3).run_id


@u.run_with_pet(nproc=2)
def _in_two_processes(folder: str, fail: bool) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    total = torch.tensor([rank + 1])
    torch.distributed.all_reduce(total)
    with open(os.path.join(folder, str(rank)), "w") as file:
        file.write(str(total.item()))
    torch.distributed.destroy_process_group()
    if fail and rank == 1:
        raise ValueError("rank one fails")


@u.run_with_pet_async(nproc=2)
async def _in_two_processes_async(folder: str) -> None:
    rank = os.environ["RANK"]
    with open(os.path.join(folder, rank), "w") as file:
        file.write(os.environ["WORLD_SIZE"])


@pytest.mark.slow
class TestLaunching:
    def test_in_several_processes(self, tmp_path: Any) -> None:
        _in_two_processes(str(tmp_path), fail=False)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3", "1": "3"}

    def test_a_failure_in_one_of_them_fails_the_test(self, tmp_path: Any) -> None:
        with pytest.raises(Exception, match="rank one fails"):
            _in_two_processes(str(tmp_path), fail=True)

    def test_coroutines(self, tmp_path: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _in_two_processes_async(str(tmp_path))
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2", "1": "2"}
