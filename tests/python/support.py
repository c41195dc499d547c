"""Helpers of the suite: bit-exact comparison, hand-made snapshots, and a look at what lies on disk."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torchsnapshot import Snapshot, StateDict

METADATA = ".snapshot_metadata"
SIDECARS = ".torchsnapshot"
CORPUS = pathlib.Path(__file__).resolve().parents[1] / "data" / "corpus"
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


# --- comparing ------------------------------------------------------------------------------------------------------


def bits(tensor: torch.Tensor) -> bytes:
    """The elements of a dense tensor as they would be stored: row-major, any dtype."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if tensor.numel() == 0:
        return b""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor_difference(a: torch.Tensor, b: torch.Tensor) -> str | None:
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return f"{a.dtype} {tuple(a.shape)} {a.layout} is not {b.dtype} {tuple(b.shape)} {b.layout}"
    if a.layout == torch.sparse_coo:
        if a.is_coalesced() != b.is_coalesced():
            return "one is coalesced, the other is not"
        parts = [(a._indices(), b._indices()), (a._values(), b._values())]
    elif a.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [(a.crow_indices(), b.crow_indices()), (a.col_indices(), b.col_indices()), (a.values(), b.values())]
    elif a.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [(a.ccol_indices(), b.ccol_indices()), (a.row_indices(), b.row_indices()), (a.values(), b.values())]
    else:
        parts = []
    if parts:
        return next((d for d in (_tensor_difference(x, y) for x, y in parts) if d), None)
    if a.is_quantized:
        if a.qscheme() != b.qscheme():
            return f"{a.qscheme()} is not {b.qscheme()}"
        if a.qscheme() == torch.per_tensor_affine:
            if (a.q_scale(), a.q_zero_point()) != (b.q_scale(), b.q_zero_point()):
                return "scale or zero point differs"
        elif (
            a.q_per_channel_axis() != b.q_per_channel_axis()
            or not torch.equal(a.q_per_channel_scales(), b.q_per_channel_scales())
            or not torch.equal(a.q_per_channel_zero_points(), b.q_per_channel_zero_points())
        ):
            return "axis, scales or zero points differ"
    return None if bits(a) == bits(b) else f"elements differ:\n{a}\n{b}"


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """The first place where two values are not the same in type and in every bit, or None."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        found = _tensor_difference(a, b)
        return f"{path}: {found}" if found else None
    if type(a) is not type(b):
        return f"{path}: {type(a)} is not {type(b)} ({a!r:.80} and {b!r:.80})"
    if isinstance(a, (dict, collections.OrderedDict)):
        if list(map(repr, a)) != list(map(repr, b)) or [type(k) for k in a] != [type(k) for k in b]:
            return f"{path}: keys {list(a)!r:.200} are not {list(b)!r:.200}"
        if isinstance(a, collections.defaultdict) and a.default_factory != b.default_factory:
            return f"{path}: another default factory"
        pairs = [(f"{path}/{k}", v, w) for (k, v), w in zip(a.items(), b.values(), strict=True)]
    elif isinstance(a, (list, tuple, collections.deque)):
        if len(a) != len(b) or getattr(a, "maxlen", None) != getattr(b, "maxlen", None):
            return f"{path}: length {len(a)} is not {len(b)}"
        pairs = [(f"{path}/{i}", v, w) for i, (v, w) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, float):
        return None if struct.pack("<d", a) == struct.pack("<d", b) else f"{path}: {a!r} is not {b!r}"
    elif isinstance(a, complex):
        return difference((a.real, a.imag), (b.real, b.imag), path)
    elif isinstance(a, (np.ndarray, np.generic)):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return None if same else f"{path}: {a!r} is not {b!r}"
    else:
        return None if a == b else f"{path}: {a!r:.200} is not {b!r:.200}"
    return next((d for d in (difference(v, w, p) for p, v, w in pairs) if d), None)


def assert_same(actual: Any, expected: Any) -> None:
    found = difference(actual, expected)
    assert found is None, found


# --- taking and restoring -------------------------------------------------------------------------------------------


class Box:
    """A Stateful whose state is any value; loads nothing but remembers what it was given."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.loads = 0

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, state_dict: Any) -> None:
        self.value = state_dict
        self.loads += 1


def round_trip(path: str, value: Any, **restore_options: Any) -> Any:
    """Takes {"state": {"v": value}} and restores it where there is nothing yet."""
    Snapshot.take(path, {"state": StateDict(v=value)})
    return restored(path, **restore_options)["v"]


def restored(path: str, key: str = "state", **restore_options: Any) -> dict[Any, Any]:
    """The state of one key, restored into an empty StateDict."""
    target = StateDict()
    Snapshot(path).restore({key: target}, **restore_options)
    return target.data


