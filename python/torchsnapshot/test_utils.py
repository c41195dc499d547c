"""Helpers for tests of programs that take snapshots."""

from __future__ import annotations

import asyncio
import functools
import struct
import tempfile
import unittest
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

P = ParamSpec("P")
T = TypeVar("T")

_QUANTIZED_DTYPES = (torch.qint8, torch.quint8, torch.qint32)


def tensor_eq(lhs: Any, rhs: Any) -> bool:
    """True if two tensors are the same in class, dtype, shape, layout and in every bit (so NaN equals NaN).

    Of ShardedTensors and DTensors, the local parts are compared, and how the whole is laid out.
    """
    if not isinstance(lhs, Tensor) and not _is_sharded(lhs):
        raise AssertionError(f"not a tensor: {type(lhs).__qualname__}")
    return _tensor_difference(lhs, rhs) is None


def check_state_dict_eq(lhs: Mapping[Any, Any], rhs: Mapping[Any, Any]) -> bool:
    """True if two state dicts hold the same; tensors and floats are compared by their bits."""
    return _difference(lhs, rhs, "") is None


def assert_state_dict_eq(tc: unittest.TestCase, lhs: Mapping[Any, Any], rhs: Mapping[Any, Any]) -> None:
    """Fails the test case unless check_state_dict_eq(); the message names the first difference."""
    found = _difference(lhs, rhs, "")
    if found is not None:
        tc.fail(f"the state dicts differ at {found}")


def rand_tensor(
    shape: tuple[int, ...] | list[int] | torch.Size,
    dtype: torch.dtype,
    qscheme: torch.qscheme | None = torch.per_tensor_affine,
    channel_axis: int | None = None,
) -> Tensor:
    """A random tensor of any dtype, floats and complex in [0, 1)."""
    shape = tuple(shape)
    if dtype in _QUANTIZED_DTYPES:
        return _rand_quantized(shape, dtype, qscheme, channel_axis or 0)
    if dtype is torch.bool:
        return torch.randint(2, shape, dtype=torch.uint8).to(torch.bool)
    if dtype.is_complex:
        part = torch.float64 if dtype is torch.complex128 else torch.float32
        pair = torch.rand((*shape, 2), dtype=part)
        return torch.view_as_complex(pair.to(torch.float16) if dtype is torch.complex32 else pair)
    if dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return torch.rand(shape, dtype=dtype)
    # The others have no generator of their own; every pattern of bits of an integer or an 8-bit float will do, but
    # for NaNs, whose kind is not kept by conversions in a test.
    bits = torch.randint(256, (*shape, dtype.itemsize), dtype=torch.uint8)
    if dtype.is_floating_point:
        bits &= 0x3F
    return bits.view(dtype).reshape(shape)


def tensor_local_sz_bytes(tensor: Any) -> int:
    """Bytes of the elements that this process holds."""
    if _is_sharded(tensor):
        return sum(tensor_local_sz_bytes(shard.tensor) for shard in tensor.local_shards())
    if not isinstance(tensor, Tensor):
        raise AssertionError(f"not a tensor: {type(tensor).__qualname__}")
    if _is_dtensor(tensor):
        return tensor_local_sz_bytes(tensor.to_local())  # type: ignore[attr-defined]
    return tensor.nelement() * tensor.element_size()


def get_pet_launch_config(nproc: int) -> LaunchConfig:
    """Settings to launch `nproc` processes on this machine with ``torch.distributed.launcher``."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=1,
    )


def run_with_pet(nproc: int) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A decorator: the test runs in `nproc` processes at once, and fails if it fails in one of them.

    The function has to be found by its name in its module, and its arguments have to be picklable.
    """
    return _launching(nproc, _run_in_child)


def run_with_pet_async(nproc: int) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, None]]:
    """As run_with_pet(), for a coroutine function."""
    return _launching(nproc, _run_async_in_child)


