#!/usr/bin/env python3
"""Compares the generated stub of the extension with the one that is kept in the package.

Usage: compare_stub.py GENERATED KEPT. Exit status 1, and a diff, if they differ.
"""

import difflib
import sys
from pathlib import Path


def main(generated: str, kept: str) -> int:
    new = Path(generated).read_text(encoding="utf-8").splitlines()
    old = Path(kept).read_text(encoding="utf-8").splitlines() if Path(kept).exists() else []
    if new == old:
        return 0
    print("\n".join(difflib.unified_diff(old, new, kept, generated, lineterm="")))
    print("\nThe interface of the extension changed. If that is meant: make stubs, and commit the result.")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
