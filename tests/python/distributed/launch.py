"""Runs checks on several ranks at once: processes of their own, one process group, gloo.

To import torch costs seconds of each process, so all ranks are forked from one that has done it (worker.py); and one
launch runs many checks, one after the other, and tells of each how it went on each rank.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import torch.distributed as dist

HERE = pathlib.Path(__file__).parent
MARGIN_SECONDS = 30


@dataclasses.dataclass
class Outcome:
    """How one rank ended, and what it says of each check: None if it went well, else the traceback."""

    returncode: int | None
    checks: dict[str, str | None]
    output: str


class Launcher:
    """The process that ranks are forked from. They end with it."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in [str(HERE), *sys.path] if p),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._await_line(240)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def run(
        self,
        world_size: int,
        module: str,
        folder: pathlib.Path,
        *checks: str,
        timeout: float = 240,
        host: str = "127.0.0.1",
    ) -> list[Outcome]:
        """Runs functions of a module in this folder on every rank: all whose names begin with ``check_`` (those that
        take as many ranks), or those named. `host`: where the store is."""
        folder.mkdir(parents=True, exist_ok=True)
        # As torchrun does, a process that is no rank keeps the store: it outlives every rank.
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        request = {
            "world_size": world_size,
            "host": host,
            "port": store.port,
            "module": module,
            "folder": str(folder),
            "names": checks,
            "timeout": timeout,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes = self._await_line(timeout + MARGIN_SECONDS)
        return [self._outcome(folder, rank, code) for rank, code in enumerate(codes)]

    @staticmethod
    def _outcome(folder: pathlib.Path, rank: int, code: int | None) -> Outcome:
        results = folder / f"rank-{rank}.json"
        lines = results.read_text().splitlines() if results.exists() else []
        log = folder / f"rank-{rank}.log"
        return Outcome(code, dict(json.loads(line) for line in lines), log.read_text()[-4000:] if log.exists() else "")

    def _await_line(self, timeout: float) -> Any:
        assert self._process.stdout is not None
        watchdog = threading.Timer(timeout, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise RuntimeError(f"the process that ranks are forked from has ended ({self._process.poll()})")
        return json.loads(line)
