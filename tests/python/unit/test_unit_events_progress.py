"""Event handlers, the progress line, and the memory profiler."""

from __future__ import annotations

import gc
import io
import threading
import time
import warnings
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torchsnapshot import event_handlers, rss_profiler
from torchsnapshot.event import Event
from torchsnapshot.event_handlers import (
    EventHandler,
    get_event_handlers,
    log_event,
    register_event_handler,
    unregister_event_handler,
)
from torchsnapshot.progress import ProgressLine, format_bytes, format_progress
from torchsnapshot.rss_profiler import measure_rss_deltas


class Recorder:
    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[Event] = []
        self.error = error

    def handle_event(self, event: Event) -> None:
        self.events.append(event)
        if self.error:
            raise self.error


class Point:
    def __init__(self, name: str, factory: Any) -> None:
        self.name, self.value, self.factory = name, f"module:{name}", factory

    def load(self) -> Any:
        if isinstance(self.factory, Exception):
            raise self.factory
        return self.factory


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    monkeypatch.setattr(event_handlers, "_registered", [])
    monkeypatch.setattr(event_handlers, "_discovered", None)
    monkeypatch.setattr(event_handlers, "_warned", [])
    monkeypatch.setattr(event_handlers, "entry_points", lambda group: [])
    return


class TestEvents:
    def test_event(self) -> None:
        event = Event("take", {"action": "start", "rank": 0})
        assert (event.name, event.metadata["action"]) == ("take", "start")
        assert Event("x").metadata == {}
        assert Event("x").metadata is not Event("x").metadata

    def test_register_and_unregister(self) -> None:
        first, second = Recorder(), Recorder()
        assert isinstance(first, EventHandler)
        for handler in (first, second, first):
            register_event_handler(handler)
        event = Event("take")
        log_event(event)
        assert first.events == second.events == [event]
        unregister_event_handler(first)
        log_event(event)
        assert (len(first.events), len(second.events)) == (1, 2)
        with pytest.raises(ValueError, match="not registered"):
            unregister_event_handler(first)
        with pytest.raises(TypeError, match="handle_event"):
            register_event_handler(print)  # type: ignore[arg-type]

    def test_a_handler_that_fails_is_reported_once_and_the_others_go_on(self) -> None:
        bad, good = Recorder(ValueError("broken handler")), Recorder()
        register_event_handler(bad)
        register_event_handler(good)
        with pytest.warns(RuntimeWarning, match="broken handler"):
            log_event(Event("a"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            log_event(Event("b"))
        assert len(bad.events) == len(good.events) == 2
        unregister_event_handler(bad)
        register_event_handler(bad)
        with pytest.warns(RuntimeWarning, match="broken handler"):
            log_event(Event("c"))

    def test_entry_points_are_loaded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        points = [Point("mine", factory)]
        monkeypatch.setattr(event_handlers, "entry_points", lambda group: points if group == "event_handlers" else [])
        own = Recorder()
        register_event_handler(own)
        log_event(Event("a"))
        log_event(Event("b"))
        assert len(made) == 1
        assert get_event_handlers() == [made[0], own]
        assert [event.name for event in made[0].events] == ["a", "b"]

    def test_entry_points_that_fail_are_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        points = [Point("gone", ImportError("no module x")), Point("odd", lambda: 3), Point("fine", Recorder)]
        monkeypatch.setattr(event_handlers, "entry_points", lambda group: points)
        with pytest.warns(RuntimeWarning) as caught:
            handlers = get_event_handlers()
        assert len(handlers) == 1
        texts = [str(warning.message) for warning in caught]
        assert any("'gone' (module:gone)" in text and "no module x" in text for text in texts)
        assert any("'odd' (module:odd) gave 3" in text for text in texts)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


MIB = 1 << 20


class TestProgress:
    def line(self, stream: Any, **options: Any) -> tuple[ProgressLine, Clock]:
        clock = Clock()
        return ProgressLine("take", stream, clock=clock, **options), clock

    def test_shows_on_a_terminal_after_a_while(self) -> None:
        stream = Terminal()
        line, clock = self.line(stream, delay=0.5, interval=0.1)
        line(0, 100 * MIB)
        assert stream.getvalue() == ""
        clock.now += 1
        line(25 * MIB, 100 * MIB)
        assert stream.getvalue() == "\rtake   25 %  25.0 MiB of 100.0 MiB  25.0 MiB/s  0:03 left"
        clock.now += 0.05
        line(26 * MIB, 100 * MIB)
        assert stream.getvalue().count("\r") == 1
        line(100 * MIB, 100 * MIB)
        last = stream.getvalue().rpartition("\r")[2]
        assert last.startswith("take  100 %  100.0 MiB of 100.0 MiB")
        assert len(last) >= len("take   25 %  25.0 MiB of 100.0 MiB  25.0 MiB/s  0:03 left")  # covers the longer text
        line.close()
        line.close()
        assert stream.getvalue().endswith(" \n") or stream.getvalue().endswith("\n")
        assert stream.getvalue().count("\n") == 1
        line(1, 2)
        assert stream.getvalue().count("\r") == 2

    def test_a_short_work_shows_nothing(self) -> None:
        stream = Terminal()
        line, _ = self.line(stream)
        with line:
            line(10, 100)
            line(100, 100)
        assert stream.getvalue() == ""

    def test_no_terminal_shows_nothing_unless_forced(self) -> None:
        for force in (False, True):
            stream = io.StringIO()
            line, clock = self.line(stream, force=force)
            clock.now += 5
            line(1, 2)
            line.close()
            assert bool(stream.getvalue()) is force

    def test_a_broken_stream_does_not_matter(self) -> None:
        class Broken(Terminal):
            def write(self, text: str) -> int:
                raise BrokenPipeError(32, "gone")

        for stream in (Broken(), Terminal()):
            line, clock = self.line(stream)
            if not isinstance(stream, Broken):
                stream.close()
            clock.now += 5
            line(1, 2)
            line(2, 2)
            line.close()

    def test_from_several_threads(self) -> None:
        stream = Terminal()
        line = ProgressLine("restore", stream, delay=0, interval=0)
        threads = [threading.Thread(target=lambda: [line(i, 200) for i in range(200)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        line.close()
        parts = stream.getvalue().rstrip("\n").split("\r")[1:]
        assert len(parts) == 800
        assert all(part.startswith("restore") for part in parts)

    @pytest.mark.parametrize(
        ("done", "total", "seconds", "text"),
        [
            (0, 0, 1, "x  100 %  0 B of 0 B"),
            (0, 10, 0, "x    0 %  0 B of 10 B"),
            (5, 10, 0, "x   50 %  5 B of 10 B"),
            (20, 10, 2, "x  100 %  10 B of 10 B  5 B/s"),
            (-5, 10, 2, "x    0 %  0 B of 10 B"),
            (1024, 7200 * 1024, 1, "x    0 %  1.0 KiB of 7.0 MiB  1.0 KiB/s  1:59:59 left"),
            (999, 1000, 999, "x   99 %  999 B of 1000 B  1 B/s  0:01 left"),
        ],
    )
    def test_text(self, done: int, total: int, seconds: float, text: str) -> None:
        assert format_progress("x", done, total, seconds) == text

    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
            (1 << 60, "1024.0 PiB"),
        ],
    )
    def test_bytes(self, count: int, text: str) -> None:
        assert format_bytes(count) == text


class TestMemory:
    def test_growth_is_seen(self) -> None:
        gc.collect()
        deltas: list[int] = []
        size = 96 * MIB
        with measure_rss_deltas(deltas, interval=timedelta(milliseconds=5)):
            block = torch.ones(size // 8, dtype=torch.float64)
            deadline = time.monotonic() + 60  # the thread that measures may be kept waiting
            while max(deltas, default=0) < 0.8 * size and time.monotonic() < deadline:
                time.sleep(0.005)
            del block
        assert 0.8 * size < max(deltas) < 3 * size

    def test_even_the_shortest_block_is_measured(self) -> None:
        deltas: list[int] = []
        with measure_rss_deltas(deltas, interval=timedelta(hours=1)):
            pass
        assert len(deltas) == 2

    def test_ends_with_an_exception_too(self) -> None:
        count = threading.active_count()
        with pytest.raises(KeyError), measure_rss_deltas([]):
            raise KeyError
        assert threading.active_count() == count

    def test_both_sources_agree(self) -> None:
        psutil = pytest.importorskip("psutil")
        assert psutil.Process().pid
        by_proc, by_psutil = rss_profiler.get_rss_bytes(), rss_profiler._rss_by_psutil()
        assert abs(by_proc - by_psutil) < 32 * MIB

    def test_without_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_file(*args: Any, **options: Any) -> Any:
            raise FileNotFoundError

        monkeypatch.setattr(rss_profiler, "open", no_file, raising=False)
        monkeypatch.setattr(rss_profiler, "_rss_by_psutil", lambda: 12345)
        assert rss_profiler.get_rss_bytes() == 12345
