"""Take and restore of a GPT-2-small-sized training state, beside torch.save and torch.load, on the same disk.

The candidates take turns, in another order each round. Before a load the files' pages are dropped from the page cache,
and every tensor of the target is overwritten; after it each is compared with the saved one, bit by bit. The target is a
model with its optimizer's state in place, as when training goes back to a snapshot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import gpt2_candidates as candidates
import torch
from gpt2_candidates import Results, State
from measure import Measured, available_memory, drop_from_page_cache, file_system_of, files_below
from table import print_table
from torchsnapshot import __version__

INSPECTED = "wte.weight"
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")
GB = 1e9
EXPECTED_BYTES = 1_493_276_000  # parameters and two moments of 124 million; known before the model is built
DISK_COPIES = 3.2  # ours, torch.save's and the disk's own, and some room
MEMORY_COPIES = 4.0  # target, copy to compare with, what torch.load brings, and some room

Rounds = dict[str, list[Measured]]


def check_resources(folder: Path) -> None:
    """Exits with a message that says what is missing."""
    disk, need = shutil.disk_usage(folder).free, DISK_COPIES * EXPECTED_BYTES
    if disk < need:
        raise SystemExit(
            f"too little free disk below {folder}: {disk / GB:.1f} GB, and this part needs {need / GB:.1f} GB for a "
            "short while; choose another disk with --dir"
        )
    memory, need = available_memory(), MEMORY_COPIES * EXPECTED_BYTES
    if memory < need:
        raise SystemExit(
            f"too little memory: {memory / GB:.1f} GB are available, and this part needs {need / GB:.1f} GB"
        )


def run_rounds(state: State, folder: Path, rounds: int) -> tuple[Rounds, Rounds]:
    """Measurements of saving and of loading, by row of the table. Leaves the files of the last round."""
    saves: Rounds = {}
    loads: Rounds = {}
    ours, torchs, noise = folder / "snapshot", folder / "torch.pt", folder / "noise"
    writers: list[tuple[Callable[[State, Path], Results], Path]] = [
        (candidates.take, ours),
        (candidates.torch_save, torchs),
        (candidates.disk_write, noise),
    ]
    readers: list[tuple[Callable[[State, Path], Results], Path]] = [
        (candidates.restore, ours),
        (candidates.torch_load, torchs),
        (candidates.torch_load_mapped, torchs),
        (candidates.disk_read, torchs),
    ]
    for index in range(rounds):
        print(f"round {index + 1} of {rounds} ...", flush=True)
        shutil.rmtree(ours, ignore_errors=True)
        torchs.unlink(missing_ok=True)
        for save, path in rotated(writers, index):
            os.sync()
            add(saves, save(state, path))
        for load, path in rotated(readers, index):
            drop_from_page_cache(path)
            if load is candidates.disk_read:  # fills nothing
                add(loads, load(state, path))
                continue
            state.scramble()
            add(loads, load(state, path))
            state.check(load.__name__)
    return saves, loads


def rotated(
    items: list[tuple[Callable[[State, Path], Results], Path]], by: int
) -> list[tuple[Callable[[State, Path], Results], Path]]:
    by %= len(items)
    return items[by:] + items[:by]


def add(rows: Rounds, results: Results) -> None:
    for name, result in results.items():
        rows.setdefault(name, []).append(result)


def show(title: str, rows: Rounds, order: list[str], reference: str, size: int) -> None:
    """One line for each row: medians over the rounds, with the range where it matters."""

    def spread(values: list[float], form: str) -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"

    table = []
    for name in [*order, *(name for name in rows if name not in order)]:
        results = rows.get(name, [])
        if not results:
            continue
        seconds = [result.seconds for result in results]
        # In one round both meet about the same machine.
        ratios = [theirs.seconds / ours for theirs, ours in zip(rows[reference], seconds, strict=True)]
        table.append(
            [
                name,
                spread(seconds, ".2f"),
                f"{size / GB / statistics.median(seconds):.2f}",
                spread(ratios, ".2f"),
                f"{statistics.median(result.cpu_seconds for result in results):.1f}",
                f"{statistics.median(result.extra_memory for result in results) / 1e6:,.0f}",
                f"{statistics.median(result.read_from_disk for result in results) / GB:.2f}",
            ]
        )
    print_table([title, "seconds", "GB/s", "times as fast as torch", "CPU s", "extra MB", "GB from disk"], table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--dir", type=Path, default=None, help="where to put the data, about 5 GB; default: --out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="leave the last snapshot here (on the disk of --dir)")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("takes at least one round")
    args.out.mkdir(parents=True, exist_ok=True)
    parent = args.dir or args.out
    parent.mkdir(parents=True, exist_ok=True)
    check_resources(parent)
    file_system = file_system_of(parent)
    if file_system in MEMORY_FILE_SYSTEMS:
        print(f"{parent} is a {file_system}: what follows says nothing about a disk; choose one with --dir")
    # Ends by an exception, so that the data is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    print("Building the model, and one step of training ...", flush=True)
    state = State(args.seed)
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    with tempfile.TemporaryDirectory(dir=parent, prefix="gpt2-") as folder:
        saves, loads = run_rounds(state, Path(folder), args.rounds)
        snapshot, torchs = Path(folder) / "snapshot", Path(folder) / "torch.pt"
        sizes = {
            name: sum(file.stat().st_size for file in files_below(path))
            for name, path in (("snapshot", snapshot), ("torch.save", torchs))
        }
        if args.keep is not None:
            shutil.rmtree(args.keep, ignore_errors=True)
            snapshot.rename(args.keep)

    print(
        f"\n{parameters / 1e6:.1f} M parameters + AdamW: {state.bytes / GB:.3f} GB in {len(state.tensors())} tensors, "
        f"float32, on {file_system}; torch {torch.__version__},\ntorchsnapshot {__version__}, {os.cpu_count()} CPUs, "
        f"{torch.get_num_threads()} torch threads; {args.rounds} rounds: median (min-max)\n"
    )
    show("save, durable", saves, [candidates.TAKE, candidates.TORCH_SAVE], candidates.TORCH_SAVE, state.bytes)
    print()
    show(
        "load, cold page cache", loads, [candidates.RESTORE, candidates.TORCH_LOAD], candidates.TORCH_LOAD, state.bytes
    )
    on_disk = ", ".join(f"{name} {size:,} B" for name, size in sizes.items())
    print(
        "\nextra MB: peak growth of the resident set; with mmap=True it counts the mapped file, which the kernel may"
        "\ntake back. GB from disk: by the kernel's count; what lacks was still in the page cache.\n"
        f"After each load every tensor and setting was equal, bit for bit. On disk: {on_disk}."
    )
    inspected = state.expected["model"][INSPECTED].double()
    (args.out / "gpt2.json").write_text(
        json.dumps(
            {
                "parameters": parameters,
                "bytes": state.bytes,
                "tensors": len(state.tensors()),
                "file_system": file_system,
                "torch": torch.__version__,
                "torchsnapshot": __version__,
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
                "bytes_on_disk": sizes,
                "save": {name: [asdict(result) for result in results] for name, results in saves.items()},
                "load": {name: [asdict(result) for result in results] for name, results in loads.items()},
                "inspected": {
                    "path": f"0/model/{INSPECTED}",
                    "shape": list(inspected.shape),
                    "mean": inspected.mean().item(),
                    "min": inspected.min().item(),
                    "max": inspected.max().item(),
                },
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
