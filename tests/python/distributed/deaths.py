"""Ranks that are killed (kill -9) in each phase of a take, and what the others see (run by worker.py).

One world of eight: ranks 0 and 7 survive, each of the others dies in one phase, in a group of its own with one of them.
"""

from __future__ import annotations

import os
import pathlib
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from support import assert_same, files_below
from torchsnapshot import Snapshot, StateDict
from torchsnapshot._coordination import GroupCoordinator
from torchsnapshot.knobs import override_commit_timeout_seconds

COMMIT_SECONDS = 2
SURVIVORS = (0, 7)


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesWhenAsked:
    def state_dict(self) -> dict[str, Any]:
        return die()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise AssertionError


def dies_at(method: str, *, after: bool, key: str = "") -> None:
    """From now on a call of the coordinator (of the store: with that key) is the last one."""
    call = getattr(GroupCoordinator, method)

    def last(self: GroupCoordinator, *arguments: Any) -> Any:
        meant = not key or str(arguments[0]).rsplit("/", 1)[-1] == key
        if meant and not after:
            die()
        result = call(self, *arguments)
        return die() if meant else result

    setattr(GroupCoordinator, method, last)


#: The rank that dies after it has sent its entries: with a new plan, the others repeat the one of the take before.
NEW_PLAN = 4
#: Victim, how it dies, its partner, what the partner says (a pattern; None: the take succeeds), whether anything
#: may stay.
#: A victim below its partner is rank 0 of the group.
CASES: list[tuple[int, Callable[[], Any], int, str | None, bool]] = [
    (1, lambda: dies_at("all_sum", after=False), 0, "an exchange between the ranks failed", False),
    # It writes already, while its partner may or may not have all of the sum.
    (
        2,
        lambda: dies_at("all_sum", after=True),
        0,
        "nothing was heard of rank 1 for 2 s|an exchange between the ranks failed",
        False,
    ),
    (3, lambda: dies_at("store_add", after=True, key="arrivals"), 0, None, False),  # it is through
    (4, lambda: dies_at("gather", after=True), 7, "has heard nothing of rank 0", False),
    (
        5,
        lambda: dies_at("store_set_once", after=True, key="decision"),
        7,
        "whether there is a snapshot is not known",
        True,
    ),
    (6, lambda: None, 7, "an exchange between the ranks failed", False),  # in state_dict()
]


def state_of(rank: int, value: float) -> dict[str, Any]:
    return {
        "same": StateDict(x=torch.full((3_000_000,), float(value))),
        "own": StateDict(x=torch.full((100,), float(value + rank))),
    }


def take(path: str, rank: int, value: float, asynchronous: bool, group: Any, more: bool) -> None:
    state = state_of(rank, value)
    if more:
        state["more"] = StateDict(x=torch.ones(3))
    if asynchronous:
        Snapshot.async_take(path, state, pg=group, replicated=["same/**"]).wait()
    else:
        Snapshot.take(path, state, pg=group, replicated=["same/**"])


def check_the_survivors_learn_of_it(folder: pathlib.Path) -> None:
    me = dist.get_rank()
    Snapshot.take(str(folder / "all"), state_of(me, 5), replicated=["same/**"])
    dist.barrier()
    assert_same(Snapshot(str(folder / "all")).read_object(f"{me}/own/x"), torch.full((100,), 5.0 + me))
    groups = [dist.new_group([case[0], case[2]]) for case in CASES]
    alone = {rank: dist.new_group([rank]) for rank in SURVIVORS}
    for number, (victim, how, partner, needle, stays) in enumerate(CASES):
        if me not in (victim, partner):
            continue
        group, path = groups[number], str(folder / f"case-{victim}")
        rank = dist.get_rank(group)
        Snapshot.take(path, state_of(rank, 1), pg=group, replicated=["same/**"])
        dist.barrier(group)
        before = files_below(path)
        with override_commit_timeout_seconds(COMMIT_SECONDS):
            if me == victim:
                how()
                if victim == 6:
                    Snapshot.take(path, {"own": DiesWhenAsked()}, pg=group)
                take(path, rank, 2, asynchronous=False, group=group, more=victim == NEW_PLAN)
                time.sleep(60)
                raise AssertionError("it did not die")
            started = time.monotonic()
            error = None
            try:
                take(path, rank, 2, asynchronous=victim % 2 == 0, group=group, more=victim == NEW_PLAN)
            except Exception as raised:
                error = raised
            seconds = time.monotonic() - started
        if needle is None:
            assert error is None, error
            assert_same(Snapshot(path, pg=group).read_object("1/own/x"), torch.full((100,), 3.0))
            continue
        assert error is not None, f"rank {victim} died, and the take succeeded"
        assert re.search(needle, str(error)), error
        # The rank that waits longest: twice, once for a verdict and once for rank 0, which was about to commit.
        assert seconds < (2 if stays else 1) * (COMMIT_SECONDS + 1) + 30, seconds
        assert_same(Snapshot(path, pg=group).read_object(f"{rank}/own/x"), torch.full((100,), 1.0 + rank))
        if not stays and rank == 0:
            assert files_below(path) == before, "what was written is gone, the dead rank's too"
        # The next take to the same path works, with those that are left.
        Snapshot.take(path, state_of(0, 9), pg=alone[me])
        assert_same(Snapshot(path).read_object("0/own/x"), torch.full((100,), 9.0))
