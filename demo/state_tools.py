"""Trees of state compared and hashed bit by bit, without the library that is being shown."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts, lists and tuples with its path. An empty container is a leaf."""
    if isinstance(tree, Mapping):
        children = [(repr(key), child) for key, child in tree.items()]
    elif isinstance(tree, (list, tuple)):
        children = [(str(index), child) for index, child in enumerate(tree)]
    else:
        children = []
    if not children:
        yield path, tree
    for name, child in children:
        yield from leaves(child, f"{path}/{name}" if path else name)


def tensor_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a CPU tensor, row-major, as uint8."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True)
class Digest:
    """SHA-256 over every path, type and bit of a tree."""

    sha256: str
    tensors: int
    tensor_bytes: int
    other_leaves: int


def digest(tree: Any) -> Digest:
    """Raises TypeError for a leaf that can't be hashed exactly."""
    sha = hashlib.sha256()
    tensors = total = others = 0
    for path, leaf in leaves(tree):
        if isinstance(leaf, torch.Tensor):
            raw = tensor_bytes(leaf)
            text = f"{leaf.dtype} {tuple(leaf.shape)}"
            payload = memoryview(raw.numpy())  # type: ignore[arg-type]
            tensors += 1
            total += raw.numel()
        else:
            text, payload = type(leaf).__name__, memoryview(_scalar_bytes(path, leaf))
            others += 1
        head = f"{path}\n{text}\n{payload.nbytes}\n".encode()
        sha.update(head)
        sha.update(payload)
    return Digest(sha.hexdigest(), tensors, total, others)


def _scalar_bytes(path: str, leaf: Any) -> bytes:
    if isinstance(leaf, float):
        return struct.pack("<d", leaf)
    if leaf is None or isinstance(leaf, (bool, int, str)) or leaf in ((), [], {}):
        return repr(leaf).encode()
    raise TypeError(f"{path}: can't hash a {type(leaf).__name__}")


def first_difference(a: Any, b: Any) -> str | None:
    """Where two trees differ in structure, type, dtype, shape or any bit; None if they don't."""
    ours, theirs = list(leaves(a)), list(leaves(b))
    if [path for path, _ in ours] != [path for path, _ in theirs]:
        return "the paths differ"
    for (path, left), (_, right) in zip(ours, theirs, strict=True):
        if type(left) is not type(right) and not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
            return f"{path}: {type(left).__name__} and {type(right).__name__}"
        if isinstance(left, torch.Tensor):
            if left.dtype != right.dtype or left.shape != right.shape:
                return f"{path}: {left.dtype} {tuple(left.shape)} and {right.dtype} {tuple(right.shape)}"
            if not torch.equal(tensor_bytes(left), tensor_bytes(right)):
                return f"{path}: other bits"
        elif _scalar_bytes(path, left) != _scalar_bytes(path, right):
            return f"{path}: {left!r} and {right!r}"
    return None
