"""The installed package at work, and the files that it consists of. Argument: the environment it was installed in."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchsnapshot
from torchsnapshot import Snapshot, StateDict


def main(environment: str) -> None:
    package = Path(torchsnapshot.__file__).parent
    assert package.is_relative_to(environment), f"{package} is not the installed package"
    assert torchsnapshot.__version__ == importlib.metadata.version("torchsnapshot")

    files = {str(path) for path in importlib.metadata.files("torchsnapshot") or []}
    for wanted in ("torchsnapshot/py.typed", "torchsnapshot/_core.pyi", "torchsnapshot/__init__.py"):
        assert wanted in files, f"{wanted} is not in the wheel"
    extensions = [name for name in files if name.endswith(".so")]
    assert len(extensions) == 1, f"one extension is expected in the wheel: {extensions}"
    commands = [name for name in files if os.path.basename(name) == "torchsnapshot"]
    assert len(commands) == 1, f"one command is expected in the wheel: {commands}"
    command = os.path.join(os.path.dirname(sys.executable), "torchsnapshot")
    strangers = [
        name
        for name in files
        if name not in commands
        and (
            not name.startswith(("torchsnapshot/", "torchsnapshot-"))
            or not (name.endswith((".py", ".pyi", ".pyc", ".so", "py.typed")) or ".dist-info/" in name)
        )
    ]
    assert not strangers, f"these have no place in the wheel: {strangers}"

    with tempfile.TemporaryDirectory() as folder:
        saved = torch.arange(12.0).reshape(3, 4)
        Snapshot.take(folder + "/snapshot", {"state": StateDict(weight=saved, step=7)})
        target = StateDict(weight=torch.zeros(3, 4), step=0)
        Snapshot(folder + "/snapshot").restore({"state": target})
        for call in ([command], [sys.executable, "-m", "torchsnapshot"]):
            listed = subprocess.run([*call, "ls", "--json", folder + "/snapshot"], capture_output=True, check=True)
            entries = {entry["path"]: entry for entry in json.loads(listed.stdout)["entries"]}
            assert entries["0/state/weight"]["shape"] == [3, 4], listed.stdout
    assert torch.equal(target["weight"], saved)
    assert target["step"] == 7
    print(f"wheel-test: {package}, torchsnapshot {torchsnapshot.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