def zeroed(value: Any) -> Any:
    """The same tree with zeros in every tensor: a target of the right shapes and the wrong content."""
    if isinstance(value, torch.Tensor):
        if value.is_quantized:
            zero = torch.dequantize(value) * 0
            if value.qscheme() == torch.per_tensor_affine:
                return torch.quantize_per_tensor(zero, value.q_scale() * 2, 1, value.dtype)
            scales = value.q_per_channel_scales() * 2
            points = torch.zeros_like(value.q_per_channel_zero_points())
            return torch.quantize_per_channel(zero, scales, points, value.q_per_channel_axis(), value.dtype)
        return torch.zeros_like(value.detach())
    if type(value) in (dict, collections.OrderedDict):
        return type(value)((k, zeroed(v)) for k, v in value.items())
    return [zeroed(v) for v in value] if type(value) is list else value


def tensors_of(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """The tensors of dicts and lists, by path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items: Any = ()
    if isinstance(value, dict) and all(type(k) in (str, int) for k in value):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return {p: t for k, v in items for p, t in tensors_of(v, f"{path}/{k}" if path else str(k)).items()}


def encoded(component: Any) -> str:
    """A key as it stands in a path of the manifest."""
    return str(component).replace("%", "%25").replace("/", "%2F")


# --- what lies on disk ----------------------------------------------------------------------------------------------


def raw_metadata(path: str) -> dict[str, Any]:
    with open(os.path.join(path, METADATA), encoding="utf-8") as file:
        return json.load(file)


def files_below(path: str | pathlib.Path) -> dict[str, int]:
    """Every file below a folder (nothing if there is none), by relative path, with its size."""
    root = pathlib.Path(path)
    return {str(p.relative_to(root)): p.stat().st_size for p in sorted(root.rglob("*")) if not p.is_dir()}


def data_files(path: str) -> dict[str, int]:
    """The data objects: neither metadata nor sidecars."""
    return {n: s for n, s in files_below(path).items() if n != METADATA and not n.startswith(SIDECARS + "/")}


def tensor_entries(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every stored piece: plain tensors, chunks and shards."""
    found = []
    for path, entry in manifest.items():
        if entry["type"] == "Tensor":
            found.append((path, entry))
        found += [(path, piece["tensor"]) for piece in entry.get("chunks", []) + entry.get("shards", [])]
    return found


def stored_bytes(path: str, entry: dict[str, Any]) -> bytes:
    """The bytes that an entry of the manifest points to."""
    data = (pathlib.Path(path) / entry["location"]).read_bytes()
    return data if entry.get("byte_range") is None else data[slice(*entry["byte_range"])]


# --- snapshots made by hand -----------------------------------------------------------------------------------------


def tensor_entry(location: str, dtype: str, shape: list[int], byte_range: list[int] | None = None) -> dict[str, Any]:
    return {
        "type": "Tensor",
        "location": location,
        "serializer": "buffer_protocol",
        "dtype": dtype,
        "shape": shape,
        "replicated": False,
        "byte_range": byte_range,
    }


def write_snapshot(
    path: str, manifest: dict[str, Any], files: dict[str, bytes] | None = None, world_size: int = 1
) -> None:
    """A snapshot with this manifest and these objects."""
    root = pathlib.Path(path)
    root.mkdir(parents=True, exist_ok=True)
    for name, data in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    text = json.dumps({"version": "0.1.0", "world_size": world_size, "manifest": manifest}, indent=2)
    (root / METADATA).write_text(text, encoding="utf-8")


# --- errors ---------------------------------------------------------------------------------------------------------

CLEAR = (RuntimeError, ValueError, TypeError, OSError, KeyError)


def check_message(error: BaseException, *needles: str) -> None:
    """A message for people: some text, and each needle (a regular expression) in it or in its causes."""
    text, cause = "", error
    while cause is not None:
        text += f"{cause}\n"
        cause = cause.__cause__
    assert len(text.strip()) > 10, f"no message: {error!r}"
    for needle in needles:
        assert re.search(needle, text), f"{needle!r} is not in {type(error).__name__}: {text}"


class raises_clearly:  # noqa: N801 - reads as pytest.raises does
    """Context: an exception of a sensible class comes, and its message has all needles."""

    def __init__(self, *needles: str, kind: type[BaseException] | tuple[type[BaseException], ...] = CLEAR) -> None:
        self.needles = needles
        self.raises = pytest.raises(kind)

    def __enter__(self) -> pytest.ExceptionInfo[BaseException]:
        return self.raises.__enter__()

    def __exit__(self, *details: Any) -> bool:
        handled = self.raises.__exit__(*details)
        if handled:
            check_message(details[1], *self.needles)
        return bool(handled)


# --- other processes ------------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: str, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter that finds the same packages."""
    environment = {**os.environ, **options.pop("env", {})}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in [*sys.path] if p)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
        **options,
    )
