"""Planning for very many ranks, simulated (scale/scale.cc), and what it would cost on a network.

The network model: every exchange is a tree or a ring of `latency` a step; rank 0 takes in what all send it at
`bandwidth`, however many send (fan-in); a sum costs two trips through a tree.
"""

from __future__ import annotations

import json
import math
import subprocess
from typing import Any

import report
from client import REPOSITORY
from context import Options, Part

PROGRAM = REPOSITORY / "build" / "release" / "benchmarks" / "scale_simulation"
#: ranks, and how many of them are really planned
WORLDS = [(1024, 1024), (10_240, 1280), (102_400, 1600)]
#: name, seconds a step, bytes a second
NETWORKS = [("100 Gbit/s, RDMA", 5e-6, 12.5e9), ("25 Gbit/s, TCP", 50e-6, 3e9)]
PLANNED, AGAIN = "a new plan", "the same plan again"


def run(options: Options) -> Part:
    part = Part("Plans at scale: 405 billion parameters, FSDP 128 x TP 8 x replicas")
    if not PROGRAM.exists():
        part.note("no simulation in this build: configure with -DTORCHSNAPSHOT_BUILD_BENCHMARKS=ON")
        return part
    rows = []
    stalls = []
    for ranks, planned in WORLDS:
        done = subprocess.run([str(PROGRAM), str(ranks), str(planned)], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        part.facts[f"{ranks} ranks"] = found
        part.add(PLANNED, f"rank 0 of {ranks}", found["rank0_seconds"])
        part.add(PLANNED, f"another of {ranks}", found["other_median_seconds"])
        part.add(AGAIN, f"rank 0 of {ranks}", found["rank0_again_seconds"])
        part.add(AGAIN, f"another of {ranks}", found["again_median_seconds"])
        rows.append(_row(found))
        for name, latency, bandwidth in NETWORKS:
            first, again = predicted_stall(found, latency, bandwidth)
            part.detail("predicted stall", f"{ranks} ranks, {name}, {PLANNED}", first)
            part.detail("predicted stall", f"{ranks} ranks, {name}, {AGAIN}", again)
            stalls.append([f"{ranks:,} ranks, {name}", f"{first * 1e3:.1f}", f"{again * 1e3:.1f}"])
    header = [
        "ranks (planned)",
        "rank 0, ms",
        "others, ms (most)",
        "again, ms",
        "sent by a rank, B",
        "again, B",
        "forms",
        "rank 0 takes in, MB",
        "merge, s",
        "view, s",
        "peak, GiB",
    ]
    report.print_table(part.title, header, rows)
    report.print_table("Predicted stall, ms", ["", PLANNED, AGAIN], stalls)
    return part


def _row(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['ranks']:,.0f} ({found['planned_ranks']:,.0f})",
        f"{found['rank0_seconds'] * 1e3:.1f}",
        f"{found['other_median_seconds'] * 1e3:.1f} ({found['other_most_seconds'] * 1e3:.1f})",
        f"{found['again_median_seconds'] * 1e3:.1f}",
        f"{found['greeting_bytes'] + found['notice_bytes'] + found['longest_rest_bytes']:,.0f}",
        f"{found['greeting_bytes']:,.0f}",
        f"{found['forms']:,.0f}",
        f"{taken_in(found) / 1e6:.1f}",
        f"{found['merge_seconds']:.1f}" if "merge_seconds" in found else "–",
        f"{found['rank_view_most_seconds']:.2f}" if "rank_view_most_seconds" in found else "–",
        f"{found['peak_gib']:.1f}",
    ]


def taken_in(found: dict[str, Any]) -> float:
    """Bytes that rank 0 receives for a new plan."""
    return float(found["ranks"] * found["notice_bytes"] + found["all_rest_bytes"] + found["form_bytes"])


def predicted_stall(found: dict[str, Any], latency: float, bandwidth: float) -> tuple[float, float]:
    """Seconds in which the foreground waits for a new plan, and for the same again. Without state_dict()."""
    steps = math.ceil(math.log2(found["ranks"]))
    own, own_again = found["other_most_seconds"], found["again_most_seconds"]
    path = steps * latency
    sums = 2 * steps * (latency + found["greeting_bytes"] / bandwidth)
    call = steps * (latency + found["call_bytes"] / bandwidth)
    gathers = 2 * steps * latency + found["form_senders"] * latency + taken_in(found) / bandwidth
    rank0 = max(0.0, found["rank0_seconds"] - found["rank0_own_seconds"])
    return own + path + sums + call + gathers + rank0, own_again + path + sums
