"""Objects and special tensors as bytes, and back.

Objects are stored as ``torch.save`` archives and read by ``torch.load(weights_only=True)``, or by an unpickler that is
as strict and knows numpy and more of the standard library (see _restricted_unpickler.py). A class that is not known to
be harmless is refused, with the remedies in the message.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from math import prod
from types import SimpleNamespace
from typing import Any

import torch

from . import _object_pickler, _restricted_unpickler
from ._restricted_unpickler import GlobalNotAllowedError
from .errors import CorruptSnapshotError, ObjectNotAllowedError, UnsupportedError

TORCH_SAVE = "torch_save"
PER_TENSOR_QTENSOR = "per_tensor_qtensor"
PER_CHANNEL_QTENSOR = "per_channel_qtensor"

_ZIP_MAGIC = b"PK\x03\x04"
_PROTOCOL = 2  # torch's own; its weights-only unpickler reads no other
_PROTOCOL_FOR_LARGE = 4  # the first that can hold more than 4 GiB in one value
_INTEGERS = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
_QUANTIZED_BY_NAME = {str(dtype): dtype for dtype in _INTEGERS}


def type_name(obj: object) -> str:
    """Module and qualified name of the class, for people: ``builtins.tuple``."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def dumps(obj: object) -> bytes:
    """The object as a ``torch.save`` archive; equal simple objects give equal bytes.

    Raises what pickle raises for an object that can't be serialized.
    """
    try:
        return _save(obj, _object_pickler.Pickler, _PROTOCOL)
    except RecursionError:
        return _save(obj, _object_pickler.PlainPickler, _PROTOCOL)
    except OverflowError:
        return _save(obj, _object_pickler.Pickler, _PROTOCOL_FOR_LARGE)


def loads(data: bytes | bytearray | memoryview, entry_path: str = "", weights_only: bool = True) -> Any:
    """The object of a ``torch.save`` archive, with its tensors on the CPU.

    Args:
        data: the archive.
        entry_path: the entry's path, for messages.
        weights_only: False runs whatever code the archive names: only for a snapshot that you trust.

    Raises:
        ObjectNotAllowedError: the archive needs a class or function that is not allowed.
        CorruptSnapshotError: the bytes are malformed.
        UnsupportedError: a class of the archive can't be imported (only without `weights_only`).
    """
    data = bytes(data)
    if not data.startswith(_ZIP_MAGIC):
        raise _corrupt(entry_path, "not a torch.save archive")
    if not weights_only:
        return _load_trusted(data, entry_path)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        # Only a pickle that torch refuses gets here, never a TorchScript archive: the second reader can rely on it.
        return _load_restricted(data, entry_path, error)
    except Exception as error:
        raise _corrupt(entry_path, error) from error


def decode_tensor(
    serializer: str,
    data: bytes | bytearray | memoryview,
    dtype_name: str,
    shape: list[int] | tuple[int, ...],
    entry_path: str = "",
) -> torch.Tensor:
    """A tensor of its own memory, on the CPU, from bytes in the form `serializer`.

    Raises CorruptSnapshotError if the bytes don't hold a tensor of that dtype and shape, UnsupportedError for an
    unknown serializer.
    """
    if any(size < 0 for size in shape):
        raise _corrupt(entry_path, f"negative size in shape {list(shape)}")
    if serializer == TORCH_SAVE:
        return _decode_saved(data, dtype_name, shape, entry_path)
    if serializer not in (PER_TENSOR_QTENSOR, PER_CHANNEL_QTENSOR):
        raise UnsupportedError(f"{_entry(entry_path)}: unknown serializer {serializer!r} of a tensor")
    dtype = _QUANTIZED_BY_NAME.get(dtype_name)
    if dtype is None:
        raise _corrupt(entry_path, f"serializer {serializer} with dtype {dtype_name}")
    decode = _decode_per_tensor if serializer == PER_TENSOR_QTENSOR else _decode_per_channel
    return decode(memoryview(data), _INTEGERS[dtype], list(shape), entry_path)


def _save(obj: object, pickler: type[pickle.Pickler], protocol: int) -> bytes:
    # torch.save takes whatever looks like the module pickle.
    module = SimpleNamespace(Pickler=pickler, __name__=_object_pickler.__name__)
    buffer = io.BytesIO()
    torch.save(obj, buffer, pickle_module=module, pickle_protocol=protocol)
    return buffer.getvalue()


