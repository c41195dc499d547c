"""Storage plugins written in Python, events, progress, knobs, and what other threads may do meanwhile."""

from __future__ import annotations

import asyncio
import io
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torchsnapshot_test_plugins as plugins
from support import (
    METADATA,
    SIDECARS,
    assert_same,
    data_files,
    files_below,
    raises_clearly,
    raw_metadata,
    restored,
    run_python,
)
from torch import nn
from torchsnapshot import Snapshot, StateDict, knobs
from torchsnapshot.io_types import ReadIO, StoragePlugin, WriteIO
from torchsnapshot.storage_plugin import register_storage_plugin, unregister_storage_plugin, url_to_storage_plugin
from torchsnapshot.storage_plugins.fs import FSStoragePlugin

MB = 1 << 20


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[plugins.Bucket]:
    name = request.node.name
    plugins.BUCKETS[name] = plugins.Bucket()
    plugins.BUCKETS[name].url = f"testmem://{name}"  # type: ignore[attr-defined]
    yield plugins.BUCKETS[name]
    del plugins.BUCKETS[name]


def sample() -> dict[str, Any]:
    return {
        "t": torch.arange(100.0),
        "n": [torch.ones(3), 5],
        "o": (1, "x"),
        "e": torch.empty(0),
        "c": torch.arange(12.0).reshape(3, 4).t(),
    }


