"""Runs the command `torchsnapshot` of the build that is being tested."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from torchsnapshot import __main__ as entry


def command() -> str:
    """The program beside the package. It is built where CLI11 is installed, and tools/setup.sh sees to that."""
    found = entry.find_command()
    assert found is not None, "the command is not built: apt-get install libcli11-dev, then configure again"
    return str(found)


def run(*arguments: str, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs it, checks the exit status, and gives what it wrote."""
    done = subprocess.run(
        [command(), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )
    assert done.returncode == status, f"exit status {done.returncode}, not {status}: {done.stdout}{done.stderr}"
    if status == 0:
        assert done.stderr == ""
    return done


def run_json(name: str, *arguments: str, status: int = 0) -> Any:
    done = run(name, "--json", *arguments, status=status)
    return json.loads(done.stdout)


def run_bytes(*arguments: str) -> bytes:
    return subprocess.run([command(), *arguments], capture_output=True, timeout=120, check=True).stdout