def _load_trusted(data: bytes, entry_path: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except MemoryError:
        raise
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"{_entry(entry_path)}: the object needs a class that can't be imported here: {error}"
        ) from error
    except Exception as error:
        raise _corrupt(entry_path, error) from error


def _load_restricted(data: bytes, entry_path: str, refusal: pickle.UnpicklingError) -> Any:
    if os.getenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        raise ObjectNotAllowedError(
            f"{_entry(entry_path)}: torch refuses the object, and TORCH_FORCE_WEIGHTS_ONLY_LOAD is set, which rules "
            f"out any other reader: {refusal}"
        ) from refusal
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", pickle_module=_restricted_unpickler, weights_only=False)
    except MemoryError:
        raise
    except GlobalNotAllowedError as error:
        short = error.name.rpartition(".")[2]
        raise ObjectNotAllowedError(
            f"{_entry(entry_path)}: the object needs {error.name}, which is not allowed by default. If you trust it: "
            f"torch.serialization.add_safe_globals([{short}]) before restoring; if you trust the whole snapshot: "
            "restore with weights_only=False, which lets the objects in it run any code"
        ) from None
    except Exception as error:
        raise _corrupt(entry_path, error) from error


def _decode_saved(
    data: bytes | bytearray | memoryview, dtype_name: str, shape: list[int] | tuple[int, ...], entry_path: str
) -> torch.Tensor:
    tensor = loads(data, entry_path)
    if not isinstance(tensor, torch.Tensor):
        raise _corrupt(entry_path, f"a {type_name(tensor)} is stored instead of a tensor")
    if str(tensor.dtype) != dtype_name or list(tensor.shape) != list(shape):
        raise _corrupt(
            entry_path,
            f"{tensor.dtype} {list(tensor.shape)} is stored instead of {dtype_name} {list(shape)}",
        )
    return tensor


def _decode_per_tensor(data: memoryview, integer: torch.dtype, shape: list[int], entry_path: str) -> torch.Tensor:
    size = prod(shape) * integer.itemsize
    _check_size(data, size + 16, entry_path)
    elements = _tensor(data[:size], integer, shape)
    scale, zero_point = struct.unpack("<dq", data[size:])
    return _quantized(entry_path, torch._make_per_tensor_quantized_tensor, elements, scale, zero_point)


def _decode_per_channel(data: memoryview, integer: torch.dtype, shape: list[int], entry_path: str) -> torch.Tensor:
    if len(data) < 8:
        raise _corrupt(entry_path, f"{len(data)} bytes are too few for a per-channel quantized tensor")
    axis = struct.unpack("<q", data[:8])[0]
    if not 0 <= axis < len(shape):
        raise _corrupt(entry_path, f"axis {axis} of a per-channel quantized tensor of shape {shape}")
    channels, size = shape[axis], prod(shape) * integer.itemsize
    _check_size(data, 8 + size + 16 * channels, entry_path)
    elements = _tensor(data[8 : 8 + size], integer, shape)
    scales_end = 8 + size + 8 * channels
    scales = _tensor(data[8 + size : scales_end], torch.float64, [channels])
    zero_points = _tensor(data[scales_end:], torch.int64, [channels])
    return _quantized(entry_path, torch._make_per_channel_quantized_tensor, elements, scales, zero_points, axis)


def _quantized(entry_path: str, make: Any, *args: Any) -> torch.Tensor:
    try:
        tensor: torch.Tensor = make(*args)
    except (RuntimeError, ValueError) as error:  # torch checks zero points
        raise _corrupt(entry_path, error) from error
    return tensor


def _check_size(data: memoryview, expected: int, entry_path: str) -> None:
    if len(data) != expected:
        raise _corrupt(entry_path, f"{len(data)} bytes are stored for a quantized tensor that has {expected}")


def _tensor(data: memoryview, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _entry(entry_path: str) -> str:
    return f"entry '{entry_path}'" if entry_path else "object"


def _corrupt(entry_path: str, cause: object) -> CorruptSnapshotError:
    detail = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)
    return CorruptSnapshotError(f"{_entry(entry_path)} is corrupt: {detail}")
