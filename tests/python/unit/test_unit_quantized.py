"""Quantized tensors as bytes, byte for byte as docs/format.md says, and tensors that were saved by torch.save."""

from __future__ import annotations

import io
import random
import struct
import warnings
from typing import Any

import pytest
import torch
from torchsnapshot import CorruptSnapshotError, ObjectNotAllowedError, UnsupportedError
from torchsnapshot.serialization import decode_tensor
from torchsnapshot.test_utils import rand_tensor, tensor_eq

DTYPES = [torch.qint8, torch.quint8, torch.qint32]
SCHEMES = [torch.per_tensor_affine, torch.per_channel_affine]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch announces the end of quantized tensors
        yield


def raw(tensor: torch.Tensor) -> bytes:
    dense = tensor.cpu().contiguous().reshape(-1)
    return bytes(dense.view(torch.uint8).numpy().data) if dense.numel() else b""


def encode_quantized(tensor: torch.Tensor) -> tuple[str, bytes]:
    """The form that old versions of the original wrote."""
    elements = raw(tensor.detach().int_repr())
    if tensor.qscheme() == torch.per_tensor_affine:
        return "per_tensor_qtensor", elements + struct.pack("<dq", tensor.q_scale(), tensor.q_zero_point())
    axis = struct.pack("<q", tensor.q_per_channel_axis())
    scales = raw(tensor.q_per_channel_scales().to(torch.float64))
    zero_points = raw(tensor.q_per_channel_zero_points().to(torch.int64))
    return "per_channel_qtensor", axis + elements + scales + zero_points


def decoded(tensor: torch.Tensor) -> torch.Tensor:
    serializer, data = encode_quantized(tensor)
    return decode_tensor(serializer, data, str(tensor.dtype), list(tensor.shape), "0/q")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_tensors_come_back(dtype: torch.dtype, scheme: torch.qscheme) -> None:
    rng = random.Random(1)
    for _ in range(60):
        shape = tuple(rng.randint(1, 6) for _ in range(rng.randint(1, 4)))
        tensor = rand_tensor(shape, dtype, scheme, rng.randrange(len(shape)))
        back = decoded(tensor)
        assert tensor_eq(back, tensor)
        back.copy_(rand_tensor(shape, dtype, scheme, 0) if scheme == torch.per_tensor_affine else back)  # writable


def test_per_tensor_bytes() -> None:
    tensor = torch.quantize_per_tensor(torch.tensor([[1.0, -2.0, 3.0]]), 0.5, 3, torch.qint8)
    serializer, data = encode_quantized(tensor)
    assert serializer == "per_tensor_qtensor"
    assert data == bytes([5, 256 - 1, 9]) + struct.pack("<d", 0.5) + struct.pack("<q", 3)


