"""The C++ programs on S3 and GCS: a server of our own, found by the environment, as in a deployment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchsnapshot import Snapshot, StateDict

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers.object_server import ObjectServer

BUILD = Path(os.environ.get("TORCHSNAPSHOT_TEST_TORCH_BUILD", Path(__file__).parents[2] / "build/torch"))
TINY = 100_000


@pytest.fixture(params=["s3", "gs"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL for this test alone, which both languages can use without options."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_")):
            monkeypatch.delenv(name)
    with ObjectServer(keys={"AKIDTEST": "secret"}, anonymous=request.param == "gs") as server:
        if request.param == "s3":
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            monkeypatch.setenv("AWS_REGION", server.region)
        else:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield f"{request.param}://bucket/run"


def run(program: str, *arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [BUILD / program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_training_resumes_from_the_store(place: str) -> None:
    straight = run("examples/train_resume", place + "/a", 20)
    assert run("examples/train_resume", place + "/b", 20, 13, status=3) == ""
    assert run("examples/train_resume", place + "/b", 20) == "resumed at step 10\n" + straight
    progress = Snapshot(place + "/b/latest").get_state_dict_for_key("progress")
    assert progress["step"] == 20


def test_inference_and_service(place: str) -> None:
    weight = torch.arange(24.0).reshape(6, 4)
    Snapshot.take(place + "/model", {"model": StateDict(weight=weight)})
    output = run("examples/inference", place + "/model", "0/model/weight", 1, 3)
    assert output == f"rows 2 to 4, sum {weight[2:4].sum().item():g}\n"
    run("examples/embedding_service", place, 1500)
    assert run("examples/embedding_service", place, 2000).splitlines()[0] == "begins after request 1000"


def test_values_of_python_there_and_back(place: str) -> None:
    values = StateDict(x=torch.arange(10), pair=(1, None), nested={"a": [1.5, "ü", b"\x00"]})
    Snapshot.take(place + "/python", {"values": values})
    run("tests/torch/torch_interchange", "--relay", place + "/python", place + "/cpp")
    back = Snapshot(place + "/cpp").get_state_dict_for_key("values")
    assert torch.equal(back.pop("x"), values["x"])
    assert back == {"pair": (1, None), "nested": {"a": [1.5, "ü", b"\x00"]}}


@pytest.fixture(scope="module")
def tiny() -> StateDict:
    """100,000 tensors of 8 bytes."""
    rows = torch.arange(TINY * 8).remainder(251).to(torch.uint8).reshape(TINY, 8).unbind()
    return StateDict({f"t{i}": row for i, row in enumerate(rows)})


def checksum(number: int) -> str:
    total = 0
    for byte in range(number * 8, number * 8 + 8):
        total = (total * 31 + byte % 251) % 2**32
    return f"torch.uint8, 8 bytes, checksum {total}\n"


def test_one_tensor_of_a_hundred_thousand_without_torch(tiny: StateDict, tmp_path: Path) -> None:
    Snapshot.take(str(tmp_path), {"state": tiny})
    for number in (0, 31_415, TINY - 1):
        assert run("examples/read_tensor", tmp_path, f"0/state/t{number}") == checksum(number)


def test_one_tensor_of_a_hundred_thousand_on_the_store(tiny: StateDict, place: str) -> None:
    Snapshot.take(place, {"state": tiny})
    assert run("examples/read_tensor", place, "0/state/t31415") == checksum(31_415)
