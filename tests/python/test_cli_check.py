"""The command: verify, diff, rm, prune, and what it does on a terminal."""

from __future__ import annotations

import os
import pathlib
import pty
import random
import re
import select
import signal
import subprocess
import time

import pytest
import torch
from cli_support import command, run, run_json
from support import CORPUS, data_files, files_below, raw_metadata, write_snapshot
from torchsnapshot import Snapshot, StateDict

DAY = 86400


def state(**changes: object) -> StateDict:
    values = {
        "weight": torch.arange(20_000.0).reshape(100, 200),
        "steps": torch.tensor([1, 2, 3]),
        "loss": 0.25,
        "pair": (1, 2),
        "names": {"a": 1, "b": 2},
    }
    return StateDict({**values, **changes})


@pytest.fixture
def taken(snap: str) -> str:
    Snapshot.take(snap, {"state": state()})
    return snap


def slab_of(path: str) -> str:
    return next(e["location"] for p, e in raw_metadata(path)["manifest"].items() if p.endswith("/weight"))


def flip(file: str, at: int) -> None:
    with open(file, "r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ 1]))


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verify_of_an_intact_snapshot(taken: str) -> None:
    report = run_json("verify", taken)
    assert report["intact"]
    assert report["metadata_guarded"]
    assert report["findings"] == report["objects_without_checksums"] == []
    assert report["bytes_read"] == report["bytes_verified"] == report["object_bytes"] == sum(data_files(taken).values())
    assert "intact" in run("verify", taken).stdout
    quick = run_json("verify", "--quick", taken)
    assert quick["bytes_read"] == 0
    assert quick["intact"]


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in CORPUS.glob("*/snapshot")))
def test_verify_of_the_corpus_reads_all_and_says_what_has_no_checksum(folder: str) -> None:
    path = str(CORPUS / folder / "snapshot")
    report = run_json("verify", path)
    assert report["intact"]
    assert report["bytes_verified"] == 0
    assert report["bytes_read"] == report["object_bytes"]
    assert len(report["objects_without_checksums"]) == report["objects"]
    text = run("verify", path).stdout
    assert "without checksum" in text
    assert "intact" not in text


def test_verify_finds_every_kind_of_damage(taken: str) -> None:
    slab = slab_of(taken)
    file = os.path.join(taken, slab)
    begin = raw_metadata(taken)["manifest"]["0/state/weight"]["byte_range"][0]
    flip(file, begin + 5)
    report = run_json("verify", taken, status=1)
    [finding] = report["findings"]
    assert finding["kind"] == "WRONG_BYTES"
    assert finding["object"] == slab
    assert "0/state/weight" in finding["entries"]
    assert finding["range"][0] <= begin + 5 < finding["range"][1]
    assert re.fullmatch("0x[0-9a-f]{8}", finding["expected"])
    assert re.fullmatch("0x[0-9a-f]{8}", finding["found"])
    text = run("verify", taken, status=1).stdout
    for part in ("WRONG_BYTES", slab, "0/state/weight", finding["expected"], finding["found"], "1 finding"):
        assert part in text
    assert run_json("verify", "--quick", taken)["intact"]
    flip(file, begin + 5)
    assert run_json("verify", taken)["intact"]

    size = os.path.getsize(file)
    os.truncate(file, size - 100)
    for options in ([], ["--quick"]):
        [finding] = [f for f in run_json("verify", *options, taken, status=1)["findings"] if f["kind"] == "WRONG_SIZE"]
        assert (finding["expected"], finding["found"]) == (f"{size} bytes", f"{size - 100} bytes")
        assert finding["entries"]
    os.remove(file)
    [finding] = run_json("verify", "--quick", taken, status=1)["findings"]
    assert finding["kind"] == "MISSING_OBJECT"
    assert {"0/state/weight", "0/state/steps"} <= set(finding["entries"])


def test_verify_of_damaged_metadata_and_sidecars(taken: str) -> None:
    metadata = os.path.join(taken, ".snapshot_metadata")
    at = pathlib.Path(metadata).read_bytes().index(b'"0.25"') + 3
    flip(metadata, at)
    [finding] = run_json("verify", taken, status=1)["findings"]
    assert finding["kind"] == "METADATA"
    assert "changed" in finding["message"] or "checksum" in finding["message"]
    assert run("ls", taken, status=2).stderr
    assert run("ls", "--no-verify", taken).stdout
    flip(metadata, at)
    [sidecar] = [name for name in files_below(taken) if "checksums" in name]
    flip(os.path.join(taken, sidecar), 40)
    report = run_json("verify", taken, status=1)
    assert [f["kind"] for f in report["findings"]] == ["CHECKSUMS"]
    assert report["findings"][0]["object"] == sidecar
    assert report["bytes_read"] == report["object_bytes"]
    assert run_json("info", taken)["problems"]


