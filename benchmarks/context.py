"""What every part of the benchmark needs: options, the folder to write to, series of figures."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

OURS = "torchsnapshot"
ORIGINAL = "original"
# What no bar is measured by, and would take most of the time, runs in fewer rounds (the column n shows it), unless all
# rounds are asked for.
#: A library that took this many times as long as the fastest peer sits out after the first round.
SIT_OUT_RATIO = 5
#: Rounds of the original, of torch.load(mmap=True), and of the peers' warm loads.
SIDE_ROUNDS = 2


@dataclass
class Options:
    folder: Path  #: empty; what is written there is deleted again
    size: int  #: bytes of a state
    rounds: int
    all_rounds: bool  #: no library sits out
    original: bool  #: compare with the original too


@dataclass
class Part:
    """Figures of one part. `series`: by operation, by library, a list with one value a round, in seconds."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    series: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    details: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    notes: list[str] = field(default_factory=list)

    def add(self, operation: str, library: str, seconds: float) -> None:
        self.series[operation][library].append(seconds)

    def detail(self, name: str, library: str, value: float) -> None:
        self.details[name][library].append(value)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            **self.facts,
            "notes": self.notes,
            "series": {name: dict(values) for name, values in self.series.items()},
            "details": {name: dict(values) for name, values in self.details.items()},
        }


class Order:
    """Who runs in which round: everyone in turn, A B C, then C B A, so that no one always follows the same other."""

    def __init__(self, libraries: Sequence[str], all_rounds: bool) -> None:
        self._libraries = list(libraries)
        self._all_rounds = all_rounds
        self._spent: dict[str, list[float]] = defaultdict(list)
        self.out: list[str] = []

    def of_round(self, number: int) -> list[str]:
        if number == 1 and not self._all_rounds:
            peers = [median(times) for name, times in self._spent.items() if name != OURS]
            fastest = min(peers, default=0.0)
            self.out = [
                name for name, times in self._spent.items() if name != OURS and median(times) > SIT_OUT_RATIO * fastest
            ]
        running = [name for name in self._libraries if name not in self.out]
        if number >= SIDE_ROUNDS and not self._all_rounds:
            running = [name for name in running if name != ORIGINAL]
        return running if number % 2 == 0 else running[::-1]

    def drop(self, library: str) -> None:
        """It can't do this at all."""
        self._libraries.remove(library)

    def spent(self, library: str, began: float) -> None:
        self._spent[library].append(time.perf_counter() - began)
