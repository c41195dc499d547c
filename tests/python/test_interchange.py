"""Snapshots of ours restore in the original torchsnapshot, and the original's in ours, bit for bit.

The original comes from PyPI (torchsnapshot-nightly) into a virtual environment of its own, build/orig-venv, which is
kept. TORCHSNAPSHOT_TEST_ORIGINAL_PYTHON names an interpreter that has it already.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import interchange_states
import pytest
import torch
from support import REPOSITORY, assert_same, raw_metadata, restored, tensors_of, zeroed
from torchsnapshot import RNGState, Snapshot, StateDict
from torchsnapshot.knobs import override_is_batching_disabled, override_max_chunk_size_bytes

pytestmark = [pytest.mark.interchange, pytest.mark.no_sanitizer, pytest.mark.slow]

HERE = pathlib.Path(__file__).parent
TORCH = "torch==2.13.0"
NEEDED = [
    "numpy",
    "aiofiles",
    "PyYAML",
    "psutil",
    "nest_asyncio",
    "importlib-metadata",
    "typing-extensions",
    "setuptools",
]


def _clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def _works(python: pathlib.Path) -> bool:
    code = "import torch, torchsnapshot, torchsnapshot.io_preparer"
    if not python.exists():
        return False
    done = subprocess.run([python, "-c", code], capture_output=True, check=False, env=_clean_environment())
    return done.returncode == 0


@pytest.fixture(scope="session")
def original_python() -> pathlib.Path:
    given = os.environ.get("TORCHSNAPSHOT_TEST_ORIGINAL_PYTHON")
    if given:
        return pathlib.Path(given)
    venv = REPOSITORY / "build" / "orig-venv"
    python = venv / "bin" / "python"
    if _works(python):
        return python
    steps = [
        [sys.executable, "-m", "venv", str(venv)],
        [str(python), "-m", "pip", "install", "--quiet", TORCH, *NEEDED],
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "torchsnapshot-nightly"],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False, env=_clean_environment())
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            pytest.skip(f"the original torchsnapshot can't be installed: {' '.join(step[-3:])}: {last}")
    if not _works(python):
        pytest.skip(f"the original torchsnapshot does not import in {venv}")
    return python


class Original:
    """The original in a process of its own, which does one job after another."""

    def __init__(self, python: pathlib.Path) -> None:
        self.python = python
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, call: str, *arguments: str, **knobs: str) -> None:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [self.python, HERE / "interchange_original.py"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env=_clean_environment(),
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"call": call, "arguments": arguments, "knobs": knobs}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the original died at {call} {arguments}"
        error = json.loads(answer)["error"]
        assert error is None, f"the original failed at {call} {arguments}:\n{error[-3000:]}"

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


@pytest.fixture(scope="session")
def original(original_python: pathlib.Path) -> Iterator[Original]:
    made = Original(original_python)
    yield made
    made.close()


def dense(value: Any) -> Any:
    """Without views: what comes back from storage."""
    if isinstance(value, torch.Tensor):
        return value.detach().resolve_conj().resolve_neg().contiguous().clone()
    if type(value) is list:
        return [dense(v) for v in value]
    if type(value) in (dict, collections.OrderedDict):
        return type(value)((k, dense(v)) for k, v in value.items())
    return value


@pytest.mark.parametrize("reads", ["1", "0"], ids=["original reads one by one", "original reads batched"])
@pytest.mark.parametrize("unbatched", [True, False], ids=["a file each", "slabs"])
class TestOursToOriginal:
    @pytest.mark.parametrize("name", interchange_states.STATES)
    def test_fresh(
        self, name: str, unbatched: bool, reads: str, original: Original, snap: str, tmp_path: pathlib.Path
    ) -> None:
        state = interchange_states.STATES[name]()
        with override_is_batching_disabled(unbatched), override_max_chunk_size_bytes(3000):
            Snapshot.take(snap, {"state": StateDict(state)})
        original("restore", snap, str(tmp_path / "out.pt"), TORCHSNAPSHOT_DISABLE_BATCHING=reads)
        assert_same(torch.load(tmp_path / "out.pt", weights_only=False), dense(state))

    @pytest.mark.parametrize(
        "name", ["tensors", "views", "ties", "equal_content", "chunked", "containers", "quantized"]
    )
    def test_in_place(
        self, name: str, unbatched: bool, reads: str, original: Original, snap: str, tmp_path: pathlib.Path
    ) -> None:
        state = getattr(interchange_states, name)()
        # A quantized target needs the same scales: the original copies the bare integers.
        target = {k: same_parameters_zero(v) for k, v in state.items()} if name == "quantized" else zeroed(dense(state))
        torch.save(target, tmp_path / "target.pt")
        with override_is_batching_disabled(unbatched), override_max_chunk_size_bytes(3000):
            Snapshot.take(snap, {"state": StateDict(state)})
        arguments = ("restore", snap, str(tmp_path / "out.pt"), str(tmp_path / "target.pt"))
        original(*arguments, TORCHSNAPSHOT_DISABLE_BATCHING=reads)
        assert_same(torch.load(tmp_path / "out.pt", weights_only=False), dense(state))

    def test_training_state(
        self, unbatched: bool, reads: str, original: Original, snap: str, tmp_path: pathlib.Path
    ) -> None:
        parts = interchange_states.training()
        rng = torch.get_rng_state()
        with override_is_batching_disabled(unbatched):
            Snapshot.take(snap, {**parts, "rng": RNGState()})
        original("restore_training", snap, str(tmp_path / "out.pt"), TORCHSNAPSHOT_DISABLE_BATCHING=reads)
        got = torch.load(tmp_path / "out.pt", weights_only=False)
        for key, part in parts.items():
            assert_same(dict(got[key]), dict(part.state_dict()))
        assert_same(got["rng"], rng)

    def test_empty_tensors(
        self, unbatched: bool, reads: str, original: Original, snap: str, tmp_path: pathlib.Path
    ) -> None:
        state = interchange_states.empties()
        with override_is_batching_disabled(unbatched):
            Snapshot.take(snap, {"state": StateDict(state)})
        original("restore", snap, str(tmp_path / "out.pt"))
        assert_same(torch.load(tmp_path / "out.pt", weights_only=False), state)

    def test_odd_bfloat16(
        self, unbatched: bool, reads: str, original: Original, snap: str, tmp_path: pathlib.Path
    ) -> None:
        state = {"odd": torch.arange(5).bfloat16(), "scalar": torch.tensor(1.5).bfloat16(), "next": torch.ones(3)}
        with override_is_batching_disabled(unbatched):
            Snapshot.take(snap, {"state": StateDict(state)})
        original("restore", snap, str(tmp_path / "out.pt"), TORCHSNAPSHOT_DISABLE_BATCHING=reads)
        assert_same(torch.load(tmp_path / "out.pt", weights_only=False), state)


def same_parameters_zero(tensor: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros(tensor.shape)
    if tensor.qscheme() == torch.per_tensor_affine:
        return torch.quantize_per_tensor(zero, tensor.q_scale(), tensor.q_zero_point(), tensor.dtype)
    scales, points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return torch.quantize_per_channel(zero, scales, points, tensor.q_per_channel_axis(), tensor.dtype)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("unbatched", ["1", "0"], ids=["a file each", "slabs"])
class TestOriginalToOurs:
    @pytest.mark.parametrize("name", [*interchange_states.STATES, "quantized"])
    def test_fresh_and_in_place(
        self, name: str, unbatched: str, mode: str, original: Original, snap: str, tmp_path: pathlib.Path
    ) -> None:
        knobs = {"TORCHSNAPSHOT_DISABLE_BATCHING": unbatched, "TORCHSNAPSHOT_MAX_CHUNK_SIZE_BYTES_OVERRIDE": "3000"}
        original("take", snap, name, str(tmp_path / "expected.pt"), mode, **knobs)
        expected = torch.load(tmp_path / "expected.pt", weights_only=False)
        assert_same(restored(snap), expected)
        target = StateDict(zeroed(expected))
        places = {p: t.data_ptr() for p, t in tensors_of(target.data).items()}
        report = Snapshot(snap).restore({"state": target})
        assert_same(target.data, expected)
        assert (report.missing, report.unexpected) == ([], [])
        if name != "quantized":
            assert {p: t.data_ptr() for p, t in tensors_of(target.data).items()} == places


@pytest.mark.parametrize("unbatched", ["1", "0"], ids=["a file each", "slabs"])
def test_training_state_of_the_original(unbatched: str, original: Original, snap: str, tmp_path: pathlib.Path) -> None:
    original("take_training", snap, str(tmp_path / "expected.pt"), TORCHSNAPSHOT_DISABLE_BATCHING=unbatched)
    expected = torch.load(tmp_path / "expected.pt", weights_only=False)
    parts = interchange_states.training(steps=0)
    Snapshot(snap).restore({**parts, "rng": RNGState()})
    for key, part in parts.items():
        assert_same(dict(part.state_dict()), dict(expected[key]))
    assert_same(torch.get_rng_state(), expected["rng"])


def test_the_sidecars_do_not_disturb_the_original(original: Original, snap: str, tmp_path: pathlib.Path) -> None:
    Snapshot.take(snap, {"state": StateDict(a=torch.ones(3))})
    sidecar = pathlib.Path(snap) / ".torchsnapshot"
    sidecar.mkdir(exist_ok=True)
    (sidecar / "something").write_bytes(b"not for the original")
    original("restore", snap, str(tmp_path / "out.pt"))
    assert_same(torch.load(tmp_path / "out.pt", weights_only=False), {"a": torch.ones(3)})
    assert set(raw_metadata(snap)) == {"version", "world_size", "manifest"}
