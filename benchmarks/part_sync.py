"""Take and restore of one shape, against all peers and the limits of disk and memory, in interleaved rounds.

A round, for each library: save; load with a cold page cache; load with a warm one; delete. What was loaded is compared
with what was saved, bit for bit, each time. The limits are measured between them, in every round.
"""

from __future__ import annotations

import time
from pathlib import Path

import files
import limits
import report
from client import Worker, WorkerError, original_worker, our_worker
from context import OURS, SIDE_ROUNDS, SIT_OUT_RATIO, Options, Order, Part
from libraries import remove

SAVE, COLD, WARM = "save, durable", "load, cold", "load, warm"
MMAP = "torch.load mmap"
MEMCPY = "memcpy, all cores"
TITLES = {
    "few_large": "Few large tensors",
    "llm": "LLM: bf16 parameters, fp32 Adam",
    "small": "Many small tensors",
    "huge": "One huge tensor",
}
LIBRARIES = [OURS, "torch.save", "safetensors", "DCP", "original"]


def run(shape: str, options: Options) -> Part:
    part = Part(TITLES[shape])
    with our_worker() as ours:
        part.facts.update(ours("make", shape=shape, size=options.size))
        part.facts.pop("memory")
        part.facts["versions"] = ours("versions")
        original = original_worker() if options.original else None
        try:
            if original:
                original("make", shape=shape, size=options.size)
            workers = {name: ours for name in LIBRARIES if name != "original"}
            if original:
                workers["original"] = original
            _rounds(part, workers, options)
        finally:
            if original:
                original.close()
    _print(part)
    return part


def _rounds(part: Part, workers: dict[str, Worker], options: Options) -> None:
    for name, worker in workers.items():
        path = options.folder / "warm-up"
        worker("warm_up", library=name, path=str(path))
        remove(path)
    order = Order(list(workers), options.all_rounds)
    for number in range(options.rounds):
        for library in order.of_round(number):
            began = time.perf_counter()
            try:
                _library_round(part, library, workers[library], options, number)
            except WorkerError as error:
                if library == OURS or number > 0:
                    raise
                part.note(f"{library} is left out: {str(error).strip().splitlines()[-1]}")
                order.drop(library)
            order.spent(library, began)
        _memory_limit(part, workers[OURS])
    for library in order.out:
        part.note(f"{library} sat out the later rounds: more than {SIT_OUT_RATIO} times as slow as the fastest peer")


def _library_round(part: Part, library: str, worker: Worker, options: Options, number: int) -> None:
    path = options.folder / f"round-{number}"
    try:
        if library == OURS:
            _write_limit(part, options.folder)
        worker("settle")
        saved = worker("save", library=library, path=str(path))
        part.add(SAVE, library, saved["durable"])
        part.detail("save, returned", library, saved["returned"])
        part.detail("save, CPU seconds", library, saved["cpu"])
        part.detail("save, extra memory", library, saved["memory"])
        part.detail("bytes on storage", library, saved["storage"])
        part.detail("files", library, saved["files"])
        if library == OURS:
            _read_limit(part, path)
        main_round = options.all_rounds or number < SIDE_ROUNDS
        for loader in [library, MMAP] if library == "torch.save" and main_round else [library]:
            for operation, prepare in ((COLD, files.make_cold), (WARM, files.make_warm)):
                if operation == WARM and library != OURS and not main_round:
                    continue
                worker("spoil")
                worker("settle")
                prepare(path)
                loaded = worker("load", library=loader, path=str(path))
                worker("check")
                name = "torch.load" if loader == "torch.save" else loader
                part.add(operation, name, loaded["seconds"])
                part.detail(f"{operation}, CPU seconds", name, loaded["cpu"])
                part.detail(f"{operation}, extra memory", name, loaded["memory"])
    finally:
        remove(path)


def _write_limit(part: Part, folder: Path) -> None:
    for setting in limits.SETTINGS:
        try:
            part.add(SAVE, f"fio {setting}", limits.direct_write(folder, part.facts["bytes"], setting))
        except limits.FioError as error:  # noqa: PERF203
            part.note(f"no limit of the disk: {error}")


def _read_limit(part: Part, path: Path) -> None:
    for setting in limits.SETTINGS:
        files.make_cold(path)
        try:
            part.add(COLD, f"fio {setting}", limits.direct_read(files.files_below(path), setting))
        except limits.FioError as error:
            part.note(f"no limit of the disk: {error}")


def _memory_limit(part: Part, worker: Worker) -> None:
    part.add(WARM, MEMCPY, worker("copy_all_cores")["seconds"])


def _print(part: Part) -> None:
    size = part.facts["bytes"]
    print(f"\n== {part.title}: {part.facts['tensors']:,} tensors, {size / report.GIB:.2f} GiB")
    for operation, series in part.series.items():
        ours = series[OURS]
        rows = []
        for name, seconds in series.items():
            key = "save" if operation == SAVE else operation
            cpu = part.details[f"{key}, CPU seconds"].get(name, [])
            memory = part.details[f"{key}, extra memory"].get(name, [])
            row = [
                name,
                "" if name == OURS else report.ratio(ours, seconds),
                report.spread(seconds),
                report.spread([size / 1e9 / s for s in seconds]),
                report.spread([s * report.GIB / size for s in cpu]) if cpu else "–",
                report.mib(max(memory)) if memory else "–",
            ]
            if operation == SAVE:
                returned = part.details["save, returned"].get(name, [])
                storage = part.details["bytes on storage"].get(name, [])
                row += [
                    report.spread(returned) if returned else "–",
                    f"{storage[-1] / size:.3f}" if storage else "–",
                    f"{part.details['files'][name][-1]:.0f}" if storage else "–",
                ]
            rows.append([*row, str(len(seconds))])
        header = ["", "ours is faster by", "seconds", "GB/s", "CPU s per GiB", "extra memory"]
        if operation == SAVE:
            header += ["call returned after s", "storage / payload", "files"]
        report.print_table(operation, [*header, "n"], rows)
    for note in part.notes:
        print(f"note: {note}")
