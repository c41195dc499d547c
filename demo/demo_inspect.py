"""Runs the C++ program on a snapshot, and compares what it says of a tensor with what Python knew before the take."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from table import print_table

# Both sum in more than single precision, but in another order.
MEAN_TOLERANCE = 1e-12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--expected", type=Path, required=True, help="gpt2.json of the part that took the snapshot")
    args = parser.parse_args()

    expected = json.loads(args.expected.read_text())["inspected"]
    command = [str(args.program), str(args.snapshot), expected["path"]]
    print(f"$ inspect {args.snapshot} {expected['path']}", flush=True)
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(run.stdout)
    if run.returncode != 0:
        print(f"FAILED: {args.program} ended with status {run.returncode}", file=sys.stderr)
        return 1

    found = dict(line.split() for line in run.stdout.splitlines() if line.startswith(("mean ", "min ", "max ")))
    scale = max(abs(expected["min"]), abs(expected["max"]))
    agrees = {
        "mean": abs(float(found["mean"]) - expected["mean"]) <= MEAN_TOLERANCE * scale,
        "min": float(found["min"]) == expected["min"],
        "max": float(found["max"]) == expected["max"],
    }
    rows = [
        [name, f"{float(found[name]):.17g}", f"{expected[name]:.17g}", "equal" if equal else "DIFFERENT"]
        for name, equal in agrees.items()
    ]
    print_table([expected["path"], "C++, from the snapshot", "Python, before the take", ""], rows)
    print(f"(the mean to {MEAN_TOLERANCE:g} of the largest element, as the order of summation differs)")
    if not all(agrees.values()):
        print("FAILED: C++ and Python differ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