def async_test(coro: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """A decorator: a coroutine function as a plain test, on an event loop of its own."""

    @functools.wraps(coro)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return _run_coroutine(coro(*args, **kwargs))

    return wrapper


def _launching(nproc: int, entrypoint: Callable[..., None]) -> Callable[[Callable[P, Any]], Callable[P, None]]:
    def decorate(function: Callable[P, Any]) -> Callable[P, None]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            with _file_store_launch_config(nproc) as config:
                elastic_launch(config, entrypoint=entrypoint)(function.__module__, function.__qualname__, args, kwargs)

        return wrapper

    return decorate


@contextmanager
def _file_store_launch_config(nproc: int) -> Generator[LaunchConfig, None, None]:
    # A store in a file needs no free port, so tests may run beside each other.
    with tempfile.NamedTemporaryFile() as file:
        config = get_pet_launch_config(nproc)
        config.rdzv_configs = {"timeout": 10, "store_type": "file"}
        config.rdzv_endpoint = file.name
        yield config


def _run_in_child(module: str, qualname: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _undecorated(module, qualname)(*args, **kwargs)


def _run_async_in_child(module: str, qualname: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _run_coroutine(_undecorated(module, qualname)(*args, **kwargs))


def _undecorated(module: str, qualname: str) -> Any:
    found = functools.reduce(getattr, qualname.split("."), import_module(module))
    return found.__wrapped__


def _run_coroutine(work: Awaitable[T]) -> T:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def _rand_quantized(shape: tuple[int, ...], dtype: torch.dtype, qscheme: torch.qscheme | None, axis: int) -> Tensor:
    if qscheme == torch.per_tensor_affine:
        return torch.quantize_per_tensor(torch.rand(shape), scale=0.1, zero_point=10, dtype=dtype)
    if qscheme == torch.per_channel_affine:
        channels = shape[axis]
        scales = torch.rand(channels, dtype=torch.float64) + 0.01
        return torch.quantize_per_channel(torch.rand(shape), scales, torch.randint(128, (channels,)), axis, dtype)
    raise AssertionError(f"no random tensor of the scheme {qscheme}")


def _difference(lhs: Any, rhs: Any, path: str) -> str | None:
    """The path of the first difference with a description, or None."""
    place = path or "the root"
    if isinstance(lhs, Tensor) or _is_sharded(lhs):
        found = _tensor_difference(lhs, rhs)
        return f"{place}: {found}" if found else None
    if isinstance(lhs, Mapping):
        if not isinstance(rhs, Mapping):
            return f"{place}: {type(lhs).__qualname__} and {type(rhs).__qualname__}"
        for key in [*lhs, *(key for key in rhs if key not in lhs)]:
            if key not in lhs or key not in rhs:
                return f"{place}: key {key!r} is in one only"
            found = _difference(lhs[key], rhs[key], f"{path}/{key}" if path else str(key))
            if found:
                return found
        return None
    if isinstance(lhs, (list, tuple)):
        if type(lhs) is not type(rhs) or len(lhs) != len(rhs):
            return f"{place}: {_brief(lhs)} and {_brief(rhs)}"
        for index, (left, right) in enumerate(zip(lhs, rhs, strict=True)):
            found = _difference(left, right, f"{path}/{index}" if path else str(index))
            if found:
                return found
        return None
    return None if _leaf_eq(lhs, rhs) else f"{place}: {_brief(lhs)} and {_brief(rhs)}"


def _leaf_eq(lhs: Any, rhs: Any) -> bool:
    if isinstance(lhs, float) and isinstance(rhs, float):
        return struct.pack("<d", lhs) == struct.pack("<d", rhs)
    if hasattr(lhs, "__array_interface__") and hasattr(rhs, "__array_interface__"):
        return bool(
            lhs.dtype == rhs.dtype
            and lhs.shape == rhs.shape
            and (lhs.tolist() == rhs.tolist() if lhs.dtype.hasobject else lhs.tobytes() == rhs.tobytes())
        )
    if isinstance(rhs, Tensor):
        return False
    return bool(lhs == rhs)


def _tensor_difference(lhs: Any, rhs: Any) -> str | None:
    if type(lhs) is not type(rhs):
        return f"{type(lhs).__qualname__} and {type(rhs).__qualname__}"
    if _is_sharded(lhs):
        left, right = lhs.local_shards(), rhs.local_shards()
        if [shard.metadata for shard in left] != [shard.metadata for shard in right]:
            return "the local shards lie differently"
        return _first(_tensor_difference(a.tensor, b.tensor) for a, b in zip(left, right, strict=True))
    if _is_dtensor(lhs):
        if lhs.placements != rhs.placements or lhs.device_mesh != rhs.device_mesh or lhs.shape != rhs.shape:
            return "the DTensors lie differently"
        return _tensor_difference(lhs.to_local(), rhs.to_local())
    if lhs.dtype != rhs.dtype or lhs.shape != rhs.shape or lhs.layout != rhs.layout:
        return f"{lhs.dtype} {tuple(lhs.shape)} {lhs.layout} and {rhs.dtype} {tuple(rhs.shape)} {rhs.layout}"
    if lhs.layout is not torch.strided:
        pairs = zip(_sparse_parts(lhs), _sparse_parts(rhs), strict=True)
        return _first(_tensor_difference(a, b) for a, b in pairs)
    if lhs.is_quantized:
        return _quantized_difference(lhs, rhs)
    return None if _bits_eq(lhs, rhs) else f"other elements, {_brief(lhs)} and {_brief(rhs)}"


def _quantized_difference(lhs: Tensor, rhs: Tensor) -> str | None:
    if lhs.qscheme() != rhs.qscheme():
        return f"{lhs.qscheme()} and {rhs.qscheme()}"
    if lhs.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        if (lhs.q_scale(), lhs.q_zero_point()) != (rhs.q_scale(), rhs.q_zero_point()):
            return "another scale or zero point"
    elif (
        lhs.q_per_channel_axis() != rhs.q_per_channel_axis()
        or not torch.equal(lhs.q_per_channel_scales(), rhs.q_per_channel_scales())
        or not torch.equal(lhs.q_per_channel_zero_points(), rhs.q_per_channel_zero_points())
    ):
        return "another axis, other scales or zero points"
    return None if _bits_eq(lhs.int_repr(), rhs.int_repr()) else "other elements"


def _sparse_parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]


def _bits_eq(lhs: Tensor, rhs: Tensor) -> bool:
    return torch.equal(_bits(lhs), _bits(rhs))


def _bits(tensor: Tensor) -> Tensor:
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # as_subclass: a subclass may have its own idea of view().
    return dense.as_subclass(Tensor).reshape(-1).view(torch.uint8)


def _first(found: Generator[str | None, None, None]) -> str | None:
    return next((text for text in found if text), None)


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # of some dtypes, torch can't print the elements
        text = f"a {type(value).__qualname__}"
    return text if len(text) <= 200 else f"{text[:200]}…"


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "local_shards")


def _is_dtensor(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "placements") and hasattr(value, "device_mesh")
