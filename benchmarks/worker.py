"""A process that holds a state and does one job after another with a library.

A job is a line of JSON on standard input, {"call": name, "arguments": {...}}; the answer is a line of JSON on standard
output: the result, or {"error": text}. One process runs the libraries of one environment, so that they save from and
load into the very same memory; between jobs the allocator gives its free memory back.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import random
import resource
import sys
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import files
import shapes
from libraries import LIBRARIES, Library

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
Answer = dict[str, Any]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Worker:
    def __init__(self) -> None:
        self.state: shapes.State = {}
        self.names: list[str] = []
        self.loaded: shapes.State = {}
        self.libraries: dict[str, Library] = {}

    def library(self, name: str) -> Library:
        if name not in self.libraries:
            self.libraries[name] = LIBRARIES[name]()
        return self.libraries[name]

    def versions(self) -> Answer:
        from importlib import metadata

        found = {"torch": str(torch.__version__)}
        for package in ("safetensors", "numpy", "torchsnapshot-nightly"):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:  # noqa: PERF203
                continue
        try:
            import torchsnapshot

            found["torchsnapshot"] = torchsnapshot.__version__
            found["async_take"] = str(hasattr(torchsnapshot.Snapshot, "async_take"))
        except ImportError:
            pass
        return found

    def make(self, shape: str, size: int) -> Answer:
        self.state, self.loaded = {}, {}
        self.settle()
        self.state = shapes.make(shape, size)
        self.names = list(self.state)
        return {"bytes": shapes.total_bytes(self.state), "tensors": len(self.state)}

    def settle(self) -> Answer:
        """No garbage, no free memory that would hide what the next job needs, no writes of others under way."""
        self.loaded = {}
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        os.sync()
        return {}

    def warm_up(self, library: str, path: str) -> Answer:
        """Imports and first calls, on a tiny state."""
        tiny = {"x": torch.ones(1024)}
        self.library(library).save(tiny, Path(path))
        self.library(library).load(tiny, Path(path))
        return {}

    def save(self, library: str, path: str) -> Answer:
        """`returned`: seconds until the call came back; `durable`: until every file and folder was synced too."""
        cpu, began = _cpu_seconds(), time.perf_counter()
        self.library(library).save(self.state, Path(path))
        returned = time.perf_counter() - began
        if not self.library(library).durable:
            files.sync_all(Path(path))
        durable = time.perf_counter() - began
        storage, count = files.bytes_on_storage(Path(path))
        return {
            "returned": returned,
            "durable": durable,
            "cpu": _cpu_seconds() - cpu,
            "storage": storage,
            "files": count,
        }

    def spoil(self) -> Answer:
        shapes.spoil(self.state)
        return {}

    def load(self, library: str, path: str) -> Answer:
        cpu, began = _cpu_seconds(), time.perf_counter()
        self.loaded = self.library(library).load(self.state, Path(path))
        return {"seconds": time.perf_counter() - began, "cpu": _cpu_seconds() - cpu}

    def check(self) -> Answer:
        """Whether what was loaded is what was saved; the state is right again afterwards."""
        difference = shapes.first_difference(self.loaded, self.names)
        if difference is not None:
            raise AssertionError(f"what was loaded differs from what was saved: {difference}")
        in_place = all(self.loaded[name] is self.state[name] for name in self.names)
        if not in_place:
            shapes.fill(self.state)
        self.loaded = {}
        return {"in_place": in_place}

    def copy_all_cores(self) -> Answer:
        """One memcpy of the state's bytes by a thread per core, between memory that is there already."""
        sources = [part for tensor in self.state.values() for part in shapes.words(tensor).split(1 << 21)]
        total = sum(part.numel() * 8 for part in sources)
        target = torch.ones(min(total, 1 << 30) // 8, dtype=torch.int64)
        jobs, at = [], 0
        for part in sources:
            if at + part.numel() > target.numel():
                at = 0
            jobs.append((target[at:].data_ptr(), part.data_ptr(), part.numel() * 8))
            at += part.numel()

        def run(share: list[tuple[int, int, int]]) -> None:
            for to, source, size in share:
                ctypes.memmove(to, source, size)  # without the GIL

        cores = len(os.sched_getaffinity(0))
        shares = [jobs[i::cores] for i in range(cores)]
        with ThreadPoolExecutor(cores) as threads:
            list(threads.map(run, [share[:1] for share in shares]))
            cpu, began = _cpu_seconds(), time.perf_counter()
            list(threads.map(run, shares))
            return {"seconds": time.perf_counter() - began, "cpu": _cpu_seconds() - cpu}

    def step_seconds(self, seconds: float) -> Answer:
        """Mean time of an undisturbed training step (see _Training)."""
        training = _Training(self.state)
        training.run(until=lambda began: time.perf_counter() - began > seconds)
        return {"step": training.mean()}

    def restore_content(self) -> Answer:
        """The state as it was before the training steps."""
        shapes.fill(self.state)
        return {}

    def save_async(self, library: str, path: str, step: float) -> Answer:
        """Saves while training goes on: every tensor is changed the moment the call is back."""
        cpu, began = _cpu_seconds(), time.perf_counter()
        pending = self.library(library).async_save(self.state, Path(path))
        blocked = time.perf_counter() - began
        shapes.mutate(self.state, 1)
        done: dict[str, Any] = {}

        def wait() -> None:
            try:
                pending.wait()
                done["returned"] = time.perf_counter() - began
                if not self.library(library).durable:
                    files.sync_all(Path(path))
                done["durable"] = time.perf_counter() - began
            except BaseException as error:
                done["error"] = error

        waiting = threading.Thread(target=wait)
        waiting.start()
        training = _Training(self.state)
        training.run(until=lambda _: not waiting.is_alive())
        waiting.join()
        cpu = _cpu_seconds() - cpu
        shapes.fill(self.state)
        if "error" in done:
            raise done["error"]
        return {
            "blocked": blocked,
            "durable": done["durable"],
            "returned": done["returned"],
            "slowdown": training.mean() / step,
            "steps": training.steps,
            "cpu": cpu,
            "storage": files.bytes_on_storage(Path(path))[0],
        }

    def check_async(self, library: str, path: str) -> Answer:
        """Whether the snapshot holds the old values. A library that fails this is reported, not stopped."""
        shapes.spoil(self.state)
        loaded = self.library(library).load(self.state, Path(path))
        difference = shapes.first_difference(loaded, self.names)
        shapes.fill(self.state)
        return {"consistent": difference is None}

    def make_entries(self, count: int, large: int) -> Answer:
        """`count` tensors of 64 bytes, `large` more of 1 MiB among them."""
        small = torch.arange(count * 16, dtype=torch.float32).view(count, 16)
        self.state = {f"tensor_{i}": row for i, row in enumerate(small.unbind(0))}
        self.state.update({f"large_{i}": torch.full((1 << 18,), float(i)) for i in range(large)})
        self.names = list(self.state)
        return {}

    def save_entries(self, library: str, path: str) -> Answer:
        # Clones: safetensors takes no tensors that share memory.
        state = self.state if library == "torchsnapshot" else {k: v.clone() for k, v in self.state.items()}
        began = time.perf_counter()
        self.library(library).save(state, Path(path))
        return {"seconds": time.perf_counter() - began}

    def read_entries(self, library: str, path: str, wanted: list[str], reads: int) -> Answer:
        """Seconds to open the snapshot and read one tensor; then of each further read of a random one."""
        instance = self.library(library)
        generator = random.Random(1)
        began = time.perf_counter()
        opened, tensors = instance.read_one(Path(path), wanted[:1], None)
        seconds = [time.perf_counter() - began]
        results = [(wanted[0], tensors[0])]
        for _ in range(reads):
            name = generator.choice(wanted)
            began = time.perf_counter()
            _, tensors = instance.read_one(Path(path), [name], opened)
            seconds.append(time.perf_counter() - began)
            results.append((name, tensors[0]))
        for name, tensor in results:
            if not torch.equal(tensor, self.state[name]):
                raise AssertionError(f"{name} read back differs")
        return {"first": seconds[0], "further": seconds[1:]}


class _Training:
    """Steps like those of training, but short: arithmetic on all cores, then a part of the tensors is changed."""

    def __init__(self, state: shapes.State) -> None:
        names = list(state)
        self._parts = [{name: state[name] for name in names[i::16]} for i in range(min(16, len(names)))]
        self._weights = torch.rand(512, 512)
        self.steps = 0
        self._seconds = 0.0

    def run(self, until: Any) -> None:
        began = time.perf_counter()
        while True:
            for _ in range(8):
                self._weights = torch.tanh(self._weights @ self._weights)
            shapes.mutate(self._parts[self.steps % len(self._parts)], 1)
            self.steps += 1
            if until(began):
                break
        self._seconds = time.perf_counter() - began

    def mean(self) -> float:
        return self._seconds / self.steps


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = getattr(worker, job["call"])(**job["arguments"])
        except BaseException:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
