"""Results: ratios first, then medians with their range; a table, JSON and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

GIB = 1 << 30


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    print(f"\n{title}", lines[0], "-" * len(lines[0]), *lines[1:], sep="\n", flush=True)


def spread(values: Sequence[float], form: Callable[[float], str] = "{:.2f}".format) -> str:
    """Median and range, as in "1.10 (1.02–1.31)"."""
    if not values:
        return "–"
    if len(values) == 1:
        return form(values[0])
    return f"{form(median(values))} ({form(min(values))}–{form(max(values))})"


def ratio(ours: Sequence[float], other: Sequence[float]) -> str:
    """How many times as long the other took, by the medians."""
    return f"{median(other) / median(ours):.2f} ×" if ours and other else "–"


def mib(size: float) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def _color(name: str) -> str:
    if name == "torchsnapshot":
        return "#d95f02"
    return "#999999" if name.startswith(("fio", "memcpy")) else "#1f78b4"


def plot(results: dict[str, Any], file: Path) -> None:
    """One panel a part and operation: the seconds of each round, by library."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.fonttype"] = "none"  # text as text: small, and it can be searched
    from matplotlib import pyplot

    panels = [
        (f"{part['title']}: {name}", series)
        for part in results["parts"].values()
        for name, series in part["series"].items()
        if any(series.values())
    ]
    if not panels:
        return
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, series) in zip(axes.flat, panels, strict=False):
        names = [name for name, values in series.items() if values]
        medians = [median(series[name]) for name in names]
        errors = [
            [middle - min(series[name]) for name, middle in zip(names, medians, strict=True)],
            [max(series[name]) - middle for name, middle in zip(names, medians, strict=True)],
        ]
        colors = [_color(name) for name in names]
        axis.barh(names, medians, xerr=errors, color=colors, ecolor="#333333", capsize=2)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("seconds, median and range; shorter is better", fontsize=6)
    machine = results["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']} on "
        f"{machine['disk']}, Linux {machine['kernel']}",
        fontsize=8,
    )
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
