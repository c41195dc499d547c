"""Integers of any size as text."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchsnapshot._decimal_text import format_decimal, parse_decimal


@given(st.integers())
def test_small_ones_as_python_has_them(value: int) -> None:
    assert format_decimal(value) == str(value)
    assert parse_decimal(str(value)) == value


def test_random_sizes_come_back() -> None:
    rng = random.Random(7)
    for _ in range(300):
        value = rng.getrandbits(rng.randint(1, 60_000)) * rng.choice([1, -1])
        assert parse_decimal(format_decimal(value)) == value


@pytest.mark.parametrize("digits", [599, 600, 601, 1200, 4299, 4300, 4301, 100_000])
def test_powers_of_ten_have_the_right_digits(digits: int) -> None:
    assert format_decimal(10**digits) == "1" + "0" * digits
    assert format_decimal(10**digits - 1) == "9" * digits
    assert format_decimal(-(10**digits)) == "-1" + "0" * digits
    assert parse_decimal("0" * digits + "5") == 5


@pytest.mark.parametrize(
    "text", ["", "-", "+", " 1", "1 ", "1_0", "0x1", "1.0", "--1", "1\n", "१", "nan", "-" + "9" * 99 + "x"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a decimal integer"):
        parse_decimal(text)


def test_a_bool_is_its_number() -> None:
    assert format_decimal(True) == "1"
