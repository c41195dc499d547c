"""async_take: a fixed point in time, whatever happens afterwards; failures that nobody can miss; programs that end."""

from __future__ import annotations

import gc
import pathlib
import threading
import time
import warnings
from typing import Any

import pytest
import torch
import torchsnapshot
from support import assert_same, restored, run_python
from torch import nn
from torchsnapshot import PendingSnapshot, PendingTakeError, RNGState, Snapshot, StateDict, knobs
from torchsnapshot.io_types import ReadIO, StoragePlugin, WriteIO

HERE = pathlib.Path(__file__).parent


def many_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Every kind of layout, from one byte to some MB; views of one storage among them."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    base = rand(300, 200)
    return {
        "large": rand(1200, 1000),
        "transposed": rand(700, 900).t(),
        "sliced": rand(500, 600)[::2, 3:500],
        "expanded": rand(1, 40).expand(30, 40),
        "view_a": base[:100],
        "view_b": base[50:],
        "tied": base,
        "half": rand(333).half(),
        "byte": torch.randint(0, 255, (1,), dtype=torch.uint8, generator=generator),
        "bool": rand(1001) > 0.5,
        "complex": torch.complex(rand(50), rand(50)),
        "conj": torch.complex(rand(50), rand(50)).conj(),
        "scalar": rand(),
        "empty": rand(0, 3),
        "parameter": nn.Parameter(rand(20, 20)),
        "quantized": torch.quantize_per_tensor(rand(30), 0.1, 3, torch.quint8),
        "sparse": rand(20, 20).relu().to_sparse(),
    }


def scribble(tensors: dict[str, torch.Tensor]) -> None:
    """Changes every tensor in place."""
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.is_sparse:
                tensor._values().zero_()
            elif tensor.is_quantized:
                tensor.copy_(torch.zeros_like(tensor.dequantize()))
            elif tensor._is_view() and 0 in tensor.stride():
                tensor[:1].zero_()
            else:
                tensor.zero_()


class TestOracle:
    @pytest.mark.parametrize("budget", [None, 1, 6 << 20])
    @pytest.mark.parametrize("batching", [True, False])
    @pytest.mark.filterwarnings("ignore")
    def test_what_was_there_at_the_call(self, snap: str, budget: int | None, batching: bool) -> None:
        expected, state = StateDict(many_tensors(1)), StateDict(many_tensors(1))
        with (
            knobs.override_per_rank_memory_budget_bytes(budget),
            knobs.override_is_batching_disabled(not batching),
            knobs.override_max_chunk_size_bytes(1 << 20),
        ):
            pending = Snapshot.async_take(snap, {"state": state})
        scribble(state.data)
        state.clear()
        gc.collect()
        pending.wait()
        assert_same(restored(snap), {k: v.data if isinstance(v, nn.Parameter) else v for k, v in expected.items()})

    def test_what_is_no_tensor(self, snap: str) -> None:
        inner = {"list": [1, 2, 3], "set": {1, 2}, "none": None}
        state = StateDict(inner=inner, step=5)
        pending = Snapshot.async_take(snap, {"state": state})
        inner["list"].append(4)  # type: ignore[union-attr]
        inner["set"].clear()  # type: ignore[union-attr]
        state["step"] = 6
        pending.wait()
        assert_same(restored(snap), {"inner": {"list": [1, 2, 3], "set": {1, 2}, "none": None}, "step": 5})

    def test_several_at_once(self, tmp_path: pathlib.Path) -> None:
        state = StateDict(x=torch.zeros(200_000))
        pending = []
        for step in range(6):
            state["x"].fill_(step)
            pending.append(Snapshot.async_take(str(tmp_path / str(step)), {"state": state}))
        for step, one in enumerate(pending):
            one.wait()
            assert_same(restored(str(tmp_path / str(step))), {"x": torch.full((200_000,), float(step))})

    def test_the_last_to_one_path_stays(self, snap: str) -> None:
        state = StateDict(x=torch.zeros(100_000))
        for step in range(6):
            state["x"].fill_(step)
            last = Snapshot.async_take(snap, {"state": state})
        last.wait()
        assert_same(restored(snap), {"x": torch.full((100_000,), 5.0)})
        assert len(list(pathlib.Path(snap, "data").iterdir())) == 1, "what the others wrote is gone"

    def test_a_training_loop_gives_the_same_snapshots_as_take(self, tmp_path: pathlib.Path) -> None:
        def run(asynchronous: bool) -> None:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(30, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2))
            optimizer = torch.optim.AdamW(model.parameters())
            app_state = {"model": model, "optimizer": optimizer, "rng": RNGState()}
            pending = []
            for step in range(12):
                optimizer.zero_grad()
                model(torch.randn(16, 30)).square().mean().backward()
                optimizer.step()
                path = str(tmp_path / f"{asynchronous}-{step}")
                if asynchronous:
                    pending.append(Snapshot.async_take(path, app_state))
                else:
                    Snapshot.take(path, app_state)
            for one in pending:
                one.wait()

        run(False)
        run(True)
        for step in range(12):
            for key in ("model", "optimizer", "rng"):
                sync, asynchronous = (
                    Snapshot(str(tmp_path / f"{kind}-{step}")).get_state_dict_for_key(key) for kind in (False, True)
                )
                assert_same(asynchronous, sync)


