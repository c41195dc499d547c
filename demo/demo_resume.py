"""Training killed with SIGKILL and resumed, beside an uninterrupted run: every bit of the outcome must agree.

One run is left alone. Another is killed at random moments, several times, and resumed in a new process each time. A
third shows that the comparison can fail: it resumes from the same snapshot as the last process of the second, but
without the random generators.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from table import print_table

mpl.use("Agg")
import matplotlib.pyplot as plt

TRAINER = Path(__file__).with_name("train_digits.py")
POLL_SECONDS = 0.001
MOST_SECONDS = 300.0  # for one process


@dataclass
class Kill:
    """One process of the second run, and how it ended."""

    step: int  #: steps done when it was killed
    inside_take: bool  #: it was killed while it wrote a snapshot
    resumed_from: int  #: the step that the next process went on from


def trainer_command(run: Path, args: argparse.Namespace, *extra: str) -> list[str]:
    options = ["--steps", str(args.steps), "--every", str(args.every), "--seed", str(args.seed), *extra]
    return [sys.executable, str(TRAINER), str(run), *options]


def start(run: Path, args: argparse.Namespace, *extra: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(trainer_command(run, args, *extra))


def wait_for(*processes: subprocess.Popen[bytes]) -> None:
    """Until all have ended well."""
    try:
        for process in processes:
            status = process.wait(timeout=MOST_SECONDS)
            if status != 0:
                raise RuntimeError(f"the trainer failed with status {status}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


class LogTail:
    """The events that were added to a trainer's log since the last look."""

    def __init__(self, run: Path) -> None:
        self._path = run / "log.jsonl"
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # while it grows, the last line may be there in part
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def run_and_kill(run: Path, args: argparse.Namespace, at_step: int, in_take: bool, delay: float) -> None:
    """Kills the trainer `delay` seconds after `at_step` steps; `in_take`: after the start of the take that follows."""
    log = LogTail(run)
    process = start(run, args)
    try:
        deadline = time.monotonic() + MOST_SECONDS
        while process.poll() is None:
            new = log.read()
            if new and last_step(new) >= at_step and (not in_take or new[-1]["event"] == "take"):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"the trainer has not reached step {at_step} after {MOST_SECONDS} s")
            time.sleep(POLL_SECONDS)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the trainer ended by itself (status {process.returncode}) before it could be killed")


def last_step(log: Sequence[dict[str, Any]]) -> int:
    return max((event["step"] for event in log), default=0)


