"""Takes and restores of several ranks, in processes of their own."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import socket
import subprocess

import checks
import deaths
import pytest
import torch.distributed as dist
from launch import Launcher, Outcome

pytestmark = [pytest.mark.no_sanitizer]

WORLDS = [2, 4]
ORIGINAL = os.environ.get("TORCHSNAPSHOT_TEST_ORIGINAL_PYTHON", "")
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


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 on this machine")
def test_a_store_that_listens_on_ipv6_only(launcher: Launcher, tmp_path: pathlib.Path) -> None:
    check = "check_private_and_replicated"
    for outcome in launcher.run(2, "checks", tmp_path, check, host="::1"):
        assert outcome.checks == {check: None}, outcome


@pytest.mark.skipif(not ORIGINAL, reason="TORCHSNAPSHOT_TEST_ORIGINAL_PYTHON names no interpreter with the original")
@pytest.mark.parametrize("world", WORLDS)
def test_the_original_restores_snapshots_of_many_ranks(  # type: ignore[no-untyped-def]
    launcher, tmp_path: pathlib.Path, world: int
) -> None:
    for outcome in launcher.run(world, "checks", tmp_path, "check_save_for_the_original"):
        assert outcome.checks == {"check_save_for_the_original": None}, outcome
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    snapshot = tmp_path / "check_save_for_the_original" / "snap"
    command = [ORIGINAL, str(pathlib.Path(__file__).parent / "original_ranks.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(store.port), str(snapshot)],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for rank, (process, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank}: {output[-4000:]}"
        assert "restored" in output


def test_killed_ranks(launcher: Launcher, tmp_path: pathlib.Path) -> None:
    outcomes = launcher.run(8, "deaths", tmp_path, "check_the_survivors_learn_of_it")
    for rank, outcome in enumerate(outcomes):
        if rank not in deaths.SURVIVORS:
            assert outcome.returncode == -signal.SIGKILL, f"rank {rank}: {outcome.output}"
            continue
        assert outcome.checks == {"check_the_survivors_learn_of_it": None}, f"rank {rank}: {outcome}"
