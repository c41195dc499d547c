"""Wrong arguments, places that can't be written or read, disks that fill up: a clear error, and nothing is harmed."""

from __future__ import annotations

import copy
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import (
    METADATA,
    Box,
    assert_same,
    data_files,
    files_below,
    raises_clearly,
    raw_metadata,
    restored,
    run_python,
    write_snapshot,
)
from torch import nn
from torchsnapshot import RNGState, Snapshot, StateDict, TorchSnapshotError

READ_FAILED = r"Failed to read \.snapshot_metadata\. Ensure path to snapshot is correct, otherwise snapshot is likely"


class Guard:
    """A target that must stay as it is."""

    def __init__(self) -> None:
        self.state = StateDict(t=torch.full((4,), 7.0), n=7)
        self.model = nn.Linear(2, 2)
        self.before = copy.deepcopy((self.state.data, self.model.state_dict()))

    def check(self) -> None:
        assert_same((self.state.data, self.model.state_dict()), self.before)


class TestNotASnapshot:
    @pytest.fixture(params=["nothing", "empty folder", "other files", "unfinished", "file", "below a file"])
    def path(self, request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
        path = tmp_path / "x"
        if request.param == "empty folder":
            path.mkdir()
        elif request.param == "other files":
            path.mkdir()
            (path / "notes.txt").write_text("hello")
        elif request.param == "unfinished":
            Snapshot.take(str(path), {"state": StateDict(t=torch.ones(4))})
            (path / METADATA).unlink()
        elif request.param == "file":
            path.write_bytes(b"some bytes")
        elif request.param == "below a file":
            path.write_bytes(b"some bytes")
            return str(path / "deeper")
        return str(path)

    def test_every_way_to_read_says_so(self, path: str) -> None:
        guard = Guard()
        before = files_below(pathlib.Path(path).parent)
        snapshot = Snapshot(path)
        reads: list[Any] = [
            lambda: snapshot.restore({"state": guard.state}),
            lambda: snapshot.restore({"state": guard.state}, strict=False),
            lambda: snapshot.read_object("0/state/t"),
            lambda: snapshot.metadata,
            snapshot.get_manifest,
            lambda: snapshot.get_state_dict_for_key("state"),
        ]
        for read in reads:
            with pytest.raises(RuntimeError, match=f"^{READ_FAILED}"):
                read()
        guard.check()
        assert files_below(pathlib.Path(path).parent) == before

    def test_the_message_names_the_place(self, path: str) -> None:
        with raises_clearly(pathlib.Path(path).name, kind=RuntimeError):
            Snapshot(path).get_manifest()

    def test_a_handle_recovers_when_the_snapshot_appears(self, tmp_path: pathlib.Path) -> None:
        snapshot = Snapshot(str(tmp_path / "s"))
        with pytest.raises(RuntimeError):
            snapshot.get_manifest()
        Snapshot.take(str(tmp_path / "s"), {"state": StateDict(a=1)})
        assert snapshot.read_object("0/state/a") == 1


class TestPlacesToWrite:
    def test_a_path_that_is_a_file(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "x").write_bytes(b"precious")
        for path in ("x", "x/deeper"):
            with raises_clearly("x", kind=(OSError, TorchSnapshotError)):
                Snapshot.take(str(tmp_path / path), {"state": StateDict(t=torch.ones(3))})
        assert (tmp_path / "x").read_bytes() == b"precious"
        assert os.listdir(tmp_path) == ["x"]

    def test_metadata_is_in_the_way(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "s" / METADATA / "folder").mkdir(parents=True)
        with raises_clearly(METADATA):
            Snapshot.take(str(tmp_path / "s"), {"state": StateDict(t=torch.ones(3))})
        assert data_files(str(tmp_path / "s")) == {}

    def test_a_name_that_is_too_long(self, tmp_path: pathlib.Path) -> None:
        with raises_clearly("x" * 100):
            Snapshot.take(str(tmp_path / ("x" * 300)), {"state": StateDict(t=torch.ones(3))})

    @pytest.mark.parametrize("url", ["nope://x/y", "memry://x", "s4://bucket/x"])
    def test_an_unknown_scheme_is_an_error_that_lists_the_known(self, url: str) -> None:
        for call in (lambda: Snapshot.take(url, {"s": StateDict(a=1)}), lambda: Snapshot(url).get_manifest()):
            with raises_clearly(url.split(":")[0], "fs"):
                call()

    def test_an_unknown_storage_option_is_an_error(self, snap: str) -> None:
        with raises_clearly("colour"):
            Snapshot.take(snap, {"s": StateDict(a=1)}, storage_options={"colour": "blue"})
        assert not os.path.exists(snap)
        Snapshot.take(snap, {"s": StateDict(a=1)})
        with raises_clearly("colour"):
            Snapshot(snap, storage_options={"colour": "blue"}).restore({"s": StateDict()})


AS_NOBODY = """
import os, sys, tempfile, torch
from torchsnapshot import Snapshot, StateDict
with tempfile.TemporaryDirectory() as folder:  # imports all that is imported late: the folders may be root's alone
    Snapshot.take(folder + "/warm", {"s": StateDict(t=torch.ones(2))}).restore({"s": StateDict()})
    for wrong in (folder, "/nowhere/at/all"):
        try:
            Snapshot(wrong).restore({"s": StateDict()})
        except Exception:
            pass
os.setgroups([]); os.setgid(65534); os.setuid(65534)
state = StateDict(t=torch.full((4,), 7.0))
try:
    if sys.argv[1] == "take":
        Snapshot.take(sys.argv[2], {"state": state})
    else:
        Snapshot(sys.argv[2]).restore({"state": state})
except Exception as error:
    causes, cause = [], error
    while cause is not None:
        causes.append(f"{type(cause).__name__} {isinstance(cause, PermissionError)} {cause}")
        cause = cause.__cause__
    print("ERROR", " | ".join(causes), "|", state["t"].tolist())
else:
    print("DONE", state["t"].tolist())
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to become someone else")
class TestPermissions:
    @pytest.fixture
    def root_owned(self) -> Iterator[pathlib.Path]:
        """A folder that everybody can look into (those of pytest are closed to others)."""
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            yield pathlib.Path(folder)

    def run(self, action: str, path: pathlib.Path) -> str:
        done = run_python(AS_NOBODY, action, str(path))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_take_where_nothing_may_be_written(self, root_owned: pathlib.Path) -> None:
        out = self.run("take", root_owned / "mine")
        assert "ERROR" in out
        assert "True" in out, "a PermissionError is expected"
        assert "mine" in out
        assert list(root_owned.iterdir()) == []

    def test_restore_what_may_not_be_read(self, root_owned: pathlib.Path) -> None:
        Snapshot.take(str(root_owned / "s"), {"state": StateDict(t=torch.ones(4))})
        metadata = root_owned / "s" / METADATA
        (data,) = [root_owned / "s" / name for name in data_files(str(root_owned / "s"))]
        for folder in data.parents:
            if folder.is_relative_to(root_owned):
                folder.chmod(0o755)
        for hidden, shown in ((metadata, data), (data, metadata)):
            hidden.chmod(0o600)
            shown.chmod(0o644)
            out = self.run("restore", root_owned / "s")
            assert "ERROR" in out
            assert "ermission" in out
            assert hidden.name in out
            assert "[7.0, 7.0, 7.0, 7.0]" in out
        data.chmod(0o644)
        assert "DONE [1.0, 1.0, 1.0, 1.0]" in self.run("restore", root_owned / "s")


class TestNoSpace:
    @pytest.fixture
    def small_disk(self, tmp_path: pathlib.Path) -> Any:
        folder = tmp_path / "disk"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    @pytest.mark.parametrize("batched", ["0", "1"])
    def test_a_full_disk(self, small_disk: pathlib.Path, batched: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHSNAPSHOT_DISABLE_BATCHING", batched)
        state = StateDict({f"t{i}": torch.ones(1 << 18) for i in range(8)})
        path = str(small_disk / "snap")
        with raises_clearly("No space left", "snap|state/t", kind=OSError):
            Snapshot.take(path, {"state": state})
        assert files_below(small_disk) == {}

    def test_the_old_snapshot_survives_a_full_disk(self, small_disk: pathlib.Path) -> None:
        path = str(small_disk / "snap")
        old = {"t": torch.arange(1 << 18), "o": (1, 2)}
        Snapshot.take(path, {"state": StateDict(old)})
        before = files_below(small_disk)
        with raises_clearly("No space left", kind=OSError):
            Snapshot.take(path, {"state": StateDict(t=torch.zeros(1 << 19), o=(3,))})
        assert files_below(small_disk) == before
        assert_same(restored(path), old)

    def test_a_limit_on_the_size_of_files(self, snap: str) -> None:
        """The same for any user: RLIMIT_FSIZE makes writes fail in the middle of a file."""
        code = """
import resource, signal, sys, torch
from torchsnapshot import Snapshot, StateDict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    Snapshot.take(sys.argv[1], {"state": StateDict(t=torch.ones(1 << 20))})
except OSError as error:
    print("ERROR", error)
"""
        done = run_python(code, snap)
        assert done.stdout.startswith("ERROR"), done.stdout + done.stderr
        assert "too large" in done.stdout
        assert files_below(snap) == {}


class TestAppState:
    @pytest.mark.parametrize("app_state", [None, 5, "x", [StateDict()], {1, 2}, StateDict(), nn.Linear(1, 1)], ids=repr)
    def test_no_dict(self, app_state: Any, snap: str) -> None:
        if isinstance(app_state, StateDict):
            app_state = [("state", app_state)]
        with raises_clearly("dict", kind=TypeError):
            Snapshot.take(snap, app_state)
        assert not os.path.exists(snap)
        Snapshot.take(snap, {"state": StateDict(a=1)})
        with raises_clearly("dict", kind=TypeError):
            Snapshot(snap).restore(app_state)

    class Half:
        def state_dict(self) -> dict[str, Any]:
            return {}

    @pytest.mark.parametrize(
        "value", [5, {}, {"a": 1}, None, torch.ones(2), Half(), "state"], ids=lambda v: type(v).__name__
    )
    def test_a_value_that_is_not_stateful(self, value: Any, snap: str) -> None:
        guard = Guard()
        with raises_clearly("bad key", type(value).__name__, kind=TypeError):
            Snapshot.take(snap, {"state": guard.state, "bad key": value})
        assert not os.path.exists(snap)
        Snapshot.take(snap, {"state": StateDict(t=torch.ones(4), n=1)})
        with raises_clearly("bad key", type(value).__name__, kind=TypeError):
            Snapshot(snap).restore({"state": guard.state, "bad key": value})
        guard.check()

    @pytest.mark.parametrize("key", [1, None, ("a",), b"a", 1.5, True])
    def test_a_key_that_is_no_text(self, key: Any, snap: str) -> None:
        guard = Guard()
        with raises_clearly("key|str", kind=TypeError):
            Snapshot.take(snap, {"state": guard.state, key: StateDict()})
        assert not os.path.exists(snap)
        Snapshot.take(snap, {"state": StateDict(t=torch.ones(4), n=1)})
        with raises_clearly("key|str", kind=TypeError):
            Snapshot(snap).restore({"state": guard.state, key: StateDict()})
        guard.check()

    def test_two_rng_states(self, snap: str) -> None:
        guard = Guard()
        with raises_clearly("RNGState", "rng1", "rng2", kind=RuntimeError):
            Snapshot.take(snap, {"rng1": RNGState(), "rng2": RNGState()})
        assert not os.path.exists(snap)
        Snapshot.take(snap, {"rng1": RNGState(), "state": StateDict(t=torch.ones(4), n=1)})
        generator = torch.get_rng_state()
        with raises_clearly("RNGState", "rng1", "rng2", kind=RuntimeError):
            Snapshot(snap).restore({"rng1": RNGState(), "rng2": RNGState(), "state": guard.state})
        guard.check()
        assert_same(torch.get_rng_state(), generator)

    def test_a_class_instead_of_an_object(self, snap: str) -> None:
        with raises_clearly("state", kind=TypeError):
            Snapshot.take(snap, {"state": StateDict})


class TestArguments:
    @pytest.mark.parametrize("path", [None, 5, b"/tmp/x", ["x"]], ids=repr)
    def test_a_path_that_is_no_text(self, path: Any) -> None:
        for call in (lambda: Snapshot(path).get_manifest(), lambda: Snapshot.take(path, {"s": StateDict(a=1)})):
            with pytest.raises(TypeError):
                call()

    def test_an_empty_path(self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with raises_clearly("path"):
            Snapshot.take("", {"s": StateDict(a=1)})
        assert os.listdir(tmp_path) == []

    def test_a_path_with_a_nul(self, tmp_path: pathlib.Path) -> None:
        with raises_clearly():
            Snapshot.take(str(tmp_path / "a\0b"), {"s": StateDict(a=1)})
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("replicated", [5, "state/**", [5]], ids=repr)
    def test_replicated_that_is_no_list_of_globs(self, replicated: Any, snap: str) -> None:
        with raises_clearly("replicated", kind=TypeError):
            Snapshot.take(snap, {"s": StateDict(a=1)}, replicated=replicated)
        assert not os.path.exists(snap)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MAX_CHUNK_SIZE_BYTES_OVERRIDE", "many"),
            ("MAX_CHUNK_SIZE_BYTES_OVERRIDE", "0"),
            ("SLAB_SIZE_THRESHOLD_BYTES_OVERRIDE", "-1"),
            ("MAX_PER_RANK_IO_CONCURRENCY_OVERRIDE", "0"),
            ("MAX_PER_RANK_IO_CONCURRENCY_OVERRIDE", "1.5"),
            ("PER_RANK_MEMORY_BUDGET_BYTES", ""),
            ("PER_RANK_MEMORY_BUDGET_BYTES", "-5"),
            ("DISABLE_BATCHING", "perhaps"),
        ],
    )
    def test_a_knob_that_makes_no_sense(
        self, name: str, value: str, snap: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(f"TORCHSNAPSHOT_{name}", value)
        with raises_clearly(f"TORCHSNAPSHOT_{name}", kind=ValueError):
            Snapshot.take(snap, {"s": StateDict(a=torch.ones(2))})
        assert not os.path.exists(snap)

    @pytest.mark.parametrize(
        "prepare", [lambda p, t, tracing: None, lambda p, t, tracing: 1 / 0, lambda p, t, tracing: t[:1]],
        ids=["no tensor", "raises", "another shape"],
    )  # fmt: skip
    def test_a_prepare_function_that_misbehaves(self, prepare: Any, snap: str) -> None:
        state = StateDict(t=torch.arange(4.0))
        try:
            Snapshot.take(snap, {"state": state}, _custom_tensor_prepare_func=prepare)
        except (RuntimeError, TypeError, ValueError, ZeroDivisionError):
            assert files_below(snap) == {}
        else:  # a result of another shape is described as it is
            assert_same(restored(snap), {"t": torch.arange(1.0)})


class Raises(Box):
    def state_dict(self) -> Any:
        raise LookupError("no state today")


class LoadRaises(Box):
    def load_state_dict(self, state_dict: Any) -> None:
        raise LookupError("no loading today")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class TestFailedTake:
    BAD: tuple[tuple[str, Any], ...] = (
        ("state_dict raises", lambda: Raises()),
        ("no pickle", lambda: StateDict(v=lambda: 1)),
        ("meta", lambda: StateDict(v=torch.empty(3, device="meta"))),
        ("deep", lambda: StateDict(v=nested(20_000))),
    )

    @pytest.mark.parametrize("make", [b[1] for b in BAD], ids=[b[0] for b in BAD])
    def test_leaves_nothing_behind(self, make: Any, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "new" / "snap"
        with pytest.raises(Exception, match=r"."):
            Snapshot.take(str(path), {"good": StateDict(t=torch.ones(1000)), "bad": make(), "more": StateDict(o=(1,))})
        assert files_below(tmp_path) == {}

    @pytest.mark.parametrize("make", [b[1] for b in BAD], ids=[b[0] for b in BAD])
    def test_leaves_the_old_snapshot_valid(self, make: Any, snap: str) -> None:
        old = {"t": torch.arange(10.0), "o": (1, 2)}
        Snapshot.take(snap, {"good": StateDict(old)})
        before = {name: (pathlib.Path(snap) / name).read_bytes() for name in files_below(snap)}
        with pytest.raises(Exception, match=r"."):
            Snapshot.take(snap, {"good": StateDict(t=torch.zeros(10)), "bad": make()})
        assert {name: (pathlib.Path(snap) / name).read_bytes() for name in files_below(snap)} == before
        assert_same(restored(snap, "good"), old)

    def test_the_exception_of_state_dict_comes_through(self, snap: str) -> None:
        with pytest.raises(LookupError, match="no state today"):
            Snapshot.take(snap, {"bad": Raises()})
        Snapshot.take(snap, {"bad": StateDict(a=1)})
        with pytest.raises(LookupError, match="no loading today"):
            Snapshot(snap).restore({"bad": LoadRaises({"a": 0})})

    def test_the_engine_works_after_failures(self, snap: str) -> None:
        for _ in range(20):
            with pytest.raises(Exception, match=r"."):
                Snapshot.take(snap, {"bad": StateDict(v=lambda: 1)})
        Snapshot.take(snap, {"state": StateDict(t=torch.ones(3))})
        assert_same(restored(snap), {"t": torch.ones(3)})


class TestOverwrite:
    def test_the_new_one_is_right_and_the_old_objects_are_gone(self, snap: str) -> None:
        Snapshot.take(snap, {"a": StateDict(t=torch.arange(1000.0), o=(1,)), "b": StateDict(x=torch.ones(5))})
        old = data_files(snap)
        new = {"t": torch.zeros(10), "o": (2, 3)}
        Snapshot.take(snap, {"a": StateDict(new)})
        assert_same(restored(snap, "a"), new)
        assert set(raw_metadata(snap)["manifest"]) == {"0/a", "0/a/t", "0/a/o"}
        assert not set(old) & set(data_files(snap))
        assert sum(data_files(snap).values()) < 3000

    def test_a_snapshot_of_the_original_is_replaced(self, snap: str) -> None:
        from support import CORPUS

        shutil.copytree(CORPUS / "tensors_files" / "snapshot", snap)
        Snapshot.take(snap, {"state": StateDict(t=torch.ones(2))})
        assert_same(restored(snap), {"t": torch.ones(2)})
        assert len(data_files(snap)) == 1

    def test_files_of_the_user_stay(self, snap: str) -> None:
        os.makedirs(os.path.join(snap, "logs"))
        for name in ("README", "logs/train.txt"):
            (pathlib.Path(snap) / name).write_text("mine")
        for i in range(2):
            Snapshot.take(snap, {"state": StateDict(t=torch.full((3,), i))})
        assert (pathlib.Path(snap) / "README").read_text() == "mine"
        assert (pathlib.Path(snap) / "logs/train.txt").read_text() == "mine"

    def test_what_a_damaged_old_snapshot_names_outside_is_left_alone(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "precious").write_bytes(b"keep me")
        entry = {
            "type": "object",
            "location": "../precious",
            "serializer": "torch_save",
            "obj_type": "x",
            "replicated": False,
        }
        write_snapshot(str(tmp_path / "s"), {"0/k": {"type": "dict", "keys": ["a"]}, "0/k/a": entry})
        try:
            Snapshot.take(str(tmp_path / "s"), {"state": StateDict(t=torch.ones(2))})
        except TorchSnapshotError:
            pass
        else:
            assert_same(restored(str(tmp_path / "s")), {"t": torch.ones(2)})
        assert (tmp_path / "precious").read_bytes() == b"keep me"

    @pytest.mark.parametrize("text", ["", "{", "no json at all", "[]"])
    def test_over_an_unreadable_old_one(self, text: str, snap: str) -> None:
        os.makedirs(snap)
        (pathlib.Path(snap) / METADATA).write_text(text)
        Snapshot.take(snap, {"state": StateDict(t=torch.ones(2))})
        assert_same(restored(snap), {"t": torch.ones(2)})

    def test_restoring_over_itself_twice(self, snap: str) -> None:
        state = StateDict(t=torch.arange(5.0))
        for _ in range(3):
            Snapshot.take(snap, {"state": state}).restore({"state": state})
        assert_same(state.data, {"t": torch.arange(5.0)})
        assert len(data_files(snap)) == 1

    @pytest.mark.no_sanitizer
    def test_killed_in_the_middle_the_old_one_is_valid(self, snap: str) -> None:
        """kill -9 at many moments of a take over an old snapshot: the old one, or the new one, never a mixture."""
        Snapshot.take(snap, {"state": StateDict({f"t{i}": torch.zeros(1 << 18) for i in range(8)})})
        code = """
import sys, torch
from torchsnapshot import Snapshot, StateDict
state = StateDict({f"t{i}": torch.ones(1 << 18) for i in range(8)})
print("ready", flush=True)
sys.stdin.readline()
Snapshot.take(sys.argv[1], {"state": state})
"""
        import time

        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        for delay in (0.0, 0.003, 0.01, 0.03):
            process = subprocess.Popen(
                [sys.executable, "-c", code, snap], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            with process:
                assert process.stdout is not None
                assert process.stdin is not None
                process.stdout.readline()
                process.stdin.write(b"\n")
                process.stdin.flush()
                time.sleep(delay)
                process.kill()
            values = {float(t.unique().item()) for t in restored(snap).values()}
            assert values in ({0.0}, {1.0})
        Snapshot.take(snap, {"state": StateDict(t=torch.ones(3))})
        assert_same(restored(snap), {"t": torch.ones(3)})
