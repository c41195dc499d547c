"""The programs of examples/cpp do what their comments promise. TORCHSNAPSHOT_TEST_TORCH_BUILD: where they are built."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torchsnapshot import Snapshot, StateDict

BUILD = Path(os.environ.get("TORCHSNAPSHOT_TEST_TORCH_BUILD", Path(__file__).parents[2] / "build/torch"))


def run(program: str, *arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [BUILD / "examples" / program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status in (1, 2) else done.stdout


def test_killed_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = run("train_resume", tmp_path / "a", 60)
    assert run("train_resume", tmp_path / "b", 60, 37, status=3) == ""
    resumed = run("train_resume", tmp_path / "b", 60).splitlines()
    assert resumed[0] == "resumed at step 30"
    assert resumed[1:] == straight.splitlines()
    assert straight.startswith("step 60 loss 0.")


def test_inference_reads_its_rows(tmp_path: Path) -> None:
    weight = torch.arange(24.0).reshape(6, 4)
    Snapshot.take(str(tmp_path), {"model": StateDict(weight=weight)})
    for rank in range(3):
        expected = weight[rank * 2 : rank * 2 + 2].sum().item()
        output = run("inference", tmp_path, "0/model/weight", rank, 3)
        assert output == f"rows {rank * 2} to {rank * 2 + 2}, sum {expected:g}\n"
    assert "0/model/bias is no matrix" in run("inference", tmp_path, "0/model/bias", 0, 1, status=1)


def test_embedding_service_goes_on(tmp_path: Path) -> None:
    first = run("embedding_service", tmp_path, 2500)
    assert first.splitlines() == ["begins after request 0", f"served 2500, sum {2500 * 64}"]
    second = run("embedding_service", tmp_path, 4000)
    assert second.splitlines() == ["begins after request 2000", f"served 4000, sum {4000 * 64}"]
    table = Snapshot(str(tmp_path / "table")).get_state_dict_for_key("table")
    assert table["served"] == 4000
    assert table["values"].shape == (10_000, 64)


def test_read_tensor_reads_what_python_saved(tmp_path: Path) -> None:
    values = torch.randint(256, (1000,), dtype=torch.uint8)
    others = {f"t{i}": torch.full((3,), i) for i in range(200)}
    Snapshot.take(str(tmp_path), {"state": StateDict(others, values=values)})
    checksum = 0
    for byte in values.tolist():
        checksum = (checksum * 31 + byte) % 2**32
    assert run("read_tensor", tmp_path, "0/state/values") == f"torch.uint8, 1000 bytes, checksum {checksum}\n"
    assert "no tensor of that path" in run("read_tensor", tmp_path, "0/state/value", status=1)


@pytest.mark.parametrize("program", ["train_resume", "inference", "embedding_service", "read_tensor"])
def test_usage(program: str) -> None:
    assert run(program, status=2).startswith(f"usage: {program} ")
