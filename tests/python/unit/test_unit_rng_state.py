"""RNGState: every global generator, bit by bit."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torchsnapshot import RNGState, Stateful
from torchsnapshot.test_utils import check_state_dict_eq


def draw() -> tuple[Any, ...]:
    return (torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random(), random.gauss(0, 1))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def test_is_stateful() -> None:
    assert isinstance(RNGState(), Stateful)


@pytest.mark.parametrize("before", range(5))
def test_the_same_numbers_again(before: int) -> None:
    for _ in range(before):
        draw()
    state = copy.deepcopy(RNGState().state_dict())
    first, second = draw(), draw()
    for _ in range(2):
        RNGState().load_state_dict(state)
        assert (draw(), draw()) == (first, second)


def test_taking_the_state_draws_nothing_and_loading_it_gives_it_back() -> None:
    random.gauss(0, 1)  # leaves half a pair behind
    np.random.randn()
    state = RNGState().state_dict()
    assert state["python_rng_state"]["has_gauss"]
    assert state["numpy_rng_state"]["has_gauss"]
    assert check_state_dict_eq(state, RNGState().state_dict())
    RNGState().load_state_dict(copy.deepcopy(state))
    assert check_state_dict_eq(state, RNGState().state_dict())


def test_only_leaves_that_need_no_pickle() -> None:
    state = RNGState().state_dict()
    assert next(iter(state)) == "rng_state"
    assert torch.equal(state["rng_state"], torch.get_rng_state())
    assert all(type(leaf) in (torch.Tensor, int, float, bool, str) for leaf in leaves(state))
    dtypes = {leaf.dtype for leaf in leaves(state) if isinstance(leaf, torch.Tensor)}
    assert dtypes <= {torch.uint8, torch.int64}  # the original can store them


def test_a_state_of_the_original_leaves_the_others_alone() -> None:
    state = {"rng_state": torch.get_rng_state()}
    expected = torch.rand(2)
    draw()
    others = (random.getstate(), np.random.get_state()[2])
    RNGState().load_state_dict(state)
    assert torch.equal(torch.rand(2), expected)
    assert (random.getstate(), np.random.get_state()[2]) == others


def test_a_malformed_state_changes_nothing() -> None:
    state = copy.deepcopy(RNGState().state_dict())
    draw()
    now = RNGState().state_dict()
    with pytest.raises(KeyError):
        RNGState().load_state_dict({"python_rng_state": state["python_rng_state"]})
    del state["python_rng_state"]["version"]
    with pytest.raises(KeyError):
        RNGState().load_state_dict(state)
    assert check_state_dict_eq(now, RNGState().state_dict())


@pytest.mark.parametrize("name", ["PCG64", "Philox", "SFC64", "MT19937"])
def test_other_bit_generators_of_numpy(name: str) -> None:
    if not hasattr(np.random, "set_bit_generator"):
        pytest.skip("numpy has no choice of the global bit generator")
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(getattr(np.random, name)(12345))
    try:
        np.random.randint(10)
        state = copy.deepcopy(RNGState().state_dict())
        expected = np.random.rand(20).tolist()
        RNGState().load_state_dict(state)
        assert np.random.rand(20).tolist() == expected
    finally:
        np.random.set_bit_generator(before)
    if name != "MT19937":
        with pytest.warns(RuntimeWarning, match=f"bit generator {name}, here it is MT19937"):
            RNGState().load_state_dict(state)


def test_numpy_is_left_out_when_it_was_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "numpy")
    assert "numpy_rng_state" not in RNGState().state_dict()


class FakeCuda:
    """CUDA's generators, on a machine without."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int, initialized: bool = True) -> None:
        self.states = [torch.full((16,), device, dtype=torch.uint8) for device in range(devices)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: self.states[device].clone())
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set)

    def set(self, state: torch.Tensor, device: int) -> None:
        assert state.dtype == torch.uint8
        assert state.device.type == "cpu"
        self.states[device] = state.clone()


def test_cuda_generators_of_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, 3)
    state = copy.deepcopy(RNGState().state_dict())
    saved = [tensor.clone() for tensor in cuda.states]
    cuda.states = [tensor + 100 for tensor in cuda.states]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RNGState().load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(cuda.states, saved, strict=True))


def test_cuda_that_is_not_in_use_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, 2, initialized=False)
    assert "cuda_rng_state" not in RNGState().state_dict()


@pytest.mark.parametrize(("here", "restored"), [(1, 1), (5, 3)])
def test_another_number_of_devices(here: int, restored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, 3)
    state = RNGState().state_dict()
    cuda = FakeCuda(monkeypatch, here)
    cuda.states = [torch.full((16,), 99, dtype=torch.uint8) for _ in range(here)]
    with pytest.warns(RuntimeWarning, match=f"of 3 CUDA devices, here are {here}: the first {restored}"):
        RNGState().load_state_dict(state)
    assert [int(tensor[0]) for tensor in cuda.states] == [0, 1, 2, 99, 99][:here] if here > 3 else [0]


def test_no_cuda_here(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, 2)
    state = copy.deepcopy(RNGState().state_dict())
    expected = torch.rand(2)
    FakeCuda(monkeypatch, 0)
    with pytest.warns(RuntimeWarning, match="2 CUDA devices, but CUDA is not available"):
        RNGState().load_state_dict(state)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_real_cuda_generators() -> None:
    torch.rand(1, device="cuda")
    state = copy.deepcopy(RNGState().state_dict())
    expected = torch.rand(1000, device="cuda")
    RNGState().load_state_dict(state)
    assert torch.equal(torch.rand(1000, device="cuda"), expected)
    assert len(state["cuda_rng_state"]) == torch.cuda.device_count()
