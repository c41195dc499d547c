"""Trains a small network on scikit-learn's digits, with a snapshot every few steps. Resumes where one is there.

What it draws at random: the order of the samples (torch), dropout (torch), noise on the images (numpy) and their shifts
(Python's ``random``). RUN/latest is the snapshot, which each take overwrites; RUN/log.jsonl tells each step with its
loss as a hexadecimal float; RUN/result.json holds the digests of the final state.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from state_tools import digest
from torch import nn
from torchsnapshot import RNGState, Snapshot, StateDict, Stateful
from torchsnapshot.snapshot import SNAPSHOT_METADATA_FNAME

BATCH = 64


def make_model() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.2)]

    return nn.Sequential(*block(64, 256), *block(256, 128), nn.Linear(128, 10))


def load_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, 8, 8) of 0 to 1 and labels; every fifth sample is for the test."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div_(16)
    labels = torch.from_numpy(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    return images[~test], labels[~test], images[test], labels[test]


def augment(images: torch.Tensor) -> torch.Tensor:
    """Shifted by up to one pixel, with noise."""
    shift = (random.randint(-1, 1), random.randint(-1, 1))
    noise = np.random.normal(0, 0.05, images.shape).astype(np.float32)
    return torch.roll(images, shift, (1, 2)) + torch.from_numpy(noise)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class Log:
    """JSON lines, each written by one system call: a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __call__(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}).encode() + b"\n")


def train(run: Path, steps: int, every: int, seed: int, restore_rng: bool) -> None:
    run.mkdir(parents=True, exist_ok=True)
    log = Log(run / "log.jsonl")
    latest = run / "latest"
    resume = (latest / SNAPSHOT_METADATA_FNAME).exists()

    # A resumed process starts from other weights and other random numbers: what agrees afterwards was restored.
    seed_everything(secrets.randbits(32) if resume else seed)
    images, labels, test_images, test_labels = load_data()
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    progress = StateDict(
        step=0,
        position=len(labels),  # in `order`; at its end a new epoch begins
        order=torch.zeros(len(labels), dtype=torch.int64),
        losses=torch.full((steps,), float("nan"), dtype=torch.float64),
    )
    rng = RNGState()
    app_state: dict[str, Stateful] = {
        "model": model,
        "optim": optimizer,
        "sched": scheduler,
        "progress": progress,
        "rng": rng,
    }
    if resume:
        target = app_state if restore_rng else {key: app_state[key] for key in app_state if key != "rng"}
        Snapshot(str(latest)).restore(target)
    log("start", step=progress["step"], resumed=resume, pid=os.getpid())

    model.train()
    while progress["step"] < steps:
        if progress["position"] >= len(labels):
            progress["order"] = torch.randperm(len(labels))
            progress["position"] = 0
        batch = progress["order"][progress["position"] : progress["position"] + BATCH]
        progress["position"] += BATCH

        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(augment(images[batch]).flatten(1)), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()

        progress["losses"][progress["step"]] = loss.detach()
        progress["step"] += 1
        log("step", step=progress["step"], loss=float(loss.item()).hex())
        if progress["step"] % every == 0:
            log("take", step=progress["step"])
            Snapshot.take(str(latest), app_state)
            log("taken", step=progress["step"])

    model.eval()
    with torch.no_grad():
        accuracy = (model(test_images.flatten(1)).argmax(1) == test_labels).double().mean().item()
    result = {
        "accuracy": accuracy,
        "losses": [loss.hex() for loss in progress["losses"].tolist()],
        "digests": {
            name: vars(digest(state))
            for name, state in {
                "weights": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "random generators": rng.state_dict(),
            }.items()
        },
    }
    (run / "result.json").write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of this run")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between two snapshots")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--no-rng", action="store_true", help="resume without the random generators (to see that it makes a difference)"
    )
    args = parser.parse_args()
    # One thread is fastest at this size, and sums in one order on every machine.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train(args.run, args.steps, args.every, args.seed, not args.no_rng)


if __name__ == "__main__":
    main()
