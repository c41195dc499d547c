"""Blocking calls for the engine on a storage plugin written in Python."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .io_types import ReadIO, StoragePlugin, WriteIO
from .storage_plugin import url_to_storage_plugin

T = TypeVar("T")
BytesLike = bytes | bytearray | memoryview


class PluginBridge:
    """Runs a plugin's coroutines on one event loop in a thread of its own.

    Every method blocks, and may be called from several threads at once (never from the plugin's own
    coroutines); the coroutines of concurrent calls then run concurrently. Exceptions come through unchanged. The
    thread starts with the first call and ends with :meth:`close`.
    """

    def __init__(self, plugin: StoragePlugin | Callable[[], StoragePlugin]) -> None:
        """`plugin` is a plugin, or a function that makes one; the function runs on the event loop."""
        self._make = None if isinstance(plugin, StoragePlugin) else plugin
        self._plugin = plugin if isinstance(plugin, StoragePlugin) else None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = False

    @classmethod
    def open(cls, url_path: str, storage_options: dict[str, Any] | None = None) -> PluginBridge:
        """The bridge to the plugin that serves a URL, made at once, on the event loop."""
        bridge = cls(lambda: url_to_storage_plugin(url_path, storage_options))
        try:
            bridge._run(bridge._get_plugin)
        except BaseException:
            bridge._closed = True
            bridge._stop_loop()
            raise
        return bridge

    def write(self, location: str, data: BytesLike) -> None:
        """Creates or replaces an object; `data` is not used after the return."""
        view = data if isinstance(data, (bytes, memoryview)) else memoryview(data)

        async def work() -> None:
            plugin = await self._get_plugin()
            await plugin.write(WriteIO(path=location, buf=view))

        self._run(work)

    def read(self, location: str, begin: int | None = None, end: int | None = None) -> BytesLike:
        """The whole object, or the bytes ``[begin, end)`` of it, as the plugin gave them."""
        byte_range = None if begin is None or end is None else (begin, end)

        async def work() -> BytesLike:
            plugin = await self._get_plugin()
            read_io = ReadIO(path=location, byte_range=byte_range)
            await plugin.read(read_io)
            return _content(plugin, location, read_io)

        return self._run(work)

    def delete(self, location: str) -> None:
        """Removes an object."""

        async def work() -> None:
            plugin = await self._get_plugin()
            await plugin.delete(location)

        self._run(work)

    def delete_dir(self, location: str) -> None:
        """Removes a folder."""

        async def work() -> None:
            plugin = await self._get_plugin()
            await plugin.delete_dir(location)

        self._run(work)

    def close(self) -> None:
        """Closes the plugin and ends the thread. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        plugin = self._plugin
        try:
            if plugin is not None:
                closing = plugin
                self._submit(lambda: closing.close())
        finally:
            self._stop_loop()

    async def _get_plugin(self) -> StoragePlugin:
        # Only ever runs on the loop's thread and never awaits, so it makes the plugin once.
        if self._plugin is None:
            assert self._make is not None
            self._plugin = self._make()
        return self._plugin

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._closed:
            raise RuntimeError("the storage plugin is closed")
        return self._submit(work)

    def _submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._running_loop()
        if threading.current_thread() is self._thread:
            raise RuntimeError("a storage plugin can't call its own bridge")
        future = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # no effect on a finished one; stops the work after a KeyboardInterrupt
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # A forked child has the objects of the parent's loop but not its thread.
            if self._loop is None or self._pid != os.getpid():
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name="torchsnapshot-storage-plugin", daemon=True)
                thread.start()
                self._loop, self._thread, self._pid = loop, thread, os.getpid()
            return self._loop

    def _stop_loop(self) -> None:
        with self._lock:
            loop, thread, pid = self._loop, self._thread, self._pid
            self._loop = self._thread = None
        if loop is None or thread is None or pid != os.getpid():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _content(plugin: StoragePlugin, location: str, read_io: ReadIO) -> BytesLike:
    buf: Any = read_io.buf
    if isinstance(buf, (bytes, bytearray, memoryview)):
        return buf
    getvalue = getattr(buf, "getvalue", None)
    content = getvalue() if callable(getvalue) else None
    if not isinstance(content, bytes):
        raise TypeError(
            f"{type(plugin).__qualname__}.read({location!r}) left a {type(buf).__qualname__} in ReadIO.buf "
            "instead of a BytesIO"
        )
    return content
