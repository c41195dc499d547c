"""Takes and restores of several ranks, in processes of their own."""

from __future__ import annotations

import functools
import pathlib
import signal

import checks
import deaths
import pytest
from launch import Launcher, Outcome

pytestmark = [pytest.mark.no_sanitizer]

WORLDS = [2, 4]
CHECKS = [
    (world, name)
    for world in WORLDS
    for name, check in vars(checks).items()
    if name.startswith("check_") and world in getattr(check, "world_sizes", WORLDS)
]


@pytest.fixture(scope="session")
def launcher():  # type: ignore[no-untyped-def]
    found = Launcher()
    yield found
    found.close()


@pytest.fixture(scope="session")
def launched(launcher, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """All checks of a world, run once."""
    folder = tmp_path_factory.mktemp("ranks")

    @functools.cache
    def run(world: int) -> list[Outcome]:
        return launcher.run(world, "checks", folder / f"world-{world}")

    return run


@pytest.mark.parametrize(("world", "check"), CHECKS, ids=[f"{world}-{name}" for world, name in CHECKS])
def test_on_every_rank(launched, world: int, check: str) -> None:  # type: ignore[no-untyped-def]
    outcomes: list[Outcome] = launched(world)
    for rank, outcome in enumerate(outcomes):
        assert check in outcome.checks, f"rank {rank} never came so far:\n{outcome.output}"
        assert outcome.checks[check] is None, f"rank {rank}: {outcome.checks[check]}"


def test_killed_ranks(launcher: Launcher, tmp_path: pathlib.Path) -> None:
    outcomes = launcher.run(8, "deaths", tmp_path, "check_the_survivors_learn_of_it")
    for rank, outcome in enumerate(outcomes):
        if rank not in deaths.SURVIVORS:
            assert outcome.returncode == -signal.SIGKILL, f"rank {rank}: {outcome.output}"
            continue
        assert outcome.checks == {"check_the_survivors_learn_of_it": None}, f"rank {rank}: {outcome}"