class TestInterface:
    def test_names(self, snap: str) -> None:
        pending = Snapshot.async_take(path=snap, app_state={"state": StateDict(a=1)}, pg=None, replicated=["**"])
        assert isinstance(pending, PendingSnapshot)
        assert isinstance(pending, torchsnapshot.snapshot.PendingSnapshot)
        assert (pending.path, pending.pg) == (snap, None)
        snapshot = pending.wait()
        assert isinstance(snapshot, Snapshot)
        assert pending.wait() is snapshot
        assert pending.done() is True
        assert pending.exception() is None
        assert snap in repr(pending)
        assert snapshot.read_object("0/state/a") == 1

    def test_wrong_arguments_raise_at_once(self, snap: str) -> None:
        with pytest.raises(TypeError):
            Snapshot.async_take(snap, [])  # type: ignore[arg-type]
        with pytest.raises(RuntimeError):
            Snapshot.async_take(snap, {"a": RNGState(), "b": RNGState()})
        with pytest.raises(NotImplementedError, match="state/w"):
            Snapshot.async_take(snap, {"state": StateDict(w=torch.empty(3, device="meta"))})
        assert not pathlib.Path(snap).exists()

    def test_random_numbers_go_on_as_without(self, snap: str) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        Snapshot.async_take(snap, {"rng": RNGState(), "state": StateDict(a=1)}).wait()
        assert_same(torch.rand(3), expected)

    def test_release_staging_memory(self, snap: str) -> None:
        Snapshot.async_take(snap, {"state": StateDict(x=torch.rand(1 << 20))}).wait()
        torchsnapshot.release_staging_memory()


class SlowPlugin(StoragePlugin):
    """Writes to a dict once it may; fails if told."""

    objects: dict[str, bytes]
    gate: threading.Event
    fail = False

    def __init__(self, root: str, storage_options: dict[str, Any] | None = None) -> None:
        del root, storage_options

    async def write(self, write_io: WriteIO) -> None:
        type(self).gate.wait()
        if type(self).fail:
            raise OSError(5, "the plugin's disk is gone")
        type(self).objects[write_io.path] = bytes(write_io.buf)

    async def read(self, read_io: ReadIO) -> None:
        data = type(self).objects[read_io.path]
        begin, end = read_io.byte_range or (0, len(data))
        read_io.buf.write(data[begin:end])

    async def delete(self, path: str) -> None:
        type(self).objects.pop(path, None)

    async def delete_dir(self, path: str) -> None:
        for name in [name for name in type(self).objects if name.startswith(path)]:
            del type(self).objects[name]

    async def close(self) -> None:
        pass


@pytest.fixture
def slow() -> Any:
    """A place whose gate is closed; opened at the end, so that no take hangs."""
    SlowPlugin.objects = {}
    SlowPlugin.gate = threading.Event()
    SlowPlugin.fail = False
    torchsnapshot.storage_plugin.register_storage_plugin("slow", SlowPlugin)
    yield SlowPlugin
    SlowPlugin.gate.set()
    torchsnapshot.storage_plugin.unregister_storage_plugin("slow")


