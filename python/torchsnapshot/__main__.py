"""``python -m torchsnapshot``: the command ``torchsnapshot`` of this installation."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

_MISSING = (
    "torchsnapshot: this installation was built without the command, for want of CLI11: "
    "install it (apt-get install libcli11-dev) and install torchsnapshot again"
)


def find_command() -> Path | None:
    """The program that belongs to this package: beside it in a build tree, in the environment's bin otherwise."""
    beside = Path(__file__).with_name("torchsnapshot")
    if beside.is_file():
        return beside
    try:
        files = importlib.metadata.files("torchsnapshot") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    commands = (Path(str(file.locate())) for file in files if file.name == "torchsnapshot")
    return next((command for command in commands if command.is_file()), None)


def main() -> None:
    command = find_command()
    if command is None:
        print(_MISSING, file=sys.stderr)
        sys.exit(2)
    sys.stdout.flush()
    os.execv(command, ["torchsnapshot", *sys.argv[1:]])


if __name__ == "__main__":
    main()
