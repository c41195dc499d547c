"""Plugins: the interface, the file system's, the look-up by URL, and the bridge that the engine calls."""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import os
import pathlib
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torchsnapshot import CorruptSnapshotError, InvalidArgumentError, UnsupportedError, storage_plugin
from torchsnapshot._plugin_bridge import PluginBridge
from torchsnapshot.io_types import ReadIO, StoragePlugin, WriteIO
from torchsnapshot.storage_plugin import split_url, url_to_storage_plugin, url_to_storage_plugin_in_event_loop
from torchsnapshot.storage_plugins.fs import FSStoragePlugin


class Memory(StoragePlugin):
    """Objects in a dict; notes threads, loops and how many calls run at once."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.threads: set[int] = set()
        self.loops: set[int] = set()
        self.running = self.most_running = self.closed = 0
        self.delay = 0.0
        self.result: Callable[[bytes], Any] = io.BytesIO

    async def _enter(self) -> None:
        self.threads.add(threading.get_ident())
        self.loops.add(id(asyncio.get_running_loop()))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.running -= 1

    async def write(self, write_io: WriteIO) -> None:
        await self._enter()
        self.objects[write_io.path] = bytes(write_io.buf)

    async def read(self, read_io: ReadIO) -> None:
        await self._enter()
        if read_io.path not in self.objects:
            raise FileNotFoundError(2, "no such object", read_io.path)
        begin, end = read_io.byte_range or (0, None)
        read_io.buf = self.result(self.objects[read_io.path][begin:end])

    async def delete(self, path: str) -> None:
        await self._enter()
        del self.objects[path]

    async def delete_dir(self, path: str) -> None:
        await self._enter()

    async def close(self) -> None:
        await self._enter()
        self.closed += 1


class TestInterface:
    def test_sync_calls_run_the_coroutines(self) -> None:
        plugin = Memory()
        plugin.sync_write(WriteIO("a", b"abc"))
        read_io = ReadIO("a", byte_range=(1, 3))
        plugin.sync_read(read_io)
        assert read_io.buf.getvalue() == b"bc"
        plugin.sync_delete("a")
        plugin.sync_close()
        assert (plugin.objects, plugin.closed) == ({}, 1)

    def test_sync_calls_on_a_given_loop_leave_it_open(self) -> None:
        loop = asyncio.new_event_loop()
        plugin = Memory()
        plugin.sync_write(WriteIO("a", memoryview(b"abc")), loop)
        plugin.sync_read(ReadIO("a"), event_loop=loop)
        plugin.sync_close(event_loop=loop)
        assert plugin.loops == {id(loop)}
        assert not loop.is_closed()
        loop.close()

    def test_all_five_methods_are_needed(self) -> None:
        with pytest.raises(TypeError, match="abstract"):
            type("Half", (StoragePlugin,), {"write": Memory.write})()

    def test_defaults(self) -> None:
        read_io = ReadIO("p")
        assert (read_io.byte_range, read_io.buf.getvalue()) == (None, b"")
        assert ReadIO("p").buf is not read_io.buf


class TestFileSystem:
    def test_write_read_delete(self, tmp_path: pathlib.Path) -> None:
        plugin = FSStoragePlugin(str(tmp_path / "new" / "root"), {})
        plugin.sync_write(WriteIO("a/b/c", memoryview(b"0123456789")))
        assert (tmp_path / "new/root/a/b/c").read_bytes() == b"0123456789"
        for byte_range, expected in [(None, b"0123456789"), ((2, 5), b"234"), ((0, 10), b"0123456789"), ((4, 4), b"")]:
            read_io = ReadIO("a/b/c", byte_range=byte_range)
            plugin.sync_read(read_io)
            assert read_io.buf.getvalue() == expected
        plugin.sync_write(WriteIO("a/b/c", b"x"))
        assert os.listdir(tmp_path / "new/root/a/b") == ["c"]
        plugin.sync_delete("a/b/c")
        asyncio.run(plugin.delete_dir("a/b"))
        assert os.listdir(tmp_path / "new/root/a") == []
        plugin.sync_close()

    def test_errors(self, tmp_path: pathlib.Path) -> None:
        plugin = FSStoragePlugin(str(tmp_path))
        plugin.sync_write(WriteIO("f", b"abc"))
        with pytest.raises(FileNotFoundError):
            plugin.sync_read(ReadIO("missing"))
        with pytest.raises(FileNotFoundError):
            plugin.sync_delete("missing")
        with pytest.raises(CorruptSnapshotError, match=r"\[1, 4\) of a file with 3 bytes"):
            plugin.sync_read(ReadIO("f", byte_range=(1, 4)))
        with pytest.raises(InvalidArgumentError, match=r"\[2, 1\)"):
            plugin.sync_read(ReadIO("f", byte_range=(2, 1)))
        plugin.sync_write(WriteIO("folder/g", b""))
        with pytest.raises(OSError, match="not empty"):
            asyncio.run(plugin.delete_dir("folder"))
        with pytest.raises(NotADirectoryError):
            plugin.sync_write(WriteIO("f/below", b""))
        with pytest.raises(InvalidArgumentError, match=r"unknown storage options.*colour"):
            FSStoragePlugin(str(tmp_path), {"colour": 1})

    @pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "a/..", "nul\0"])
    def test_nothing_leaves_the_root(self, path: str, tmp_path: pathlib.Path) -> None:
        plugin = FSStoragePlugin(str(tmp_path / "root"))
        for call in (
            plugin.write(WriteIO(path, b"")),
            plugin.read(ReadIO(path)),
            plugin.delete(path),
            plugin.delete_dir(path),
        ):
            with pytest.raises(InvalidArgumentError, match="stay below the root"):
                asyncio.run(call)
        assert os.listdir(tmp_path) == []

    def test_a_failed_write_leaves_the_old_content_and_no_rest(
        self, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plugin = FSStoragePlugin(str(tmp_path))
        plugin.sync_write(WriteIO("f", b"old"))

        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            plugin.sync_write(WriteIO("f", b"new"))
        assert os.listdir(tmp_path) == ["f"]
        assert (tmp_path / "f").read_bytes() == b"old"

    def test_many_at_once(self, tmp_path: pathlib.Path) -> None:
        plugin = FSStoragePlugin(str(tmp_path))

        async def run() -> None:
            await asyncio.gather(*(plugin.write(WriteIO(f"d{i % 7}/f{i}", str(i).encode())) for i in range(200)))

        asyncio.run(run())
        assert all((tmp_path / f"d{i % 7}/f{i}").read_text() == str(i) for i in range(200))


class Point:
    def __init__(self, name: str, load: Callable[..., Any]) -> None:
        self.name, self.value, self.load = name, f"module:{name}", lambda: load


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("/a/b", ("fs", "/a/b")),
            ("a", ("fs", "a")),
            ("fs:///a", ("fs", "/a")),
            ("fs://a", ("fs", "a")),
            ("://a", ("fs", "a")),
            ("s3://b/p", ("s3", "b/p")),
            ("x://y://z", ("x", "y://z")),
            ("", ("fs", "")),
        ],
    )
    def test_split(self, url: str, expected: tuple[str, str]) -> None:
        assert split_url(url) == expected

    def test_file_system(self) -> None:
        for url in ("/a/b", "fs:///a/b"):
            plugin = url_to_storage_plugin(url)
            assert isinstance(plugin, FSStoragePlugin)
            assert plugin.root == "/a/b"
        with pytest.raises(InvalidArgumentError, match="unknown storage options"):
            url_to_storage_plugin("/a", {"x": 1})

    def test_entry_points(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def factory(path: str, options: dict[str, Any]) -> Any:
            calls.append((path, options))
            return Memory()

        points = [Point("mine", factory), Point("wrong", lambda path, options: "no plugin")]
        monkeypatch.setattr(storage_plugin, "entry_points", lambda group: points if group == "storage_plugins" else [])
        options = {"key": 1}
        assert isinstance(url_to_storage_plugin("mine://bucket/prefix", options), Memory)
        assert isinstance(url_to_storage_plugin("mine://"), Memory)
        assert calls == [("bucket/prefix", {"key": 1}), ("", {})]
        assert calls[0][1] is not options
        with pytest.raises(RuntimeError, match=r"no storage plugin for other:// \(known: fs, gs, mine, s3, wrong\)"):
            url_to_storage_plugin("other://x")
        with pytest.raises(Exception, match=r"wrong:// \(module:wrong\) gave 'no plugin', which is no StoragePlugin"):
            url_to_storage_plugin("wrong://x")
        assert storage_plugin.has_registered_plugin("mine")
        assert not storage_plugin.has_registered_plugin("other")

    def test_unknown_scheme_and_type(self) -> None:
        with pytest.raises(UnsupportedError, match="no-such-scheme://"):
            url_to_storage_plugin("no-such-scheme://x")
        with pytest.raises(TypeError, match="PosixPath"):
            url_to_storage_plugin(pathlib.Path("/a"))  # type: ignore[arg-type]

    def test_in_an_event_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loops = []

        def factory(path: str, options: dict[str, Any]) -> Any:
            loops.append(asyncio.get_running_loop())
            return Memory()

        monkeypatch.setattr(storage_plugin, "entry_points", lambda group: [Point("mine", factory)])
        loop = asyncio.new_event_loop()
        url_to_storage_plugin_in_event_loop("mine://x", loop)
        loop.close()
        assert loops == [loop]


class TestBridge:
    def test_write_read_delete_close(self) -> None:
        plugin = Memory()
        bridge = PluginBridge(plugin)
        bridge.write("a", memoryview(b"0123456789"))
        bridge.write("b", bytearray(b"xyz"))
        assert plugin.objects == {"a": b"0123456789", "b": b"xyz"}
        assert bytes(bridge.read("a")) == b"0123456789"
        assert bytes(bridge.read("a", 2, 5)) == b"234"
        assert bytes(bridge.read("a", 0, 0)) == b""
        bridge.delete("a")
        bridge.delete_dir("folder")
        bridge.close()
        bridge.close()
        assert plugin.closed == 1
        assert set(plugin.objects) == {"b"}
        assert threading.get_ident() not in plugin.threads
        assert len(plugin.threads) == len(plugin.loops) == 1

    def test_the_thread_starts_late_and_ends(self) -> None:
        def named() -> list[threading.Thread]:
            return [thread for thread in threading.enumerate() if thread.name == "torchsnapshot-storage-plugin"]

        before = len(named())
        bridge = PluginBridge(Memory())
        assert len(named()) == before
        bridge.write("a", b"")
        assert len(named()) == before + 1
        bridge.close()
        assert len(named()) == before

    def test_calls_run_at_once_on_one_loop(self) -> None:
        plugin = Memory()
        plugin.delay = 0.05
        bridge = PluginBridge(plugin)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: bridge.write(str(i), str(i).encode()), range(32)))
            begin = time.monotonic()
            assert [bytes(data) for data in pool.map(bridge.read, map(str, range(32)))] == [
                b"%d" % i for i in range(32)
            ]
        assert time.monotonic() - begin < 32 * plugin.delay
        assert plugin.most_running > 4
        bridge.close()
        assert len(plugin.loops) == 1

    def test_exceptions_come_through(self) -> None:
        class OwnError(Exception):
            pass

        class Failing(Memory):
            async def write(self, write_io: WriteIO) -> None:
                raise OwnError("mine", 7)

            async def delete(self, path: str) -> None:
                raise PermissionError(13, "denied", path)

        bridge = PluginBridge(Failing())
        with pytest.raises(OwnError) as own:
            bridge.write("a", b"")
        assert own.value.args == ("mine", 7)
        with pytest.raises(FileNotFoundError) as missing:
            bridge.read("nothing")
        assert missing.value.filename == "nothing"
        with pytest.raises(PermissionError, match="denied"):
            bridge.delete("a")
        bridge.close()

    @pytest.mark.parametrize("wrap", [io.BytesIO, bytes, bytearray, memoryview])
    def test_what_a_plugin_may_leave_in_the_buffer(self, wrap: Callable[[bytes], Any]) -> None:
        plugin = Memory()
        plugin.result = wrap
        bridge = PluginBridge(plugin)
        bridge.write("a", b"abc")
        assert bytes(bridge.read("a")) == b"abc"
        bridge.close()

    def test_a_plugin_may_write_to_the_buffer_it_was_given(self) -> None:
        class Writing(Memory):
            async def read(self, read_io: ReadIO) -> None:
                read_io.buf.write(b"abc")

        bridge = PluginBridge(Writing())
        assert bytes(bridge.read("x")) == b"abc"
        bridge.close()

    @pytest.mark.parametrize(
        "wrong", [lambda data: None, lambda data: "text", lambda data: io.StringIO("x"), lambda data: [1]]
    )
    def test_anything_else_in_the_buffer_is_an_error(self, wrong: Callable[[bytes], Any]) -> None:
        plugin = Memory()
        plugin.result = wrong
        bridge = PluginBridge(plugin)
        bridge.write("a", b"abc")
        with pytest.raises(TypeError, match=r"Memory\.read\('a'\) left a .* instead of a BytesIO"):
            bridge.read("a")
        bridge.close()

    def test_after_close(self) -> None:
        bridge = PluginBridge(Memory())
        bridge.close()
        with pytest.raises(RuntimeError, match="closed"):
            bridge.write("a", b"")

    def test_close_that_fails_still_ends_the_thread(self) -> None:
        class Failing(Memory):
            async def close(self) -> None:
                raise ValueError("close failed")

        bridge = PluginBridge(Failing())
        bridge.write("a", b"")
        thread = bridge._thread
        with pytest.raises(ValueError, match="close failed"):
            bridge.close()
        assert thread is not None
        assert not thread.is_alive()

    def test_background_tasks_of_a_plugin_are_cancelled(self) -> None:
        class Pulsing(Memory):
            async def write(self, write_io: WriteIO) -> None:
                self.task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))

        plugin = Pulsing()
        bridge = PluginBridge(plugin)
        bridge.write("a", b"")
        bridge.close()
        assert plugin.task.cancelled()

    def test_a_plugin_that_calls_its_bridge_is_told(self) -> None:
        class Calling(Memory):
            bridge: PluginBridge

            async def delete(self, path: str) -> None:
                self.bridge.read(path)

        plugin = Calling()
        plugin.bridge = PluginBridge(plugin)
        with pytest.raises(RuntimeError, match="its own bridge"):
            plugin.bridge.delete("a")
        plugin.bridge.close()

    def test_an_interrupt_cancels_the_call(self) -> None:
        class Slow(Memory):
            cancelled = threading.Event()

            async def write(self, write_io: WriteIO) -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise

        plugin = Slow()
        bridge = PluginBridge(plugin)
        interrupt = functools.partial(signal.pthread_kill, threading.get_ident(), signal.SIGINT)
        threading.Timer(0.2, interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            bridge.write("a", b"")
        assert plugin.cancelled.wait(5)
        bridge.close()

    def test_made_on_the_loop_by_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []

        def factory(path: str, options: dict[str, Any]) -> Any:
            made.append((path, options, asyncio.get_running_loop()))
            return Memory()

        monkeypatch.setattr(storage_plugin, "entry_points", lambda group: [Point("mine", factory)])
        bridge = PluginBridge.open("mine://root", {"a": 1})
        assert made[0][:2] == ("root", {"a": 1})
        bridge.write("x", b"1")
        assert bridge._plugin.loops == {id(made[0][2])}  # type: ignore[union-attr]
        bridge.close()
        count = threading.active_count()
        with pytest.raises(UnsupportedError):
            PluginBridge.open("other://root")
        assert threading.active_count() == count

    def test_many_first_calls_make_the_plugin_once(self) -> None:
        made: list[Memory] = []

        def make() -> Memory:
            made.append(Memory())
            return made[-1]

        bridge = PluginBridge(make)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: bridge.write(str(i), b""), range(64)))
        assert len(made) == 1
        assert len(made[0].objects) == 64
        bridge.close()

    def test_a_forked_child_has_a_loop_of_its_own(self) -> None:
        plugin = Memory()
        bridge = PluginBridge(plugin)
        bridge.write("a", b"1")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                bridge.write("b", b"2")
                code = 0 if plugin.objects == {"a": b"1", "b": b"2"} else 2
                bridge.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        bridge.write("c", b"3")
        bridge.close()
        assert set(plugin.objects) == {"a", "c"}

    def test_nothing_keeps_the_data(self) -> None:
        class Holder(bytearray):
            pass

        bridge = PluginBridge(Memory())
        holder = Holder(b"abc")
        alive = weakref.ref(holder)
        bridge.write("a", holder)
        bridge.write("b", b"")  # the loop is past the first call
        del holder
        gc.collect()
        assert alive() is None
        bridge.close()
