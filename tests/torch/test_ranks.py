"""Several ranks of a C++ program (ranks.cc) take and restore together, over a c10d store; and with Python's ranks.

TORCHSNAPSHOT_TEST_TORCH_BUILD: the build folder with the program.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchsnapshot import Snapshot

BUILD = Path(os.environ.get("TORCHSNAPSHOT_TEST_TORCH_BUILD", Path(__file__).parents[2] / "build/torch"))
PROGRAM = BUILD / "tests/torch/torch_ranks"
WORLD = 4
STORES = ("host", "file")


@dataclass
class Rank:
    status: int
    output: list[str]
    error: str


def run_ranks(commands: list[list[str]], environments: list[dict[str, str]] | None = None) -> list[Rank]:
    """Runs one process for each command, together; none outlives this."""
    running = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environments[rank] if environments else {})},
        )
        for rank, command in enumerate(commands)
    ]
    try:
        done = []
        for process in running:
            output, error = process.communicate(timeout=120)
            done.append(Rank(process.returncode, output.splitlines(), error))
        return done
    finally:
        for process in running:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()


def run_cpp(scenario: str, store: str, folder: Path, world: int = WORLD) -> list[Rank]:
    if not PROGRAM.exists():
        pytest.fail(f"{PROGRAM} is not there: make torch-test builds it")
    store = f"file:{folder}/store" if store == "file" else store
    return run_ranks([[str(PROGRAM), scenario, store, str(rank), str(world), str(folder)] for rank in range(world)])


def all_fine(ranks: list[Rank]) -> list[list[str]]:
    assert [rank.status for rank in ranks] == [0] * len(ranks), "\n".join(rank.error for rank in ranks)
    return [rank.output for rank in ranks]


def run_python(role: str, folder: Path, world: int) -> list[list[str]]:
    """As torchrun does it: the store is here, and the ranks find it by the environment."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environments = [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": "1",
        }
        for rank in range(world)
    ]
    worker = str(Path(__file__).with_name("ranks_worker.py"))
    return all_fine(run_ranks([[sys.executable, worker, role, str(folder)]] * world, environments))


@pytest.mark.parametrize("store", STORES)
def test_exchanges(tmp_path: Path, store: str) -> None:
    assert all_fine(run_cpp("exchanges", store, tmp_path)) == [["fine"]] * WORLD


@pytest.mark.parametrize("store", STORES)
def test_take_async_take_and_restore(tmp_path: Path, store: str) -> None:
    assert all_fine(run_cpp("everything", store, tmp_path)) == [["fine"]] * WORLD
    snapshot = Snapshot(str(tmp_path / "snap"))
    assert not (tmp_path / "snap-of-another-path").exists(), "rank 0's path counts"
    manifest = snapshot.get_manifest()
    assert snapshot.metadata.world_size == WORLD
    assert "1/model/weight" not in manifest, "replicated: stored once"
    big = manifest["0/big/x"]
    assert big.type == "ChunkedTensor", "divided over the ranks"
    assert len(big.chunks) == WORLD  # type: ignore[attr-defined]
    assert [snapshot.read_object(f"{rank}/own/rank") for rank in range(WORLD)] == list(range(WORLD))
    assert torch.equal(snapshot.read_object("0/table/rows"), torch.arange(36.0).reshape(12, 3))


def test_an_error_of_one_rank_reaches_all(tmp_path: Path) -> None:
    ranks = all_fine(run_cpp("errors", "host", tmp_path))
    for rank, (take, restore) in enumerate(ranks):
        assert "the trap has sprung" in take
        assert "another one than was saved" in restore
        assert restore.startswith("rank 1: ") == (rank != 1), restore


def killed(ranks: list[Rank], who: int) -> list[Rank]:
    assert ranks[who].status == -signal.SIGKILL
    others = [rank for number, rank in enumerate(ranks) if number != who]
    all_fine(others)
    return others


@pytest.mark.parametrize("store", STORES)
def test_a_rank_that_is_killed_before_the_exchange(tmp_path: Path, store: str) -> None:
    for rank in killed(run_cpp("dies-before", store, tmp_path), 2):
        first, second = rank.output
        assert "rank 0 has heard nothing of rank 2 for 2000 ms" in first
        assert "make a new coordinator" in second
    assert not (tmp_path / "snap/.snapshot_metadata").exists()


def test_the_rank_that_hosts_the_store_is_killed(tmp_path: Path) -> None:
    for rank in killed(run_cpp("host-dies", "host", tmp_path), 0):
        assert "the key-value store of the ranks failed (is its host gone?)" in rank.output[0]
    assert not (tmp_path / "snap/.snapshot_metadata").exists()


def test_a_rank_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for rank in killed(run_cpp("dies-writing", f"tcp:{store.port}", tmp_path), 2):
        assert "nothing was heard of rank 2 for 2 s" in rank.output[0]
    assert not (tmp_path / "snap/.snapshot_metadata").exists()


def test_two_ranks_of_python_restore_what_four_of_cpp_took(tmp_path: Path) -> None:
    all_fine(run_cpp("everything", "host", tmp_path))
    assert run_python("restore", tmp_path / "snap", 2) == [["fine"]] * 2


def test_four_ranks_of_cpp_restore_what_two_of_python_took(tmp_path: Path) -> None:
    run_python("take", tmp_path / "python", 2)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    missing = all_fine(run_cpp("from-python", f"tcp:{store.port}", tmp_path))
    private = ["own/data", "own/rank"]
    assert [sorted(path for path in paths if path.startswith("own")) for paths in missing] == [[], [], private, private]
    assert run_python("compare", tmp_path / "cpp", 2) == [["fine"]] * 2
