"""Async takes: time blocked, slow-down of the training steps that follow, time to durable; never one number alone.

Every tensor is changed in place the moment the call returns, and the snapshot must hold the old values. Each library
has a process of its own, where the state and its staging buffers stay; the first call is shown apart, since it pays
for them.
"""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

import report
from client import Worker, WorkerError, original_worker, our_worker
from context import OURS, Options, Part
from libraries import remove
from machine import available_memory

LAZY = "torchsnapshot, lazy"
MEMCPY, SYNC = "memcpy, all cores", "sync take"
OPERATIONS = ("blocked, first call", "blocked", "durable")
UNDISTURBED_SECONDS = 2.0
SPARE_MEMORY = 4 << 30


def run(options: Options) -> Part:
    part = Part("Async take")
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        first = stack.enter_context(our_worker())
        versions = first("versions")
        if versions.get("async_take") == "True":
            workers[OURS] = workers[LAZY] = first
            workers["DCP"] = stack.enter_context(our_worker())
        else:
            part.note("this build has no async_take yet: the peers only")
            workers["DCP"] = first
        original = original_worker() if options.original else None
        if original:
            workers["original"] = stack.enter_context(original)
        # Each holds the state and a copy of it.
        processes = dict.fromkeys(workers.values())
        size = min(options.size, max(64 << 20, (available_memory() - SPARE_MEMORY) // (2 * len(processes) + 1)))
        for worker in processes:
            part.facts.update(worker("make", shape="llm", size=size))
        part.facts.pop("memory")
        part.facts["versions"] = versions
        _rounds(part, workers, options)
    _print(part)
    return part


def _limits(part: Part, worker: Worker, options: Options) -> None:
    """One memcpy of the state's bytes, and a sync take of it."""
    worker("settle")
    part.add("blocked", MEMCPY, worker("copy_all_cores")["seconds"])
    path = options.folder / "sync"
    try:
        part.add("durable", SYNC, worker("save", library=OURS, path=str(path))["durable"])
    finally:
        remove(path)


def _rounds(part: Part, workers: dict[str, Worker], options: Options) -> None:
    for number in range(options.rounds + 1):
        if number > 0 and OURS in workers:
            _limits(part, workers[OURS], options)
        names = list(workers)
        for library in names if number % 2 == 0 else names[::-1]:
            worker, path = workers[library], options.folder / f"async-{number}"
            try:
                worker("settle")
                step = worker("step_seconds", seconds=UNDISTURBED_SECONDS)["step"]
                worker("restore_content")
                worker("settle")
                result = worker("save_async", library=library, path=str(path), step=step)
                consistent = worker("check_async", library=library, path=str(path))["consistent"]
            except WorkerError as error:
                if library in (OURS, LAZY) or number > 0:
                    raise
                part.note(f"{library} is left out: {str(error).strip().splitlines()[-1]}")
                del workers[library]
                continue
            finally:
                remove(path)
            if not consistent:
                if library in (OURS, LAZY):
                    raise AssertionError("an async snapshot of ours holds values from after the call")
                part.note(f"{library}: INCONSISTENT: values changed after the call returned are in its snapshot")
            part.detail("consistent", library, float(consistent))
            if number == 0:
                part.add("blocked, first call", library, result["blocked"])
                continue
            part.add("blocked", library, result["blocked"])
            part.add("durable", library, result["durable"])
            part.detail("step, slow-down", library, result["slowdown"])
            part.detail("steps meanwhile", library, result["steps"])
            part.detail("CPU seconds", library, result["cpu"])
            part.detail("extra memory", library, result["memory"])


def _print(part: Part) -> None:
    size = part.facts["bytes"]
    print(f"\n== {part.title}: {part.facts['tensors']:,} tensors (LLM shape), {size / report.GIB:.2f} GiB")
    rows = []
    ours = part.series["blocked"].get(OURS, [])
    for name, blocked in part.series["blocked"].items():
        if name == MEMCPY:
            continue
        rows.append(
            [
                name,
                "" if name == OURS else report.ratio(ours, blocked),
                report.spread(blocked, "{:.3f}".format),
                report.spread(part.series["blocked, first call"][name]),
                report.spread(part.details["step, slow-down"][name], "{:.2f} ×".format),
                report.spread(part.series["durable"][name]),
                report.mib(max(part.details["extra memory"][name])),
                "yes" if min(part.details["consistent"][name]) == 1 else "NO",
                str(len(blocked)),
            ]
        )
    header = ["", "ours blocks less by", "blocked s", "first call s", "steps slower by", "durable after s"]
    report.print_table("async", [*header, "extra memory", "old values kept", "n"], rows)
    if rows and ours:
        copy, durable = part.series["blocked"][MEMCPY], part.series["durable"]
        blocks = report.ratio(copy, ours)
        print(f"one memcpy with all cores: {report.spread(copy, '{:.3f}'.format)} s; ours blocks {blocks} that")
        sync = durable[SYNC]
        print(f"a sync take: {report.spread(sync)} s; ours is durable after {report.ratio(sync, durable[OURS])} that")
    if rows:
        print(f"note: an undisturbed step is the unit of the slow-down; {median(_all_steps(part)):.0f} steps meanwhile")
    for note in part.notes:
        print(f"note: {note}")


def _all_steps(part: Part) -> list[float]:
    return [steps for values in part.details["steps meanwhile"].values() for steps in values]