class TestPlugin:
    def test_a_slow_one(self, slow: type[SlowPlugin]) -> None:
        state = StateDict(x=torch.arange(1000))
        pending = Snapshot.async_take("slow://place", {"state": state})
        state["x"].zero_()
        assert not pending.done()
        with pytest.raises(TimeoutError, match="goes on"):
            pending.wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            pending.exception(timeout=0)
        slow.gate.set()
        target = StateDict()
        pending.wait(timeout=60).restore({"state": target})
        assert_same(dict(target), {"x": torch.arange(1000)})

    def test_one_that_fails(self, slow: type[SlowPlugin]) -> None:
        slow.fail = True
        slow.gate.set()
        pending = Snapshot.async_take("slow://place", {"state": StateDict(x=torch.arange(1000))})
        with pytest.raises(RuntimeError, match="disk is gone") as raised:
            pending.wait()
        assert isinstance(raised.value, PendingTakeError)
        assert isinstance(raised.value.__cause__, OSError)
        assert isinstance(pending.exception(), OSError)
        assert ".snapshot_metadata" not in slow.objects

    def test_dropped_while_pending(self, slow: type[SlowPlugin]) -> None:
        Snapshot.async_take("slow://place", {"state": StateDict(x=torch.arange(1000))})
        gc.collect()
        slow.gate.set()
        deadline = time.monotonic() + 60
        while ".snapshot_metadata" not in slow.objects and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ".snapshot_metadata" in slow.objects

    def test_a_failure_that_nobody_waited_for(self, slow: type[SlowPlugin]) -> None:
        slow.fail = True
        slow.gate.set()
        pending = Snapshot.async_take("slow://place", {"state": StateDict(x=torch.arange(1000))})
        pending._take.core.wait_for(-1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del pending
            gc.collect()
        assert [warning.category for warning in caught] == [RuntimeWarning]
        assert "nobody waited" in str(caught[0].message)
        assert "disk is gone" in str(caught[0].message)

    def test_a_failure_that_was_seen_is_no_warning(self, slow: type[SlowPlugin]) -> None:
        slow.fail = True
        slow.gate.set()
        pending = Snapshot.async_take("slow://place", {"state": StateDict(x=torch.arange(1000))})
        assert pending.exception() is not None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del pending
            gc.collect()


class TestFailures:
    def test_a_full_path(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "file").write_text("in the way")
        pending = Snapshot.async_take(str(tmp_path / "file"), {"state": StateDict(x=torch.rand(10))})
        with pytest.raises(RuntimeError, match="is a file"):
            pending.wait()
        assert isinstance(pending.exception(), NotADirectoryError)


class TestPrograms:
    """What becomes of a pending take when its program ends, or forks."""

    STATE = """
import os, sys, torch
from torchsnapshot import Snapshot, StateDict
state = StateDict(x=torch.arange(3_000_000), step=7)
"""

    @staticmethod
    def expect_whole(snap: str) -> None:
        assert_same(restored(snap), {"x": torch.arange(3_000_000), "step": 7})

    @pytest.mark.parametrize("end", ["", "sys.exit(0)", "del pending"])
    def test_the_end_of_the_program_waits(self, snap: str, end: str) -> None:
        done = run_python(self.STATE + f"pending = Snapshot.async_take(sys.argv[1], dict(state=state))\n{end}", snap)
        assert (done.returncode, done.stderr) == (0, "")
        self.expect_whole(snap)

    def test_an_exception_that_nobody_handles(self, snap: str) -> None:
        done = run_python(self.STATE + "pending = Snapshot.async_take(sys.argv[1], dict(state=state))\n1 / 0", snap)
        assert done.returncode == 1
        assert "ZeroDivisionError" in done.stderr
        self.expect_whole(snap)

    def test_a_thread_takes(self, snap: str) -> None:
        code = """
import threading
threading.Thread(target=Snapshot.async_take, args=(sys.argv[1], dict(state=state))).start()
"""
        assert run_python(self.STATE + code, snap).returncode == 0
        self.expect_whole(snap)

    def test_a_failure_at_the_end_is_a_warning(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / "file").write_text("in the way")
        code = self.STATE + "pending = Snapshot.async_take(sys.argv[1], dict(state=state))"
        done = run_python(code, str(tmp_path / "file"))
        assert done.returncode == 0
        assert "nobody waited" in done.stderr

    def test_a_take_that_is_too_slow_at_the_end_is_cancelled(self, tmp_path: pathlib.Path) -> None:
        code = """
import os, sys, threading
os.environ["TORCHSNAPSHOT_EXIT_TIMEOUT_SECONDS"] = "0"
from test_async_take import SlowPlugin
from torchsnapshot import Snapshot, StateDict, storage_plugin
SlowPlugin.objects, SlowPlugin.gate = {}, threading.Event()
storage_plugin.register_storage_plugin("slow", SlowPlugin)
Snapshot.async_take("slow://place", {"state": StateDict(x=1)})
threading.Timer(1, SlowPlugin.gate.set).start()
"""
        done = run_python(code, cwd=HERE)
        assert done.returncode == 0, done.stderr
        # Either the timer's thread ended the wait before, or the take was cancelled and said so.
        assert done.stderr == "" or "cancel" in done.stderr.lower()

    def test_forked_children_leave_it_alone(self, snap: str) -> None:
        code = (
            self.STATE
            + """
import torch.utils.data
class Data(torch.utils.data.Dataset):
    def __len__(self): return 20
    def __getitem__(self, index): return torch.full((1000,), float(index))
pending = Snapshot.async_take(sys.argv[1], dict(state=state))
loader = torch.utils.data.DataLoader(Data(), batch_size=2, num_workers=2, multiprocessing_context="fork")
assert sum(batch.sum() for batch in loader) == 190_000
child = os.fork()
if child == 0:
    try:
        pending.wait()
    except ValueError as error:
        assert "forked child" in str(error)
        Snapshot.async_take(sys.argv[1] + "-child", dict(state=StateDict(a=1))).wait()
        sys.exit(0)
    sys.exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
pending.wait()
"""
        )
        done = run_python(code, snap)
        assert done.returncode == 0, done.stderr
        self.expect_whole(snap)
        assert_same(restored(snap + "-child"), {"a": 1})


class TestEvents:
    def test_start_and_end(self, snap: str, monkeypatch: pytest.MonkeyPatch) -> None:
        events: list[Any] = []
        monkeypatch.setattr("torchsnapshot._operation.log_event", events.append)
        Snapshot.async_take(snap, {"state": StateDict(x=torch.rand(1000))}).wait()
        assert [(event.name, event.metadata["action"]) for event in events] == [
            ("async_take", "start"),
            ("async_take", "end"),
        ]
        assert events[0].metadata["unique_id"] == events[1].metadata["unique_id"]
        assert events[1].metadata["is_success"] is True
        assert events[1].metadata["bytes"] >= 4000
