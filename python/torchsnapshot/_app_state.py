"""What the extension asks of torch: the calls from C++ into Python, one function each.

They are called with the GIL held, :func:`to_host` and :func:`to_device` by engine threads as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import serialization
from ._sharding import describe_sharded, is_sharded
from .errors import CorruptSnapshotError, TypeMismatchError, UnsupportedError

__all__ = [
    "allocate",
    "cuda_stream",
    "decode_tensor",
    "describe_sharded",
    "describe_tensor",
    "deserialize",
    "encode_tensor",
    "fill",
    "prepare_tensor",
    "serialize",
    "to_device",
    "to_host",
]

PrepareFn = Callable[[str, torch.Tensor, bool], torch.Tensor]
# data_ptr, dtype, shape, strides, on the CPU
Description = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...], bool]


_UNINITIALIZED = (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)
_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32)


def describe_tensor(tensor: torch.Tensor) -> Description | None:
    """Where a plain strided tensor lies; None for one that :func:`encode_tensor` must look at."""
    if (
        is_sharded(tensor)
        or tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.is_meta
        or tensor.is_conj()
        or tensor.is_neg()
        or _has_no_memory_of_its_own(tensor)
    ):
        return None
    return (
        tensor.data_ptr(),
        tensor.dtype,
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.device.type == "cpu",
    )


def cuda_stream(tensor: torch.Tensor) -> tuple[int, int] | None:
    """The CUDA device of `tensor` and the stream that the program uses there now; None for other devices."""
    device = tensor.device
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _has_no_memory_of_its_own(tensor: torch.Tensor) -> bool:
    return (
        tensor.is_nested
        or is_traceable_wrapper_subclass(tensor)
        or isinstance(tensor, (_UNINITIALIZED, torch._subclasses.FakeTensor))
    )


def prepare_tensor(prepare: PrepareFn, path: str, tensor: torch.Tensor) -> torch.Tensor:
    """Calls the user's ``_custom_tensor_prepare_func``."""
    prepared = prepare(path, tensor, False)
    if not isinstance(prepared, torch.Tensor):
        raise TypeMismatchError(
            f"_custom_tensor_prepare_func returned {type(prepared).__name__} for '{path}', not a tensor"
        )
    return prepared


def encode_tensor(tensor: torch.Tensor, path: str, saving: bool) -> tuple[Any, ...]:
    """How to handle a tensor that is no plain memory.

    ``("tensor", t)``: as the plain tensor `t`. ``("encoded", dtype, shape, serializer, bytes)``: as these bytes (None
    unless saving). ``("deferred", dtype, shape)``: restore into a new tensor, then :func:`fill` this one.
    ``("object",)``: as a pickled object. ``("sharded",)``: see :func:`describe_sharded`.
    """
    if is_sharded(tensor):
        return ("sharded",)
    if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        remedy = (
            "materialize it (to_empty, or load its weights) before taking a snapshot"
            if saving
            else "give it memory before restoring (module.to_empty(device='cpu'))"
        )
        raise UnsupportedError(f"'{path}' is a meta tensor, which has no data: {remedy}")
    if isinstance(tensor, _UNINITIALIZED):
        if saving:
            raise UnsupportedError(
                f"'{path}' is an uninitialized parameter, which has no data: "
                "run the lazy module once before taking a snapshot"
            )
        return ("object",)
    if tensor.layout is not torch.strided or _has_no_memory_of_its_own(tensor):
        return ("object",)
    if tensor.is_quantized:
        if tensor.dtype not in _QUANTIZED:  # quint4x2 …
            return ("object",)
        if not saving:
            return ("encoded", tensor.dtype, tuple(tensor.shape), "", None)
        # The form that the original writes, and the only one that its present version reads.
        return ("encoded", tensor.dtype, tuple(tensor.shape), "torch_save", serialization.dumps(tensor))
    if tensor.is_conj() or tensor.is_neg():
        if saving:
            return ("tensor", tensor.detach().resolve_conj().resolve_neg())
        return ("deferred", tensor.dtype, tuple(tensor.shape))
    # A dtype that the engine does not know.
    return ("object",)