def test_random_flips_are_all_found(taken: str) -> None:
    files = {name: size for name, size in files_below(taken).items() if size}
    for seed in range(40):
        rng = random.Random(seed)
        name = rng.choice(sorted(files))
        flip(os.path.join(taken, name), at := rng.randrange(files[name]))
        status = subprocess.run([command(), "verify", taken], capture_output=True, check=False).returncode
        assert status == 1, f"{name} at {at}: exit status {status}"
        flip(os.path.join(taken, name), at)
    assert run_json("verify", taken)["intact"]


# --- diff -----------------------------------------------------------------------------------------------------------


def differences(a: str, b: str, *options: str, status: int) -> dict[str, dict[str, object]]:
    return {d["path"]: d for d in run_json("diff", *options, a, b, status=status)["differences"]}


def test_diff(taken: str, tmp_path: pathlib.Path) -> None:
    other = str(tmp_path / "other")
    weight = torch.arange(20_000.0).reshape(100, 200)
    weight[3, 7] += 0.5
    changed = state(weight=weight, steps=torch.tensor([1, 2]), loss=0.25 * (1 + 1e-9), new=1, pair=(1, 3))
    changed.data["names"] = {"a": 1}
    Snapshot.take(other, {"state": changed})
    found = differences(taken, other, status=1)
    assert {path: d["kind"] for path, d in found.items()} == {
        "0/state": "KEYS",
        "0/state/weight": "VALUE",
        "0/state/steps": "SHAPE",
        "0/state/loss": "VALUE",
        "0/state/pair": "VALUE",
        "0/state/names": "KEYS",
        "0/state/names/b": "ONLY_IN_A",
        "0/state/new": "ONLY_IN_B",
    }
    assert found["0/state/weight"]["differing"] == 1
    assert found["0/state/weight"]["first_differing"] == 607
    assert found["0/state/weight"]["max_absolute"] == 0.5
    close = differences(taken, other, "--rtol", "1e-3", status=1)
    assert "0/state/weight" not in close
    assert "0/state/loss" not in close
    assert "0/state/pair" in close
    text = run("diff", taken, other, status=1).stdout
    for part in (
        "- 0/state/names/b",
        "+ 0/state/new",
        "~ 0/state/weight",
        "1 of 20000 elements differs",
        "8 differences",
    ):
        assert part in text
    assert run_json("diff", taken, taken)["equal"]
    assert "equal" in run("diff", taken, taken).stdout
    report = run_json("diff", "--atol", "1", taken, other, "--", "*/weight")
    assert report["equal"]
    assert report["entries"] == 1


@pytest.mark.parametrize(
    ("a", "b"), [("tensors_files", "tensors_batched"), ("containers", "yaml_containers"), ("sharded_2", "sharded_2")]
)
def test_diff_of_the_corpus_sees_content_not_layout(a: str, b: str) -> None:
    report = run_json("diff", str(CORPUS / a / "snapshot"), str(CORPUS / b / "snapshot"))
    assert report["equal"]
    assert report["entries"] > 3


def test_diff_of_a_sharded_tensor_with_a_whole_one(tmp_path: pathlib.Path) -> None:
    path = str(CORPUS / "sharded_2" / "snapshot")
    whole = torch.load(CORPUS / "sharded_2" / "expected.pt", weights_only=False)["global"]["state/row"]
    Snapshot.take(str(tmp_path / "s"), {"state": StateDict(row=whole)})
    assert run_json("diff", path, str(tmp_path / "s"), "state/row")["equal"]
    whole[-1, -1] += 1
    Snapshot.take(str(tmp_path / "s"), {"state": StateDict(row=whole)})
    found = differences(path, str(tmp_path / "s"), status=1)
    assert found["0/state/row"]["differing"] == 1
    assert found["0/state/row"]["first_differing"] == whole.numel() - 1


# --- rm and prune ---------------------------------------------------------------------------------------------------


def test_rm(taken: str) -> None:
    pathlib.Path(taken, "notes.txt").write_text("mine")
    assert "say -y" in run("rm", taken, status=2, stdin=subprocess.DEVNULL).stderr
    assert len(files_below(taken)) > 3
    planned = run_json("rm", "--dry-run", taken)
    done = run_json("rm", "-y", taken)
    assert done["removed"]
    assert (done["objects"], done["bytes"]) == (planned["objects"], planned["bytes"])
    assert files_below(taken) == {"notes.txt": 4}
    assert "no snapshot" in run("rm", "-y", taken, status=2).stderr


def test_rm_of_the_originals(tmp_path: pathlib.Path) -> None:
    write_snapshot(str(tmp_path), {"0/s": {"type": "dict", "keys": []}}, {"0/other": b"x"})
    assert run_json("rm", "-y", str(tmp_path))["objects"] == 1
    assert files_below(tmp_path) == {"0/other": 1}