def split_processes(log: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The events of each process."""
    processes: list[list[dict[str, Any]]] = []
    for event in log:
        if event["event"] == "start":
            processes.append([])
        processes[-1].append(event)
    return processes


def kills_of(processes: Sequence[list[dict[str, Any]]]) -> list[Kill]:
    kills = []
    for killed, resumed in pairwise(processes):
        # A take that was committed but not yet logged counts, too.
        begun = [event["step"] for event in killed if event["event"] == "take"]
        done = [event["step"] for event in killed if event["event"] == "taken"]
        inside = killed[-1]["event"] == "take"
        start = resumed[0]["step"]
        allowed = {done[-1] if done else killed[0]["step"], *begun[-1:]}
        if start not in allowed:
            raise RuntimeError(f"resumed from step {start}, not from the last snapshot (step {sorted(allowed)})")
        kills.append(Kill(last_step(killed), inside, start))
    return kills


def losses_of(events: Sequence[dict[str, Any]]) -> dict[int, str]:
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


def check(name: str, agrees: bool, failures: list[str]) -> str:
    if not agrees:
        failures.append(name)
    return "identical" if agrees else "DIFFERENT"


def compare(plain: dict[str, Any], resumed: dict[str, Any], control: dict[str, Any], failures: list[str]) -> None:
    """Prints the table; adds what should be equal and isn't (or the reverse) to `failures`."""

    def row(name: str, key: Any, show: Any) -> list[str]:
        values = [key(result) for result in (plain, resumed, control)]
        verdict = check(name, values[0] == values[1], failures)
        return [name, *(show(value) for value in values), verdict]

    rows = [
        row("final loss (hex)", lambda r: r["losses"][-1], str),
        row("final loss", lambda r: float.fromhex(r["losses"][-1]), lambda loss: f"{loss:.6f}"),
        row("test accuracy", lambda r: r["accuracy"], lambda accuracy: f"{100 * accuracy:.2f} %"),
        row("loss curve in the snapshot", lambda r: r["losses"], lambda losses: f"{len(losses)} steps"),
    ]
    for name, found in plain["digests"].items():
        rows.append(row(f"sha256 of the {name}", lambda r, n=name: r["digests"][n], lambda d: d["sha256"][:16]))
        rows.append(
            [f"  {found['tensors']} tensors, {found['tensor_bytes']:,} B, {found['other_leaves']} others"] + [""] * 4
        )
    print_table(["", "uninterrupted", "killed + resumed", "control: no RNG", "the first two"], rows)
    if plain["losses"] == control["losses"] or plain["digests"] == control["digests"]:
        failures.append("the control run, which has to differ")


def plot(
    path: Path,
    plain: dict[int, str],
    processes: Sequence[list[dict[str, Any]]],
    control: dict[int, str],
    kills: Sequence[Kill],
) -> None:
    curves, (upper, lower) = plt.subplots(
        2, 1, figsize=(10, 7), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    reference = {step: float.fromhex(loss) for step, loss in plain.items()}
    upper.plot(list(reference), list(reference.values()), color="#b8c4d6", lw=5, label="uninterrupted")
    for index, events in enumerate(processes):
        losses = {step: float.fromhex(loss) for step, loss in losses_of(events).items()}
        upper.plot(list(losses), list(losses.values()), lw=1, color=f"C{index}", label=f"process {index + 1}")
    for index, kill in enumerate(kills):
        for axis in (upper, lower):
            axis.axvline(
                kill.step, color="black", lw=1, ls=":", label="kill -9" if axis is upper and not index else None
            )
    upper.set_ylabel("training loss")
    upper.set_yscale("log")
    upper.set_title("Digits: an uninterrupted run, and one killed and resumed in new processes")
    upper.legend(loc="upper right")

    def difference(other: dict[int, str]) -> list[float]:
        return [abs(float.fromhex(other[step]) - loss) for step, loss in reference.items()]

    resumed: dict[int, str] = {}
    for events in processes:
        resumed.update(losses_of(events))
    lower.plot(list(reference), difference(control), color="C7", lw=1, label="control: resumed without the generators")
    lower.plot(list(reference), difference(resumed), color="C3", lw=2, label="killed + resumed")
    lower.set_ylabel("|difference|")
    lower.set_xlabel("step")
    lower.legend(loc="upper left")
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    curves.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is written")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=10, help="steps between two snapshots")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--kill-seed", type=int, default=None, help="of the moments of the kills; default: random")
    args = parser.parse_args()
    if args.kills < 1 or args.every < 1 or args.steps < 10 * args.every * args.kills:
        parser.error("takes at least one kill, and ten snapshots for each")

    work = args.out / "digits"
    shutil.rmtree(work, ignore_errors=True)
    plain_run, killed_run, control_run = work / "uninterrupted", work / "killed", work / "control"

    kill_seed = secrets.randbits(32) if args.kill_seed is None else args.kill_seed
    moments = random.Random(kill_seed)
    # One in each equal part of the run, up to its last tenth; every other one at the beginning of a take.
    part = 0.9 * args.steps / args.kills
    targets = [max(2 * args.every, int(part * (index + moments.uniform(0.3, 0.95)))) for index in range(args.kills)]
    print(
        f"Training {args.steps} steps, a snapshot every {args.every} steps: without interruption, and beside that\n"
        f"killed after about {' and '.join(map(str, targets))} steps (--kill-seed {kill_seed}) ...",
        flush=True,
    )
    uninterrupted = start(plain_run, args)
    try:
        for index, target in enumerate(targets):
            in_take = index % 2 == 1
            delay = moments.uniform(0, 0.003 if in_take else 0.05)
            run_and_kill(killed_run, args, target, in_take, delay)
    finally:
        wait_for(uninterrupted)
    shutil.copytree(killed_run, control_run)
    print("Resumed to the end, and a control from the same snapshot without the random generators ...", flush=True)
    wait_for(start(killed_run, args), start(control_run, args, "--no-rng"))

    failures: list[str] = []
    plain, resumed, control = (
        json.loads((run / "result.json").read_text()) for run in (plain_run, killed_run, control_run)
    )
    processes = split_processes(LogTail(killed_run).read())
    kills = kills_of(processes)
    print()
    ends = ["kill -9, in a take" if kill.inside_take else "kill -9" for kill in kills] + ["finished"]
    print_table(
        ["process", "began at step", "reached step", "end"],
        [
            [str(index + 1), str(events[0]["step"]), str(last_step(events)), end]
            for index, (events, end) in enumerate(zip(processes, ends, strict=True))
        ],
    )
    print()
    compare(plain, resumed, control, failures)

    plain_log = losses_of(LogTail(plain_run).read())
    again = [(step, loss) for events in processes for step, loss in losses_of(events).items()]
    verdict = check("the logged losses", all(plain_log.get(step) == loss for step, loss in again), failures)
    complete = check("the steps logged", {step for step, _ in again} == set(plain_log), failures)
    print(
        f"\nLogged losses of all processes, {len(again)} steps of which {len(again) - len(plain_log)} were done twice: "
        f"{verdict}; steps: {complete}"
    )
    picture = args.out / "digits.png"
    plot(picture, plain_log, processes, losses_of(LogTail(control_run).read()), kills)
    (args.out / "digits.json").write_text(
        json.dumps(
            {
                "kill_seed": kill_seed,
                "kills": [asdict(kill) for kill in kills],
                "failures": failures,
                "digests": {"uninterrupted": plain["digests"], "resumed": resumed["digests"]},
            },
            indent=1,
        )
    )
    print(f"Curves: {picture}")
    if failures:
        print(f"FAILED: {'; '.join(failures)}", file=sys.stderr)
        return 1
    print("Bit-identical.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
