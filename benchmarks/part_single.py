"""One tensor out of a large snapshot, in a running process: opened first, then again and again; and one out of a
manifest of a million entries."""

from __future__ import annotations

from statistics import median, quantiles

import files
import report
from client import WorkerError, original_worker, our_worker
from context import OURS, Options, Part
from libraries import remove

ENTRIES, LARGE, READS = 50_000, 64, 200
MANY = 1_000_000
FIRST, FURTHER, P99 = "open + first read", "further reads, median", "further reads, p99"


def run(options: Options) -> Part:
    part = Part("One tensor out of many")
    part.facts["entries"] = ENTRIES
    # Enough for the figures to mean what they do by default; smaller states are for trying the programs out.
    scale = min(1.0, options.size / (256 << 20))
    entries = max(1000, int(ENTRIES * scale))
    many = max(1000, int(MANY * scale))
    part.facts.update(entries=entries, many=many)
    wanted = [f"large_{i}" for i in range(LARGE)]
    with our_worker() as ours:
        part.facts["versions"] = ours("versions")
        workers = {OURS: ours, "safetensors": ours, "torch.load mmap": ours}
        original = original_worker() if options.original else None
        if original:
            workers["original"] = original
        try:
            for worker in dict.fromkeys(workers.values()):
                worker("make_entries", count=entries, large=LARGE)
            for library in list(workers):
                try:
                    workers[library]("save_entries", library=library, path=str(options.folder / library))
                except WorkerError as error:  # noqa: PERF203
                    if library == OURS:
                        raise
                    part.note(f"{library} is left out: {str(error).strip().splitlines()[-1]}")
                    del workers[library]
            for number in range(options.rounds):
                names = list(workers)
                for library in names if number % 2 == 0 else names[::-1]:
                    path = options.folder / library
                    workers[library]("settle")
                    files.make_warm(path)
                    reads = 5 if library == "original" else READS
                    result = workers[library](
                        "read_entries", library=library, path=str(path), wanted=wanted, reads=reads
                    )
                    part.add(FIRST, library, result["first"])
                    part.add(FURTHER, library, median(result["further"]))
                    part.add(P99, library, quantiles(result["further"], n=100, method="inclusive")[98])
        finally:
            if original:
                original.close()
            for library in workers:
                remove(options.folder / library)
        _many(part, ours, many, options)
    _print(part)
    return part


def _many(part: Part, ours: object, many: int, options: Options) -> None:
    """Only we: safetensors refuses headers above 100 MB, and the others would take minutes."""
    path = options.folder / "many"
    assert callable(ours)
    try:
        ours("make_entries", count=many, large=1)
        part.add("take, million entries", OURS, ours("save_entries", library=OURS, path=str(path))["seconds"])
        for _ in range(options.rounds):
            ours("settle")
            files.make_warm(path)
            result = ours("read_entries", library=OURS, path=str(path), wanted=["large_0"], reads=20)
            part.add("open + first read, million entries", OURS, result["first"])
            part.add("further reads, million entries", OURS, median(result["further"]))
            part.detail("extra memory, million entries", OURS, result["memory"])
    finally:
        remove(path)


def _print(part: Part) -> None:
    print(f"\n== {part.title}: 1 MiB out of {part.facts['entries']:,} entries; one out of {part.facts['many']:,}")
    rows: list[list[str]] = []
    for operation, series in part.series.items():
        rows.extend(
            [
                operation,
                name,
                "" if name == OURS else report.ratio(series[OURS], seconds),
                report.spread([s * 1000 for s in seconds]),
                str(len(seconds)),
            ]
            for name, seconds in series.items()
        )
    report.print_table("read_object", ["", "library", "ours is faster by", "milliseconds", "n"], rows)
    for note in part.notes:
        print(f"note: {note}")
