#!/usr/bin/env python3
"""What takes and restores of CUDA tensors cost, against copies to and from pinned memory. Needs a GPU.

    python benchmarks/gpu.py [--gib 4] [--rounds 3] [--path FOLDER]

Prints one JSON object: the hardware, and for each operation the seconds of every round and the best GB/s. "blocked" is
how long the call kept the host, "copied" how long until everything may change (the device idle), "durable" how long
until the snapshot was committed. Every snapshot is compared with the values at its call; a difference ends the program
with status 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchsnapshot
from torchsnapshot import Snapshot

Times = dict[str, list[float]]


def main() -> int:
    """Runs the benchmark; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the state")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--path", type=Path, default=None, help="folder for the snapshots (default: a temporary one)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch.cuda is not available: this needs a GPU and torch with CUDA", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="torchsnapshot-cuda-", dir=arguments.path))
    try:
        report = run(folder, arguments.gib, arguments.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report, indent=2))
    return 0 if report["identical"] else 1


def run(folder: Path, gib: float, rounds: int) -> dict[str, Any]:
    """All operations, interleaved, `rounds` times."""
    model, optimizer = make_training(int(gib * 2**30))
    app = {"model": model, "optimizer": optimizer}
    tensors = tensors_of(app)
    size = sum(tensor.nbytes for tensor in tensors)
    times: Times = {}
    identical = True
    pinned = torch.empty(min(size, 256 << 20), dtype=torch.uint8, pin_memory=True)
    for number in range(rounds):
        copy_to_pinned(tensors, pinned, times)
        copy_from_pinned(tensors, pinned.clone().pin_memory(), times)
        step(model, optimizer)  # what was overwritten is noise from now on; the values don't matter
        torch.cuda.synchronize()

        path = str(folder / f"sync{number}")
        expected = [tensor.clone() for tensor in tensors]
        timed(times, "take/durable", partial(Snapshot.take, path, app))
        identical &= is_restored(path, app, tensors, expected, times)

        for staging in ("eager", "step"):
            path = str(folder / f"{staging}{number}")
            expected = [tensor.clone() for tensor in tensors]
            torch.cuda.synchronize()
            begin = time.perf_counter()
            pending = Snapshot.async_take(path, app, staging=staging)
            note(times, f"{staging}/blocked", begin)
            hook = time.perf_counter()
            step(model, optimizer)  # changes everything; with "step" it waits for the copies, on the device
            note(times, f"{staging}/step, on the host", hook)
            torch.cuda.synchronize()
            note(times, f"{staging}/copied, and a step", begin)
            pending.wait()
            note(times, f"{staging}/durable", begin)
            identical &= is_restored(path, app, tensors, expected, times)
        begin = time.perf_counter()
        step(model, optimizer)
        torch.cuda.synchronize()
        note(times, "a step alone", begin)
        for snapshot in folder.iterdir():
            shutil.rmtree(snapshot)
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "torchsnapshot": torchsnapshot.__version__,
        "bytes": size,
        "identical": identical,
        "seconds": times,
        "best_gb_per_s": {name: round(size / min(seconds) / 1e9, 2) for name, seconds in times.items()},
    }


def make_training(size: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and Adam with their state: `size` bytes in all, in tensors of 64 MiB and some small ones."""
    width = 4096
    layers = max(1, size // (3 * width * width * 4))
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers))).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model, optimizer)
    return model, optimizer


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer's step that changes every tensor."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()


def tensors_of(app: dict[str, Any]) -> list[torch.Tensor]:
    """The state on the GPU."""
    found = [parameter.detach() for parameter in app["model"].parameters()]
    for state in app["optimizer"].state.values():
        found += [value for value in state.values() if isinstance(value, torch.Tensor) and value.is_cuda]
    return found


def copy_to_pinned(tensors: list[torch.Tensor], pinned: torch.Tensor, times: Times) -> None:
    """The bound: asynchronous copies of everything into warm pinned memory."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for piece, count in pieces(tensors, pinned.numel()):
        pinned[:count].copy_(piece, non_blocking=True)
    torch.cuda.synchronize()
    note(times, "pinned copy to the host", begin)


def copy_from_pinned(tensors: list[torch.Tensor], pinned: torch.Tensor, times: Times) -> None:
    """The same towards the device; into copies of the tensors, one after the other."""
    target = torch.empty(pinned.numel(), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _, count in pieces(tensors, pinned.numel()):
        target[:count].copy_(pinned[:count], non_blocking=True)
    torch.cuda.synchronize()
    note(times, "pinned copy to the device", begin)


def pieces(tensors: list[torch.Tensor], most: int) -> list[tuple[torch.Tensor, int]]:
    """All bytes of the tensors, in pieces."""
    found = []
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8)
        found += [(flat[at : at + most], min(most, flat.numel() - at)) for at in range(0, flat.numel(), most)]
    return found


def is_restored(
    path: str, app: dict[str, Any], tensors: list[torch.Tensor], expected: list[torch.Tensor], times: Times
) -> bool:
    """Restores in place, and says whether the state is that at the call."""
    now = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    timed(times, "restore", partial(Snapshot(path).restore, app))
    same = all(torch.equal(a, b) for a, b in zip(tensors_of(app), expected, strict=True))
    for tensor, value in zip(tensors_of(app), now, strict=True):
        tensor.copy_(value)
    torch.cuda.synchronize()
    return same


def timed(times: Times, name: str, operation: Callable[[], object]) -> None:
    """One operation on an idle device."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    operation()
    torch.cuda.synchronize()
    note(times, name, begin)


def note(times: Times, name: str, begin: float) -> None:
    """Adds the seconds since `begin`."""
    times.setdefault(name, []).append(round(time.perf_counter() - begin, 5))


if __name__ == "__main__":
    sys.exit(main())
