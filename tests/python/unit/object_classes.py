"""Classes for the tests of serialized objects: importable by name, unknown to every allow-list."""

from __future__ import annotations

import collections
import dataclasses
import enum
from typing import Any


@dataclasses.dataclass
class Plain:
    x: int
    y: Any


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: int, b: Any) -> None:
        self.a = a
        self.b = b

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and (self.a, self.b) == (other.a, other.b)

    __hash__ = None  # type: ignore[assignment]


class WithState:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __getstate__(self) -> Any:
        return ("state", self.value)

    def __setstate__(self, state: Any) -> None:
        self.value = state[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithState) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


class OtherWithState(WithState):
    pass


class Color(enum.Enum):
    RED = "red"


class MyList(list):  # type: ignore[type-arg]
    pass


class MyDict(dict):  # type: ignore[type-arg]
    pass


Pair = collections.namedtuple("Pair", ["first", "second"])


def a_function() -> int:
    return 1
