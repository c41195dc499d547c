"""Fixtures of the whole suite. Tests use the package as a user would: through its public names only."""

from __future__ import annotations

import pathlib
import random
import sys

import numpy as np
import pytest
import torch

# A tiny installed distribution with storage plugins and an event handler (see test_plugins_events.py). It has to be
# there before the package looks for entry points.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "plugin_dist"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "interchange: runs the original torchsnapshot in a virtual environment of its own"
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20240601)
    np.random.seed(20240601)
    random.seed(20240601)


@pytest.fixture(autouse=True)
def _no_knobs(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TORCHSNAPSHOT_") and not name.startswith("TORCHSNAPSHOT_TEST"):
            monkeypatch.delenv(name)


@pytest.fixture
def snap(tmp_path: pathlib.Path) -> str:
    """A path for a snapshot, in a folder that nothing else is in."""
    return str(tmp_path / "outer" / "snap")
