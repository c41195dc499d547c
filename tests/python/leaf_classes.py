"""Classes of a user's program that end up in a state: importable by name, and unknown to torch's safe list."""

from __future__ import annotations

import collections
import dataclasses
import enum
from typing import Any

import torch


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Color(enum.IntEnum):
    RED = 1
    BLUE = 2


class Level(enum.Enum):
    LOW = "low"


class MyInt(int):
    pass


class MyStr(str):
    __slots__ = ()


class MyDict(dict):  # type: ignore[type-arg]
    pass


Pair = collections.namedtuple("Pair", ["first", "second"])


class TaggedTensor(torch.Tensor):
    """A subclass as projects write them: created with as_subclass, with an attribute of its own."""

    tag: str = "none"


class LoudTensor(torch.Tensor):
    """A subclass that sees every torch function, and counts."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})