def decode_tensor(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    parts: list[tuple[tuple[int, ...], tuple[int, ...], str, bytes]],
    path: str,
    location: str,
) -> torch.Tensor:
    """The tensor that is stored in encoded parts ``(offsets, sizes, serializer, bytes)``, as a new one."""
    with _naming_object(location):
        decoded = [
            (offsets, serialization.decode_tensor(serializer, data, str(dtype), sizes, path))
            for offsets, sizes, serializer, data in parts
        ]
    if len(decoded) == 1 and tuple(decoded[0][1].shape) == shape:
        return decoded[0][1]
    result = torch.empty(shape, dtype=dtype)
    for offsets, part in decoded:
        region = result
        for dim, (offset, size) in enumerate(zip(offsets, part.shape, strict=False)):
            region = region.narrow(dim, offset, size)
        region.copy_(part)
    return result


@contextmanager
def _naming_object(location: str) -> Iterator[None]:
    """Adds the object that the bytes came from to the error that they are malformed."""
    try:
        yield
    except CorruptSnapshotError as error:
        raise CorruptSnapshotError(f"{error} (object '{location}')") from error


def fill(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Copies `source` into `target` and returns it; returns `source` where a copy would not give the same value."""
    if target.is_quantized and not _same_quantizer(target, source):
        return source
    with torch.no_grad():
        target.detach().copy_(source)
    return target


def _same_quantizer(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not b.is_quantized or a.qscheme() != b.qscheme():
        return False
    if a.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return a.q_scale() == b.q_scale() and a.q_zero_point() == b.q_zero_point()
    return (
        a.q_per_channel_axis() == b.q_per_channel_axis()
        and torch.equal(a.q_per_channel_scales(), b.q_per_channel_scales())
        and torch.equal(a.q_per_channel_zero_points(), b.q_per_channel_zero_points())
    )


def serialize(obj: object, path: str) -> tuple[str, bytes]:
    """Name of the type, and the object as ``torch.save`` writes it."""
    try:
        return serialization.type_name(obj), serialization.dumps(obj)
    except Exception as error:
        raise UnsupportedError(
            f"'{path}' of type {serialization.type_name(obj)} can't be serialized: {type(error).__name__}: {error}"
        ) from error


def deserialize(data: bytes, serializer: str, path: str, location: str, weights_only: bool) -> object:
    """The inverse of :func:`serialize`."""
    if serializer != "torch_save":
        raise UnsupportedError(f"entry '{path}' has the unknown serializer '{serializer}'")
    with _naming_object(location):
        return serialization.loads(data, path, weights_only=weights_only)


def allocate(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Memory for restored data that has no target."""
    return torch.empty(shape, dtype=dtype)


def _view(owner: torch.Tensor, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """The part of a device tensor that an engine view means."""
    owner = owner.detach()
    offset = owner.storage_offset() + (address - owner.data_ptr()) // owner.element_size()
    return owner.as_strided(shape, strides, offset)


def to_host(
    owner: torch.Tensor,
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    begin: int,
    out: memoryview,
) -> None:
    """Copies the bytes from `begin` on of a device view's elements, in row-major order, to `out`."""
    view = _view(owner, address, shape, strides)
    first, count = begin // view.element_size(), len(out) // view.element_size()
    host = _host_tensor(out, view.dtype)
    with torch.no_grad(), _in_turn(view.device):
        if view.is_contiguous():
            host.copy_(view.view(-1)[first : first + count])
        else:
            host.copy_(view[_places(view, first, count)])


def to_device(
    owner: torch.Tensor,
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    begin: int,
    data: memoryview,
) -> None:
    """The inverse of :func:`to_host`."""
    view = _view(owner, address, shape, strides)
    first, count = begin // view.element_size(), len(data) // view.element_size()
    host = _host_tensor(data, view.dtype)
    with torch.no_grad(), _in_turn(view.device):
        if view.is_contiguous():
            view.view(-1)[first : first + count].copy_(host)
        else:
            view.index_put_(_places(view, first, count), host.to(view.device))


def _places(view: torch.Tensor, first: int, count: int) -> tuple[torch.Tensor, ...]:
    """Where the elements from `first` on lie."""
    return torch.unravel_index(torch.arange(first, first + count, device=view.device), view.shape)


@contextmanager
def _in_turn(device: torch.device) -> Iterator[None]:
    """After all that the device was told by any thread, on whatever stream, and over at the end."""
    synchronize = getattr(getattr(torch, device.type, None), "synchronize", None)
    if device.type in ("cpu", "mps") or synchronize is None:  # with one stream, or none
        yield
        return
    synchronize(device)
    try:
        yield
    finally:
        synchronize(device)


def _host_tensor(memory: memoryview, dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable": a source is only read
        return torch.frombuffer(memory, dtype=dtype)