def test_per_channel_bytes() -> None:
    scales, points = torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([1, 2])
    tensor = torch.quantize_per_channel(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), scales, points, 1, torch.qint32)
    serializer, data = encode_quantized(tensor)
    assert serializer == "per_channel_qtensor"
    assert data == struct.pack("<q4i2d2q", 1, 3, 6, 5, 10, 0.5, 0.25, 1, 2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_odd_layouts(scheme: torch.qscheme) -> None:
    for tensor in [
        *([rand_tensor((3, 4), torch.qint8, scheme).t()] if scheme == torch.per_tensor_affine else []),
        *([rand_tensor((5, 4), torch.qint8, scheme)[:, 1:3]] if scheme == torch.per_tensor_affine else []),
        rand_tensor((6, 4), torch.quint8, scheme, 1),
        rand_tensor((5,), torch.qint32, scheme, 0),
    ]:
        assert tensor_eq(decoded(tensor), tensor)


def test_empty_and_0d() -> None:
    for shape in [(0,), (0, 3), (2, 0), ()]:
        tensor = torch.quantize_per_tensor(torch.rand(shape), 0.1, 1, torch.quint8)
        assert tensor_eq(decoded(tensor), tensor)


def test_scales_keep_every_bit() -> None:
    scale = 0.1234567890123456789
    tensor = torch.quantize_per_tensor(torch.rand(3), scale, -7, torch.qint8)
    assert (decoded(tensor).q_scale(), decoded(tensor).q_zero_point()) == (scale, -7)


PT = struct.pack("<3bdq", 1, 2, 3, 0.5, 0)
PC = struct.pack("<q3b3d3q", 0, 1, 2, 3, 0.5, 0.5, 0.5, 0, 0, 0)


@pytest.mark.parametrize(
    ("serializer", "data", "dtype", "shape", "message"),
    [
        ("per_tensor_qtensor", PT[:-1], "torch.qint8", [3], "18 bytes are stored .* has 19"),
        ("per_tensor_qtensor", PT + b"x", "torch.qint8", [3], "20 bytes"),
        ("per_tensor_qtensor", PT, "torch.qint32", [3], "19 bytes .* has 28"),
        ("per_tensor_qtensor", b"", "torch.qint8", [0], "0 bytes"),
        ("per_tensor_qtensor", PT, "torch.float32", [3], "with dtype torch.float32"),
        ("per_tensor_qtensor", PT, "torch.qint8", [-3, -1], "negative size"),
        ("per_channel_qtensor", PC[:7], "torch.qint8", [3], "7 bytes are too few"),
        ("per_channel_qtensor", PC[:-8], "torch.qint8", [3], "51 bytes .* has 59"),
        ("per_channel_qtensor", b"\x01" + PC[1:], "torch.qint8", [3], "axis 1"),
        ("per_channel_qtensor", b"\xff" * 8 + PC[8:], "torch.qint8", [3], "axis -1"),
        ("per_channel_qtensor", PC, "torch.qint8", [], "axis 0"),
        ("per_channel_qtensor", PC, "torch.qint8", [1 << 40, 1 << 40], "has 1208925"),
        ("torch_save", b"no archive", "torch.complex64", [1], "not a torch.save archive"),
    ],
)
def test_malformed(serializer: str, data: bytes, dtype: str, shape: list[int], message: str) -> None:
    with pytest.raises(CorruptSnapshotError, match=f"entry '0/q' is corrupt: .*{message}"):
        decode_tensor(serializer, data, dtype, shape, "0/q")
    assert decode_tensor("per_tensor_qtensor", PT, "torch.qint8", [3]).shape == (3,)
    assert decode_tensor("per_channel_qtensor", PC, "torch.qint8", [3]).shape == (3,)


def test_unknown_serializer() -> None:
    with pytest.raises(UnsupportedError, match=r"'0/q'.*'pickle5'"):
        decode_tensor("pickle5", b"", "torch.qint8", [0], "0/q")


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.float32, torch.uint16, torch.float8_e5m2])
def test_tensors_that_torch_saved(dtype: torch.dtype) -> None:
    tensor = rand_tensor((2, 3), dtype)
    assert tensor_eq(decode_tensor("torch_save", saved(tensor), str(dtype), [2, 3], "0/c"), tensor)
    for other_dtype, shape in [("torch.int64", [2, 3]), (str(dtype), [3, 2]), (str(dtype), [6])]:
        with pytest.raises(CorruptSnapshotError, match=r"'0/c'.*is stored instead of"):
            decode_tensor("torch_save", saved(tensor), other_dtype, shape, "0/c")


def test_no_tensor_in_the_archive_of_a_tensor() -> None:
    with pytest.raises(CorruptSnapshotError, match=r"a builtins\.list is stored instead of a tensor"):
        decode_tensor("torch_save", saved([1]), "torch.float32", [1], "0/c")
    with pytest.raises(ObjectNotAllowedError):
        decode_tensor("torch_save", saved(io.BytesIO), "torch.float32", [1], "0/c")
