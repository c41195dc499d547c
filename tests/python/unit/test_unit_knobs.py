"""Settings by environment variable."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from torchsnapshot import InvalidArgumentError, knobs

MIB = 1 << 20
INTS: list[tuple[str, Callable[[], Any], Callable[[Any], AbstractContextManager[None]], Any]] = [
    ("MAX_CHUNK_SIZE_BYTES_OVERRIDE", knobs.get_max_chunk_size_bytes, knobs.override_max_chunk_size_bytes, 512 * MIB),
    ("MAX_SHARD_SIZE_BYTES_OVERRIDE", knobs.get_max_shard_size_bytes, knobs.override_max_shard_size_bytes, 512 * MIB),
    (
        "SLAB_SIZE_THRESHOLD_BYTES_OVERRIDE",
        knobs.get_slab_size_threshold_bytes,
        knobs.override_slab_size_threshold_bytes,
        128 * MIB,
    ),
    (
        "MAX_PER_RANK_IO_CONCURRENCY_OVERRIDE",
        knobs.get_max_per_rank_io_concurrency,
        knobs.override_max_per_rank_io_concurrency,
        16,
    ),
    (
        "PER_RANK_MEMORY_BUDGET_BYTES",
        knobs.get_per_rank_memory_budget_bytes,
        knobs.override_per_rank_memory_budget_bytes,
        None,
    ),
]
BOOLS: list[tuple[str, Callable[[], bool], Callable[[Any], AbstractContextManager[None]]]] = [
    ("DISABLE_BATCHING", knobs.is_batching_disabled, knobs.override_is_batching_disabled),
    (
        "ENABLE_SHARDED_TENSOR_ELASTICITY_ROOT_ONLY",
        knobs.is_sharded_tensor_elasticity_enabled_at_root_only,
        knobs.override_is_sharded_tensor_elasticity_enabled_at_root_only,
    ),
    ("PROGRESS", knobs.is_progress_enabled, knobs.override_progress),
]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TORCHSNAPSHOT_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(("name", "get", "override", "default"), INTS, ids=lambda v: v if isinstance(v, str) else "")
def test_numbers(name: str, get: Any, override: Any, default: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"TORCHSNAPSHOT_{name}"
    assert get() == default
    with override(12345):
        assert get() == 12345
        assert os.environ[variable] == "12345"
        others = [other() for other_name, other, _, _ in INTS if other_name != name]
        assert 12345 not in others
        with override(7):
            assert get() == 7
        assert get() == 12345
    assert get() == default
    assert variable not in os.environ
    for bad in ["", "many", "1.5", "-1", "1e6", str(1 << 63)]:
        monkeypatch.setenv(variable, bad)
        with pytest.raises(InvalidArgumentError, match=variable):
            get()


@pytest.mark.parametrize(("name", "get", "override"), BOOLS, ids=lambda v: v if isinstance(v, str) else "")
def test_switches(name: str, get: Any, override: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"TORCHSNAPSHOT_{name}"
    assert get() is False
    with override(True):
        assert get() is True
        with override(False):
            assert get() is False
    assert variable not in os.environ
    for text, value in {
        "1": True,
        "True": True,
        " YES ": True,
        "on": True,
        "0": False,
        "False": False,
        "": False,
    }.items():
        monkeypatch.setenv(variable, text)
        assert get() is value
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(InvalidArgumentError, match=f"{variable}='maybe'"):
        get()


def test_an_exception_restores_the_old_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(knobs.MAX_CHUNK_SIZE_ENV_VAR, "99")

    def fail() -> None:
        with knobs.override_max_chunk_size_bytes(1):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert knobs.get_max_chunk_size_bytes() == 99


def test_zero_is_a_limit_only_for_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    with knobs.override_slab_size_threshold_bytes(0):
        assert knobs.get_slab_size_threshold_bytes() == 0
    for override, get in [
        (knobs.override_max_chunk_size_bytes, knobs.get_max_chunk_size_bytes),
        (knobs.override_max_per_rank_io_concurrency, knobs.get_max_per_rank_io_concurrency),
        (knobs.override_per_rank_memory_budget_bytes, knobs.get_per_rank_memory_budget_bytes),
    ]:
        with override(0), pytest.raises(InvalidArgumentError, match="must be from 1"):
            get()


def test_no_budget_inside_a_budget() -> None:
    with knobs.override_per_rank_memory_budget_bytes(5), knobs.override_per_rank_memory_budget_bytes(None):
        assert knobs.get_per_rank_memory_budget_bytes() is None


def test_progress_can_be_forced() -> None:
    assert not knobs.is_progress_forced()
    with knobs.override_progress(True):
        assert not knobs.is_progress_forced()
    with knobs.override_progress("force"):
        assert knobs.is_progress_forced()
        assert knobs.is_progress_enabled()
