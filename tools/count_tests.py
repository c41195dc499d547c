#!/usr/bin/env python3
"""Adds up the tests in the XML results of gtest and pytest, as the last lines of a test run.

Usage: count_tests.py FOLDER...: reads FOLDER/cpp-*.xml and FOLDER/python*.xml.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path


def count(path: Path) -> Counter[str]:
    """Passed, failed and skipped cases of one file (gtest and pytest write the same elements)."""
    result: Counter[str] = Counter()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            result["failed"] += 1
        elif case.find("skipped") is not None or case.get("status") == "notrun":
            result["skipped"] += 1
        else:
            result["passed"] += 1
    return result


def line(label: str, counts: Counter[str]) -> str:
    return f"{label}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"


def main() -> int:
    total: Counter[str] = Counter()
    for label, pattern in (("C++", "cpp-*.xml"), ("Python", "python*.xml")):
        counts: Counter[str] = Counter()
        for folder in sys.argv[1:]:
            for path in sorted(Path(folder).glob(pattern)):
                counts += count(path)
        print(line(label, counts))
        total += counts
    print(line("total", total))
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
