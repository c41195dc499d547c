"""Starts workers and talks to them; watches their memory while they work."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
SAMPLE_SECONDS = 0.01

# What the original needs, in an environment of its own: it has the package name in common with us.
ORIGINAL_NEEDS = [
    "torch==2.13.0",
    "numpy",
    "aiofiles",
    "PyYAML",
    "psutil",
    "nest_asyncio",
    "importlib-metadata",
    "typing-extensions",
    "setuptools",
]


class WorkerError(RuntimeError):
    """A job failed in the worker; the text is its traceback."""


class Worker:
    """worker.py in a process of its own. Close it, or use it in a `with`."""

    def __init__(self, python: Path, *, ours: bool) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        if ours:
            environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        self._process = subprocess.Popen(
            [python, HERE / "worker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.communicate()

    def __call__(self, call: str, **arguments: Any) -> dict[str, Any]:
        """The job's result; "memory" in it is the peak growth of the worker's own memory, in bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = peak = self._memory()
        self._process.stdin.write(json.dumps({"call": call, "arguments": arguments}).encode() + b"\n")
        self._process.stdin.flush()
        while not select.select([self._process.stdout], [], [], SAMPLE_SECONDS)[0]:
            peak = max(peak, self._memory())
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the worker died at {call} {arguments}: exit status {self._process.wait()}")
        answer = cast("dict[str, Any]", json.loads(line))
        if "error" in answer:
            raise WorkerError(f"{call} {arguments}:\n{answer['error']}")
        answer["memory"] = max(peak, self._memory()) - before
        return answer

    def _memory(self) -> int:
        """Anonymous and shared memory in use; pages of mapped files don't count: the kernel can drop them."""
        total = 0
        try:
            with open(f"/proc/{self._process.pid}/status", encoding="ascii") as status:
                for line in status:
                    if line.startswith(("RssAnon:", "RssShmem:")):
                        total += int(line.split()[1]) << 10
                    if line.startswith("HugetlbPages:"):
                        total += int(line.split()[1]) << 10
        except OSError:  # it died; the answer will tell
            return 0
        return total


def our_worker() -> Worker:
    return Worker(Path(sys.executable), ours=True)


def original_worker() -> Worker | None:
    """A worker of the original torchsnapshot; None, with the reason on the terminal, if it can't be installed."""
    python = original_python()
    return Worker(python, ours=False) if python else None


def original_python() -> Path | None:
    """The interpreter that has the original: TORCHSNAPSHOT_TEST_ORIGINAL_PYTHON, or build/orig-venv, which is made when
    needed and kept (the tests use it too)."""
    given = os.environ.get("TORCHSNAPSHOT_TEST_ORIGINAL_PYTHON")
    if given:
        return Path(given)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    venv = REPOSITORY / "build" / "orig-venv"
    python = venv / "bin" / "python"

    def works() -> bool:
        code = "import torch, torchsnapshot, torchsnapshot.io_preparer"
        return (
            python.exists()
            and not subprocess.run([python, "-c", code], capture_output=True, env=environment).returncode
        )

    if works():
        return python
    print("bench: installing the original torchsnapshot into build/orig-venv, once", flush=True)
    for step in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(python), "-m", "pip", "install", "--quiet", *ORIGINAL_NEEDS],
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "torchsnapshot-nightly"],
    ):
        done = subprocess.run(step, capture_output=True, text=True, env=environment)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            print(f"bench: the original torchsnapshot can't be installed, so it is left out: {last}")
            return None
    return python if works() else None