def left_over(path: str, take_id: str, age: float) -> None:
    for name in (f"data/{take_id}/0-0", f"data/{take_id}/0-1"):
        file = pathlib.Path(path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"left over")
        os.utime(file, (time.time() - age,) * 2)


def test_prune(taken: str) -> None:
    committed = files_below(taken)
    left_over(taken, "a" * 32, 3 * DAY)
    left_over(taken, "b" * 32, DAY / 4)
    assert run_json("prune", "--dry-run", taken)["removed_objects"] == 2
    assert len(files_below(taken)) == len(committed) + 4
    report = run_json("prune", taken)
    assert {r["take_id"][0]: r["dead"] for r in report["left_overs"]} == {"a": True, "b": False}
    assert report["removed_bytes"] == 18
    assert set(files_below(taken)) - set(committed) == {f"data/{'b' * 32}/0-0", f"data/{'b' * 32}/0-1"}
    assert "kept take bbbb" in run("prune", taken).stdout
    assert "less than the limit" in run("prune", "--older-than", "12h", taken).stdout
    assert "removed take bbbb" in run("prune", "--older-than", "5h", taken).stdout
    assert files_below(taken) == committed
    assert run("prune", "--older-than", "0", taken).stdout == "no left-overs\n"
    assert run_json("verify", taken)["intact"]


def test_prune_of_a_place_without_a_snapshot(tmp_path: pathlib.Path) -> None:
    left_over(str(tmp_path), "c" * 32, 2 * DAY)
    assert run_json("prune", str(tmp_path))["removed_objects"] == 2
    assert files_below(tmp_path) == {}
    (tmp_path / ".snapshot_metadata").write_text("{")
    left_over(str(tmp_path), "c" * 32, 2 * DAY)
    assert "nothing is removed" in run("prune", str(tmp_path), status=2).stderr
    assert len(files_below(tmp_path)) == 3


# --- terminal -------------------------------------------------------------------------------------------------------


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        pid, self.fd = pty.fork()
        if pid == 0:
            os.environ.update({"TERM": "xterm", **environment})
            os.execv(command(), ["torchsnapshot", *arguments])
        self.pid = pid
        self.text = ""

    def read_until(self, part: str | None) -> str:
        """What it writes, until `part` is in it or (None) it ends."""
        deadline = time.monotonic() + 60
        while part is None or part not in self.text:
            assert time.monotonic() < deadline, f"{part!r} did not come: {self.text!r}"
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # EIO: the other side is closed
                data = b""
            if not data:
                assert part is None, f"{part!r} did not come: {self.text!r}"
                break
            self.text += data.decode()
        return self.text

    def answer(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        self.read_until(None)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_terminal_has_colours_and_a_progress_bar(taken: str) -> None:
    terminal = Terminal("verify", taken)
    assert terminal.end() == 0
    assert re.search(r"verify \[#+\] 100 %  (\d+\.\d KiB) of \1", terminal.text)
    assert "\r\x1b[K" in terminal.text  # and it is taken away
    assert "\x1b[32mintact\x1b[0m" in terminal.text
    plain = Terminal("ls", taken, NO_COLOR="1")
    assert plain.end() == 0
    assert "\x1b" not in plain.text
    assert "weight" in plain.text
    assert "\x1b[1m" in run("ls", "--color", "always", taken).stdout
    assert "\x1b" not in run("ls", taken).stdout


@pytest.mark.parametrize(
    ("reply", "goes"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("\x04", False)]
)
def test_rm_asks_on_a_terminal(taken: str, reply: str, goes: bool) -> None:
    terminal = Terminal("rm", taken)
    terminal.read_until("[y/N] ")
    assert taken in terminal.text
    terminal.answer(reply)
    assert terminal.end() == (0 if goes else 1)
    assert (files_below(taken) == {}) == goes


def test_binary_data_is_not_written_to_a_terminal(taken: str) -> None:
    for arguments in (["cat", "--npy", "-", taken, "state/weight"], ["cat", "--raw", taken, "state/pair"]):
        terminal = Terminal(*arguments)
        assert terminal.end() == 2
        assert "terminal" in terminal.text


def test_ctrl_c_ends_a_verify(tmp_path: pathlib.Path) -> None:
    # Sparse files take long enough to read, and no room.
    size = 64 << 30
    entry = {"type": "object", "location": "0/big", "serializer": "torch_save", "obj_type": "x", "replicated": False}
    write_snapshot(str(tmp_path), {"0/s": {"type": "dict", "keys": ["big"]}, "0/s/big": entry}, {"0/big": b""})
    os.truncate(tmp_path / "0/big", size)
    terminal = Terminal("verify", str(tmp_path))
    terminal.read_until("verify [")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.end() == 130
    assert "interrupted" in terminal.text
