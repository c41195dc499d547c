"""Integers of any size to and from decimal text.

Python refuses ``int(text)`` and ``str(number)`` above a limit (4300 digits by default), since its own
conversion takes quadratic time. A manifest may hold larger ones, so they are converted here by halves; the
cost stays bounded by the size of the text that was read.
"""

from __future__ import annotations

import re

_SAFE_DIGITS = 600  # below the lowest limit that sys.set_int_max_str_digits accepts
_SAFE_BITS = 1900
_DECIMAL = re.compile(r"[+-]?[0-9]+\Z")


def parse_decimal(text: str) -> int:
    """The integer that `text` (an optional sign, then digits) spells. Raises ValueError for anything else."""
    if not _DECIMAL.match(text):
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise ValueError(f"not a decimal integer: {shown!r}")
    if text[0] in "+-":
        magnitude = _parse(text[1:])
        return -magnitude if text[0] == "-" else magnitude
    return _parse(text)


def format_decimal(value: int) -> str:
    """The canonical decimal text of `value`, as ``str`` gives it for small ones."""
    if value.bit_length() <= _SAFE_BITS:
        return int.__repr__(value)
    sign, magnitude = ("-", -value) if value < 0 else ("", int(value))
    # bit_length * log10(2), rounded up: enough digits for the whole number.
    width = magnitude.bit_length() * 30103 // 100000 + 1
    return sign + _format(magnitude, width).lstrip("0")


def _parse(digits: str) -> int:
    if len(digits) <= _SAFE_DIGITS:
        return int(digits)
    low = len(digits) // 2
    shift: int = 10**low
    return _parse(digits[:-low]) * shift + _parse(digits[-low:])


def _format(value: int, width: int) -> str:
    if width <= _SAFE_DIGITS:
        return int.__repr__(value).zfill(width)
    low = width // 2
    high_part, low_part = divmod(value, 10**low)
    return _format(high_part, width - low) + _format(low_part, low)
