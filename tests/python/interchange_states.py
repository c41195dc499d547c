"""States that both sides of the interchange tests build: plain torch, no torchsnapshot. Imported by the original's
interpreter too."""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import nn

PLAIN = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
         torch.uint8, torch.bool]  # fmt: skip
COMPLEX = [torch.complex64, torch.complex128]


def _tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    count = int(torch.Size(shape).numel())
    return ((torch.arange(count) * 7 + 3) % 120).reshape(shape).to(dtype)


def tensors() -> dict[str, Any]:
    state: dict[str, Any] = {}
    for dtype in PLAIN + COMPLEX:
        name = str(dtype).removeprefix("torch.")
        state[f"{name}_matrix"] = _tensor(dtype, 6, 8)
        state[f"{name}_cube"] = _tensor(dtype, 2, 3, 4)
        state[f"{name}_one"] = _tensor(dtype, 1)
        state[f"{name}_scalar"] = _tensor(dtype)
    # The original cannot take a bfloat16 tensor with an odd number of elements.
    for name in ("bfloat16_one", "bfloat16_scalar"):
        del state[name]
    state["special"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    state["nan payload"] = torch.tensor([0x7FC00123, 0x7F800001], dtype=torch.int32).view(torch.float32)
    return state


def views() -> dict[str, Any]:
    base = torch.arange(60.0).reshape(6, 10)
    return {
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "sliced": base[2:4],
        "expanded": torch.arange(3.0).expand(4, 3),
        "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conj": torch.complex(torch.arange(3.0), torch.arange(3.0) + 1).conj(),
        "neg": torch.complex(torch.arange(3.0), torch.arange(3.0) + 1).conj().imag,
    }


def ties() -> dict[str, Any]:
    shared = torch.arange(100.0)
    return {
        "a": shared,
        "b": shared,
        "list": [shared, shared, torch.ones(3)],
        "part": shared[10:20],
        "other": shared + 1,
    }


def equal_content() -> dict[str, Any]:
    """Not the same memory, but the same bytes: a writer that stores equal bytes once is tempted."""
    return {f"t{i}": torch.ones(5) for i in range(4)} | {f"o{i}": (1, "x") for i in range(3)}


def chunked() -> dict[str, Any]:
    return {"big": torch.arange(5000.0).reshape(100, 50), "wide": torch.arange(2000).reshape(1, 2000),
            "small": torch.ones(2),
            "half": torch.arange(3000).to(torch.bfloat16).reshape(50, 60)}  # fmt: skip


def containers() -> dict[str, Any]:
    return {
        "nested": {"a": [1, [2, {"x": torch.arange(3)}]],
        "b": collections.OrderedDict([("z", 1), ("a", torch.ones(2))])},
        "empty": [{}, [], collections.OrderedDict()],
        "ints": {0: "zero", -1: "neg", 10: torch.ones(2)},
        "mixed": {0: 1, "x": 2},
        "a/b": 1, "a%2Fb": {"%": 2, "100%": torch.ones(1)}, "clé/ключ": 3, "[@x]->&y^": 4, " ": 5,
        "long": list(range(15)),
        "quote\"'\\": 6, "tab\t": 7, "null": 8, "1e3": 9, "~": 10, "\u2028": 11, "k" * 900: 12,
        "- a: b": torch.ones(1),
    }  # fmt: skip


def primitives() -> dict[str, Any]:
    return {
        "ints": [0, -7, 2**70, 10**300], "bools": [True, False], "bytes": [b"", bytes(range(256))],
        "floats": [0.1, -0.0, 5e-324, 1e16, float("inf"), float("nan"), 1.7976931348623157e308],
        "texts": ["", "text", "žluť кот 猫", "a\nb\t\"'\\", "null", "1", "x" * 3000, "\x01\x7f\x85\u2028\ufeff",
        "- a: b # c"],
    }  # fmt: skip


def objects() -> dict[str, Any]:
    """What torch.load(weights_only=True), which the original uses, accepts."""
    return {
        "none": None, "tuple": (1, "a", (2.5, None)), "tensors": (torch.arange(3), [torch.ones(2, 2)]), "set": {1, 2},
        "complex": 1 + 2j, "dtype": torch.float16, "size": torch.Size([1, 2]), "device": torch.device("cpu"),
        "float keys": {0.5: "x"}, "tuple keys": {(1, 2): torch.ones(2)}, "colliding": {"0": 1, 0: 2},
        "counter": collections.Counter("aab"), "bytearray": bytearray(b"abc"),
    }  # fmt: skip


def empties() -> dict[str, Any]:
    return {
        "a": torch.empty(0),
        "b": torch.empty(0, 3),
        "c": torch.empty(2, 0, dtype=torch.int64),
        "full": torch.ones(3),
    }


def quantized() -> dict[str, Any]:
    x = torch.linspace(-2, 2, 24).reshape(4, 6)
    scales, points = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    return {
        "tensor": torch.quantize_per_tensor(x, 0.05, 7, torch.qint8),
        "unsigned": torch.quantize_per_tensor(x, 0.05, 50, torch.quint8),
        "wide": torch.quantize_per_tensor(x, 0.05, 7, torch.qint32),
        "channel": torch.quantize_per_channel(x, scales, points, 0, torch.qint8),
    }


def training(steps: int = 2) -> dict[str, Any]:
    """A model, its optimizer and its scheduler, after some steps; the state is what they hold."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(steps):
        model(torch.randn(4, 6)).sum().backward()
        optimizer.step()
        scheduler.step()
    return {"model": model, "optim": optimizer, "sched": scheduler}


STATES = {f.__name__: f for f in (tensors, views, ties, equal_content, chunked, containers, primitives, objects)}