class TestPythonPlugin:
    @pytest.mark.parametrize("unbatched", [True, False])
    def test_take_restore_and_read(self, unbatched: bool, bucket: Any) -> None:
        with knobs.override_is_batching_disabled(unbatched):
            Snapshot.take(bucket.url, {"state": StateDict(sample()), "m": nn.Linear(3, 2)})
        assert METADATA in bucket.objects
        assert_same(restored(bucket.url), sample())
        target = StateDict({**sample(), "t": torch.zeros(100)})
        place = target["t"].data_ptr()
        report = Snapshot(bucket.url).restore({"state": target})
        assert_same(target.data, sample())
        assert target["t"].data_ptr() == place
        assert report.mismatched == []
        snapshot = Snapshot(bucket.url)
        assert_same(snapshot.read_object("0/state/t"), sample()["t"])
        assert_same(snapshot.read_object("0/state/o"), (1, "x"))
        assert_same(snapshot.get_state_dict_for_key("state"), sample())
        assert set(snapshot.get_manifest()) == set(snapshot.metadata.manifest)

    def test_the_metadata_is_written_last(self, bucket: Any) -> None:
        Snapshot.take(bucket.url, {"state": StateDict(sample())})
        assert bucket.writes[-1] == METADATA
        assert len(bucket.writes) == len(set(bucket.writes))

    def test_large_tensors_and_ranges(self, bucket: Any) -> None:
        state = {"a": torch.randint(0, 256, (20 * MB,), dtype=torch.uint8), "b": torch.rand(1000, 999).t()}
        with knobs.override_max_chunk_size_bytes(6 * MB):
            Snapshot.take(bucket.url, {"state": StateDict(state)})
        assert_same(restored(bucket.url), state)
        bucket.reads.clear()
        assert_same(Snapshot(bucket.url).read_object("0/state/a", memory_budget_bytes=MB), state["a"])

    def test_one_tensor_of_a_slab_needs_its_bytes_only(self, bucket: Any) -> None:
        state = {f"t{i}": torch.rand(MB // 4) for i in range(8)}
        Snapshot.take(bucket.url, {"state": StateDict(state)})
        bucket.reads.clear()
        assert_same(Snapshot(bucket.url).read_object("0/state/t3"), state["t3"])
        data = [r for path, r in bucket.reads if path != METADATA and not path.startswith(SIDECARS)]
        assert all(r is not None for r in data)
        assert sum(end - begin for begin, end in data) < 3 * MB

    def test_the_options_reach_the_factory(self, bucket: Any) -> None:
        options = {"region": "here", "retries": 3}
        Snapshot.take(bucket.url, {"state": StateDict(a=1)}, storage_options=options)
        Snapshot(bucket.url, storage_options=options).restore({"state": StateDict()})
        assert bucket.options
        assert all(o == options for o in bucket.options)

    def test_it_is_closed(self, bucket: Any) -> None:
        snapshot = Snapshot.take(bucket.url, {"state": StateDict(a=1)})
        snapshot.read_object("0/state/a")
        del snapshot
        import gc

        gc.collect()
        assert bucket.closed == len(bucket.options) > 0

    def test_overwriting_removes_the_old_objects(self, bucket: Any) -> None:
        Snapshot.take(bucket.url, {"state": StateDict(sample())})
        old = {n for n in bucket.objects if n != METADATA and not n.startswith(SIDECARS)}
        Snapshot.take(bucket.url, {"state": StateDict(a=torch.ones(2))})
        assert not old & set(bucket.objects)
        assert_same(restored(bucket.url), {"a": torch.ones(2)})

    def test_a_failing_write(self, bucket: Any) -> None:
        bucket.fail_write = "data"
        with raises_clearly("the test refuses to write", "state/|data", kind=(OSError, RuntimeError)):
            Snapshot.take(bucket.url, {"state": StateDict(sample())})
        assert bucket.objects == {}

    def test_a_failing_commit(self, bucket: Any) -> None:
        Snapshot.take(bucket.url, {"state": StateDict(a=torch.ones(2))})
        bucket.fail_write = METADATA
        before = dict(bucket.objects)
        with raises_clearly("the test refuses to write", kind=(OSError, RuntimeError)):
            Snapshot.take(bucket.url, {"state": StateDict(sample())})
        bucket.fail_write = ""
        assert bucket.objects == before
        assert_same(restored(bucket.url), {"a": torch.ones(2)})

    def test_a_failing_read(self, bucket: Any) -> None:
        Snapshot.take(bucket.url, {"state": StateDict(sample())})
        data = raw_location(bucket, "0/state/t")
        bucket.fail_read = data
        with raises_clearly("the test refuses to read", data, kind=(OSError, RuntimeError)):
            restored(bucket.url)
        bucket.fail_read = METADATA
        with pytest.raises(RuntimeError, match=r"^Failed to read \.snapshot_metadata"):
            restored(bucket.url)
        bucket.fail_read = ""
        assert_same(restored(bucket.url), sample())

    @pytest.mark.parametrize("path", ["0/state/t", "0/state/o"])
    def test_too_few_bytes(self, path: str, bucket: Any) -> None:
        Snapshot.take(bucket.url, {"state": StateDict(sample())})
        bucket.short_read = raw_location(bucket, path)
        target = StateDict(t=torch.zeros(100))
        with raises_clearly(bucket.short_read):
            Snapshot(bucket.url).restore({"state": target})

    def test_a_missing_object(self, bucket: Any) -> None:
        Snapshot.take(bucket.url, {"state": StateDict(sample())})
        del bucket.objects[raw_location(bucket, "0/state/t")]
        target = StateDict({**sample(), "t": torch.zeros(100)})
        with raises_clearly("data", kind=(OSError, RuntimeError, KeyError)):
            Snapshot(bucket.url).restore({"state": target})

    def test_slow_operations_overlap(self, bucket: Any) -> None:
        state = StateDict({f"t{i}": torch.rand(100) for i in range(12)})
        bucket.delay = 0.1
        started = time.monotonic()
        with knobs.override_is_batching_disabled(True):
            Snapshot.take(bucket.url, {"state": state})
            restored(bucket.url)
        assert time.monotonic() - started < 24 * 0.1
        assert bucket.most_busy > 3

    def test_the_concurrency_knob(self, bucket: Any) -> None:
        state = StateDict({f"t{i}": torch.rand(100) for i in range(6)})
        bucket.delay = 0.02
        for limit in (1, 3):
            bucket.most_busy = 0
            with knobs.override_is_batching_disabled(True), knobs.override_max_per_rank_io_concurrency(limit):
                Snapshot.take(bucket.url, {"state": state})
                restored(bucket.url)
            assert bucket.most_busy <= limit
            assert bucket.most_busy > 1 or limit == 1

    def test_something_that_is_no_plugin(self) -> None:
        for call in (
            lambda: Snapshot.take("testbad://x", {"s": StateDict(a=1)}),
            lambda: url_to_storage_plugin("testbad://x"),
        ):
            with raises_clearly("testbad", "StoragePlugin"):
                call()

    def test_a_subclass_of_the_packages_own_plugin(self, snap: str) -> None:
        plugins.CountingFSPlugin.paths_written.clear()
        plugins.CountingFSPlugin.paths_read.clear()
        Snapshot.take(f"testfs://{snap}", {"state": StateDict(sample())})
        assert_same(restored(f"testfs://{snap}"), sample())
        assert METADATA in plugins.CountingFSPlugin.paths_written
        assert METADATA in plugins.CountingFSPlugin.paths_read
        assert_same(restored(snap), sample())

    def test_used_from_inside_a_running_event_loop(self, bucket: Any) -> None:
        async def main() -> None:
            Snapshot.take(bucket.url, {"state": StateDict(sample())})
            assert_same(restored(bucket.url), sample())

        asyncio.run(main())


def raw_location(bucket: Any, path: str) -> str:
    import json

    return json.loads(bucket.objects[METADATA])["manifest"][path]["location"]


class TestPluginClasses:
    def test_a_class_that_the_program_registers(self) -> None:
        class Mine(plugins.MemoryPlugin):
            pass

        register_storage_plugin("mine", Mine)
        try:
            assert isinstance(url_to_storage_plugin("mine://x"), Mine)
            Snapshot.take("mine://x", {"state": StateDict(sample())})
            assert_same(restored("mine://x"), sample())
        finally:
            unregister_storage_plugin("mine")
        with pytest.raises(RuntimeError, match="mine://"):
            url_to_storage_plugin("mine://x")
        with pytest.raises(ValueError, match="no URL scheme"):
            register_storage_plugin("a/b", Mine)

    def test_url_to_storage_plugin(self, tmp_path: pathlib.Path) -> None:
        for url in (str(tmp_path), f"fs://{tmp_path}", f"://{tmp_path}"):
            plugin = url_to_storage_plugin(url)
            assert isinstance(plugin, FSStoragePlugin)
            assert isinstance(plugin, StoragePlugin)
        assert isinstance(url_to_storage_plugin("testmem://somewhere", {"a": 1}), plugins.MemoryPlugin)
        with raises_clearly("nope"):
            url_to_storage_plugin("nope://x")

    def test_the_file_system_plugin_by_itself(self, tmp_path: pathlib.Path) -> None:
        plugin = FSStoragePlugin(root=str(tmp_path))
        loop = asyncio.new_event_loop()
        for buffer in (b"some bytes", memoryview(b"some bytes")):
            plugin.sync_write(WriteIO(path="a/b/c", buf=buffer), loop)
            assert (tmp_path / "a/b/c").read_bytes() == b"some bytes"
        whole, part = ReadIO(path="a/b/c"), ReadIO(path="a/b/c", byte_range=(2, 6))
        plugin.sync_read(whole, loop)
        plugin.sync_read(part)
        assert (whole.buf.getvalue(), part.buf.getvalue()) == (b"some bytes", b"me b")
        assert isinstance(whole.buf, io.BytesIO)
        loop.run_until_complete(plugin.delete("a/b/c"))
        loop.run_until_complete(plugin.delete_dir("a/b"))
        assert not (tmp_path / "a/b").exists()
        with pytest.raises(FileNotFoundError):
            plugin.sync_read(ReadIO(path="a/b/c"), loop)
        plugin.sync_close(loop)
        loop.close()

    def test_what_it_wrote_the_engine_reads_and_the_reverse(self, snap: str, tmp_path: pathlib.Path) -> None:
        Snapshot.take(snap, {"state": StateDict(t=torch.arange(5.0))})
        source, copy = FSStoragePlugin(root=snap), FSStoragePlugin(root=str(tmp_path / "copy"))
        for name in files_below(snap):
            read = ReadIO(path=name)
            source.sync_read(read)
            copy.sync_write(WriteIO(path=name, buf=read.buf.getvalue()))
        assert_same(restored(str(tmp_path / "copy")), {"t": torch.arange(5.0)})


@pytest.fixture
def events() -> list[Any]:
    plugins.RECORDER.events.clear()
    return plugins.RECORDER.events


def pairs(events: list[Any], name: str) -> tuple[Any, Any]:
    start, end = (
        next(e for e in events if e.name == name and e.metadata["action"] == action) for action in ("start", "end")
    )
    return start, end


class TestEvents:
    def test_take_restore_and_read_object(self, events: list[Any], snap: str) -> None:
        size = 10_000 * 4
        snapshot = Snapshot.take(snap, {"state": StateDict(t=torch.rand(10_000), a=1)})
        snapshot.restore({"state": StateDict(t=torch.zeros(10_000))})
        snapshot.read_object("0/state/t")
        assert {e.name for e in events} == {"take", "restore", "read_object"}
        for name in ("take", "restore", "read_object"):
            start, end = pairs(events, name)
            assert start.metadata["unique_id"] == end.metadata["unique_id"]
            assert start.metadata["rank"] == end.metadata["rank"] == 0
            assert end.metadata["is_success"] is True
            assert end.metadata["error"] is None
            assert isinstance(end.metadata["duration_s"], float)
            assert 0 < end.metadata["duration_s"] < 60
            assert size <= end.metadata["bytes"] < 2 * size, name
        assert len({e.metadata["unique_id"] for e in events}) == 3

    def test_every_start_has_one_end_in_order(self, events: list[Any], snap: str) -> None:
        for _ in range(3):
            Snapshot.take(snap, {"state": StateDict(a=1)}).restore({"state": StateDict()})
        actions = [(e.name, e.metadata["action"]) for e in events if e.metadata["action"] in ("start", "end")]
        assert actions == [("take", "start"), ("take", "end"), ("restore", "start"), ("restore", "end")] * 3

    def test_failures(self, events: list[Any], snap: str) -> None:
        with pytest.raises(Exception, match=r"."):
            Snapshot.take(snap, {"state": StateDict(v=lambda: 1)})
        with pytest.raises(RuntimeError):
            Snapshot(snap).restore({"state": StateDict()})
        with pytest.raises(RuntimeError):
            Snapshot(snap).read_object("0/state/v")
        for name in ("take", "restore", "read_object"):
            _, end = pairs(events, name)
            assert end.metadata["is_success"] is False
            assert isinstance(end.metadata["error"], str)
            assert len(end.metadata["error"]) > 10
            assert end.metadata["duration_s"] >= 0

    def test_values_are_plain(self, events: list[Any], snap: str) -> None:
        Snapshot.take(snap, {"state": StateDict(a=1)})
        for event in events:
            assert all(isinstance(v, (str, int, float, bool, type(None))) for v in event.metadata.values())

    def test_the_event_class(self) -> None:
        from torchsnapshot.event import Event
        from torchsnapshot.event_handlers import EventHandler, log_event

        assert Event(name="x").metadata == {}
        assert isinstance(plugins.RECORDER, EventHandler)
        plugins.RECORDER.events.clear()
        log_event(Event(name="mine", metadata={"a": 1}))
        assert [e.name for e in plugins.RECORDER.events] == ["mine"]


class TestProgress:
    # A fast machine is done before the line would appear, so the programs of these tests show it at once.
    CODE = """
import sys, torch
from torchsnapshot import Snapshot, StateDict
from torchsnapshot import _operation as module
class EagerLine(module.ProgressLine):
    def __init__(self, label, *, delay, **options):
        super().__init__(label, delay=0 if delay < 1 else delay, **options)
module.ProgressLine = EagerLine
state = StateDict({f"t{i}": torch.rand(16 << 20) for i in range(6)})
Snapshot.take(sys.argv[1], {"state": state}, progress=eval(sys.argv[2]))
Snapshot(sys.argv[1]).restore({"state": state}, progress=eval(sys.argv[2]))
"""

    def on_terminal(self, snap: str, progress: str) -> str:
        """What the program writes to a terminal."""
        import pty
        import subprocess
        import sys

        master, slave = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, snap, progress], stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)
        out = b""
        while True:
            try:
                block = os.read(master, 4096)
            except OSError:
                break
            if not block:
                break
            out += block
        assert process.wait() == 0, out
        os.close(master)
        return out.decode()

    @pytest.mark.no_sanitizer
    def test_on_a_terminal_when_asked(self, snap: str) -> None:
        out = self.on_terminal(snap, "True")
        assert "%" in out
        assert "take" in out
        assert out.endswith("\n")

    @pytest.mark.no_sanitizer
    def test_silent_unless_asked(self, snap: str) -> None:
        assert self.on_terminal(snap, "None") == ""

    def test_silent_without_a_terminal(self, snap: str) -> None:
        done = run_python(self.CODE.replace("16 <<", "1 <<"), snap, "True")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestKnobs:
    def test_defaults(self) -> None:
        assert knobs.get_max_chunk_size_bytes() == knobs.get_max_shard_size_bytes() == 512 * MB
        assert knobs.get_slab_size_threshold_bytes() == 128 * MB
        assert knobs.get_max_per_rank_io_concurrency() == 16
        assert knobs.is_batching_disabled() is False

    @pytest.mark.parametrize(
        ("override", "get", "name", "value"),
        [
            (knobs.override_max_chunk_size_bytes, knobs.get_max_chunk_size_bytes, "MAX_CHUNK_SIZE_BYTES_OVERRIDE", 17),
            (knobs.override_max_shard_size_bytes, knobs.get_max_shard_size_bytes, "MAX_SHARD_SIZE_BYTES_OVERRIDE", 17),
            (knobs.override_slab_size_threshold_bytes, knobs.get_slab_size_threshold_bytes,
             "SLAB_SIZE_THRESHOLD_BYTES_OVERRIDE", 17),
            (knobs.override_max_per_rank_io_concurrency, knobs.get_max_per_rank_io_concurrency,
             "MAX_PER_RANK_IO_CONCURRENCY_OVERRIDE", 3),
            (knobs.override_is_batching_disabled, knobs.is_batching_disabled, "DISABLE_BATCHING", True),
        ],
    )  # fmt: skip
    def test_overrides(self, override: Any, get: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        default = get()
        with override(value):
            assert get() == value
            assert os.environ[f"TORCHSNAPSHOT_{name}"] == str(value)
        assert get() == default
        with pytest.raises(KeyError), override(value):
            raise KeyError
        assert get() == default
        monkeypatch.setenv(f"TORCHSNAPSHOT_{name}", str(value))
        assert get() == value

    @pytest.mark.parametrize("shape", [(1000,), (100, 10), (3, 400), (1, 1000)])
    def test_chunks_are_those_of_torch_chunk(self, shape: tuple[int, ...], snap: str) -> None:
        tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
        with knobs.override_max_chunk_size_bytes(600):
            Snapshot.take(snap, {"state": StateDict(t=tensor)})
        entry = raw_metadata(snap)["manifest"]["0/state/t"]
        count = -(-tensor.numel() * 4 // 600)
        expected = torch.chunk(tensor, count)
        if len(expected) == 1:
            assert entry["type"] == "Tensor"
        else:
            assert entry["type"] == "ChunkedTensor"
            assert [c["sizes"] for c in entry["chunks"]] == [list(c.shape) for c in expected]
        assert_same(restored(snap), {"t": tensor})

    def test_a_tensor_at_the_limit_is_one_piece(self, snap: str) -> None:
        with knobs.override_max_chunk_size_bytes(400):
            Snapshot.take(snap, {"state": StateDict(at=torch.ones(100), above=torch.ones(101))})
        manifest = raw_metadata(snap)["manifest"]
        assert (manifest["0/state/at"]["type"], manifest["0/state/above"]["type"]) == ("Tensor", "ChunkedTensor")

    def test_slabs(self, snap: str) -> None:
        state = StateDict({f"t{i}": torch.rand(250) for i in range(12)}, big=torch.rand(5000))
        Snapshot.take(snap, {"state": state})
        assert len(data_files(snap)) == 1
        with knobs.override_slab_size_threshold_bytes(3100):
            Snapshot.take(snap, {"state": state})
        assert len(data_files(snap)) == 5
        assert sorted(data_files(snap).values())[-2] <= 3100
        assert_same(restored(snap), state.data)
        with knobs.override_is_batching_disabled(True):
            Snapshot.take(snap, {"state": state})
        assert len(data_files(snap)) == 13
        assert_same(restored(snap), state.data)

    def test_a_budget_smaller_than_a_tensor(self, snap: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHSNAPSHOT_PER_RANK_MEMORY_BUDGET_BYTES", "1000")
        state = {"t": torch.rand(100_000), "s": torch.rand(1000, 50).t(), "o": (b"x" * 50_000,)}
        Snapshot.take(snap, {"state": StateDict(state)})
        assert_same(restored(snap), state)

    @pytest.mark.parametrize("concurrency", [1, 2, 64])
    def test_any_concurrency(self, concurrency: int, snap: str) -> None:
        state = {f"t{i}": torch.rand(1000) for i in range(50)}
        with knobs.override_max_per_rank_io_concurrency(concurrency), knobs.override_slab_size_threshold_bytes(9000):
            Snapshot.take(snap, {"state": StateDict(state)})
            assert_same(restored(snap), state)


class TestInterrupt:
    @pytest.mark.parametrize("what", ["take", "restore"])
    def test_ctrl_c_ends_the_work_and_commits_nothing(self, what: str, bucket: Any) -> None:
        state = {"s": StateDict({str(i): torch.full((10,), float(i)) for i in range(100)})}
        with knobs.override_is_batching_disabled(True), knobs.override_max_per_rank_io_concurrency(1):
            if what == "restore":
                Snapshot.take(bucket.url, state)
            before = dict(bucket.objects)
            bucket.delay = 0.2  # 20 s in all
            timer = threading.Timer(0.6, os.kill, [os.getpid(), signal.SIGINT])
            timer.start()
            started = time.monotonic()
            act = Snapshot(bucket.url).restore if what == "restore" else partial(Snapshot.take, bucket.url)
            with pytest.raises(KeyboardInterrupt):
                act(state)
            timer.join()
        assert time.monotonic() - started < 10
        assert bucket.objects == before


class TestThreads:
    @pytest.mark.no_sanitizer
    @pytest.mark.parametrize("what", ["take", "restore"])
    def test_python_runs_on_while_the_engine_works(self, what: str, snap: str) -> None:
        state = StateDict(t=torch.full((384 * MB,), 7, dtype=torch.uint8).view(-1, 2)[:, 0])
        if what == "restore":
            Snapshot.take(snap, {"state": state})
        longest, stop, last = 0.0, threading.Event(), time.monotonic()

        def tick() -> None:
            nonlocal longest, last
            while not stop.is_set():
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                time.sleep(0.001)

        thread = threading.Thread(target=tick)
        thread.start()
        time.sleep(0.05)
        longest, started = 0.0, time.monotonic()
        if what == "take":
            Snapshot.take(snap, {"state": state})
        else:
            Snapshot(snap).restore({"state": state})
        took = time.monotonic() - started
        stop.set()
        thread.join()
        assert longest < max(0.1, took / 3), f"no Python for {longest:.2f} s of {took:.2f} s"

    def test_many_operations_at_once(self, tmp_path: pathlib.Path) -> None:
        errors = []

        def work(i: int) -> None:
            try:
                state = {f"t{j}": torch.full((1000,), float(i * 10 + j)) for j in range(5)} | {"o": (i, "x")}
                for round_ in range(3):
                    path = str(tmp_path / f"{i}-{round_}")
                    Snapshot.take(path, {"state": StateDict(state)})
                    assert_same(restored(path), state)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []

    def test_one_handle_in_many_threads(self, snap: str) -> None:
        state = {f"t{i}": torch.rand(500) for i in range(8)}
        Snapshot.take(snap, {"state": StateDict(state)})
        snapshot, found = Snapshot(snap), {}

        def work(name: str) -> None:
            found[name] = snapshot.read_object(f"0/state/{name}")

        threads = [threading.Thread(target=work, args=(name,)) for name in state]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_same({name: found[name] for name in state}, state)

    def test_in_a_forked_child(self, snap: str) -> None:
        """A data loader or a launcher forks after a take: the child can restore and take."""
        code = """
import os, sys, torch
from torchsnapshot import Snapshot, StateDict
torch.set_num_threads(1)
Snapshot.take(sys.argv[1], {"s": StateDict(t=torch.arange(5))})
child = os.fork()
if child == 0:
    state = StateDict()
    Snapshot(sys.argv[1]).restore({"s": state})
    Snapshot.take(sys.argv[1] + "-child", {"s": state})
    os._exit(0 if torch.equal(state["t"], torch.arange(5)) else 3)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
        done = run_python(code, snap, timeout=60)
        assert done.returncode == 0, done.stderr
        assert_same(restored(f"{snap}-child", "s"), {"t": torch.arange(5)})
