"""Runs in the original's virtual environment: takes or restores with the original torchsnapshot, job after job.

A job is a line of JSON on standard input, {"call": name, "arguments": [...], "knobs": {...}}; the answer is a line
{"error": text or null} on standard output. The calls are the functions below.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import traceback
import warnings
from typing import Any

import interchange_states
import torch
from torchsnapshot import RNGState, Snapshot, StateDict

warnings.simplefilter("ignore")


def dense(value: Any) -> Any:
    """A copy for torch.save that keeps every value and no view."""
    if isinstance(value, torch.Tensor):
        return value.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    if type(value) is list:
        return [dense(v) for v in value]
    if isinstance(value, dict):
        return type(value)((k, dense(v)) for k, v in value.items()) if type(value).__name__ != "Counter" else value
    return value


CALLS = {}


def call(function: Any) -> Any:
    CALLS[function.__name__] = function
    return function


@call
def take(path: str, name: str, expected: str, mode: str = "sync") -> None:
    """Takes the named state, and writes what was saved to `expected`."""
    state = StateDict(getattr(interchange_states, name)())
    torch.save(dense(state.data), expected)
    if mode == "sync":
        Snapshot.take(path, {"state": state})
        return
    # The original's async_take needs a process group even for one process.
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        Snapshot.async_take(path, {"state": state}).wait()
        torch.distributed.destroy_process_group()


@call
def restore(path: str, out: str, target: str = "") -> None:
    """Restores key "state" into an empty StateDict, or into the tree in `target`, and writes it to `out`."""
    state = StateDict(torch.load(target, weights_only=False) if target else {})
    Snapshot(path).restore({"state": state})
    torch.save(state.data, out)


@call
def take_training(path: str, expected: str) -> None:
    parts = interchange_states.training()
    torch.manual_seed(77)
    rng = torch.get_rng_state()
    Snapshot.take(path, {**parts, "rng": RNGState()})
    torch.save({**{k: copy.deepcopy(v.state_dict()) for k, v in parts.items()}, "rng": rng}, expected)


@call
def restore_training(path: str, out: str) -> None:
    parts = interchange_states.training(steps=0)
    Snapshot(path).restore({**parts, "rng": RNGState()})
    torch.save({**{k: v.state_dict() for k, v in parts.items()}, "rng": torch.get_rng_state()}, out)


def main() -> None:
    import torchsnapshot.io_preparer  # noqa: F401 - only the original has it: fails where another package is found

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    for line in sys.stdin:
        job = json.loads(line)
        for name in [name for name in os.environ if name.startswith("TORCHSNAPSHOT_")]:
            del os.environ[name]
        os.environ.update(job["knobs"])
        try:
            CALLS[job["call"]](*job["arguments"])
            error = None
        except BaseException:
            error = traceback.format_exc()
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
