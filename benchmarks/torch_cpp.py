#!/usr/bin/env python3
"""Take and restore of a GPT-2-sized state: C++ and Python through the same engine, torch::save and torch::load; ratios.

Usage: torch_cpp.py PROGRAM FOLDER [ROUNDS]    PROGRAM: the built torch_cpp.cc; FOLDER: on the disk to measure
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torchsnapshot import Snapshot

WIDTH = 768


def make_model() -> torch.nn.Module:
    shapes: list[tuple[int, ...]] = [(50257, WIDTH), (1024, WIDTH)]
    for _ in range(12):
        shapes += [(WIDTH,)] * 4 + [(WIDTH, 3 * WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
        shapes += [(WIDTH, 4 * WIDTH), (4 * WIDTH,), (4 * WIDTH, WIDTH), (WIDTH,)]
    return torch.nn.ParameterList(torch.rand(shape) for shape in [*shapes, (WIDTH,), (WIDTH,)])


def drop(folder: Path) -> None:
    subprocess.run(["sync", "-f", folder], check=True)
    for path in folder.rglob("*"):
        if path.is_file():
            subprocess.run(
                ["dd", f"of={path}", "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"], check=True
            )


def python_round(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, float]:
    shutil.rmtree(folder, ignore_errors=True)
    app_state = {"model": model, "optim": optimizer}
    begin = time.perf_counter()
    Snapshot.take(str(folder), app_state)
    take = time.perf_counter() - begin
    drop(folder)
    begin = time.perf_counter()
    Snapshot(str(folder)).restore(app_state)
    restore = time.perf_counter() - begin
    shutil.rmtree(folder)
    return {"python take": take, "python restore": restore}


def main() -> None:
    program, folder, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    results = []
    for _ in range(rounds):
        # Python's process stays, with its threads and buffers; so the second round of C++ counts.
        done = subprocess.run([program, folder / "cpp", "2"], check=True, capture_output=True, text=True)
        last = done.stdout.splitlines()[-1]
        results.append({**json.loads(last), **python_round(model, optimizer, folder / "python")})
        print(json.dumps(results[-1]), flush=True)
    for name, base in (("take", "python take"), ("take", "save"), ("restore", "python restore"), ("restore", "load")):
        ratios = [result[base] / result[name] for result in results]
        print(f"{name}: {statistics.median(ratios):.2f} x {base} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
