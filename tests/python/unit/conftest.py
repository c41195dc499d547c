"""The modules of the package alone: they are tested with the built package if there is one, else with a stand-in for its
extension that knows the two functions that they call."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys
import types
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def _parse_metadata(data: bytes) -> tuple[str, int, dict[str, dict[str, Any]]]:
    plain = json.loads(data)
    return plain["version"], plain["world_size"], plain["manifest"]


def _write_metadata(version: str, world_size: int, entries: dict[str, dict[str, Any]]) -> str:
    return json.dumps({"version": version, "world_size": world_size, "manifest": entries}, indent=2)


def _use_stand_in() -> None:
    if importlib.util.find_spec("torchsnapshot") is None:
        sys.path.insert(0, str(REPOSITORY / "python"))
    try:
        found = importlib.util.find_spec("torchsnapshot._core") is not None
    except ImportError:
        found = False
    if found:
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchsnapshot"]:
        del sys.modules[name]
    core = types.ModuleType("torchsnapshot._core")
    core.__version__ = "0.0.0"  # type: ignore[attr-defined]
    core.parse_metadata = _parse_metadata  # type: ignore[attr-defined]
    core.write_metadata = _write_metadata  # type: ignore[attr-defined]
    sys.modules["torchsnapshot._core"] = core


_use_stand_in()
