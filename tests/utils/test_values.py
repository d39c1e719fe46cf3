from lesion_d2.utils.values import (
    are_digits,
    are_numbers,
    field_problems,
    is_name,
    is_number,
    is_size,
    is_text,
    is_whole,
)

import numpy as np
import pytest

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "value", [None, True, "1", [1], {}, NAN, INFINITY, -INFINITY, 1e29, 10**400]
)
def test_what_is_no_number(value):
    assert not is_number(value) and not is_whole(value)
    assert not are_numbers([0, value], 2) and not is_size([5, value])


def test_what_counts_as_a_number():
    assert is_number(-1.5) and is_number(np.float32(2)) and is_number(10**9)
    assert not is_number(10**9 + 1) and is_number(10**9 + 1, most=1e10)
    assert is_whole(-3) and is_whole(900_100_581_904) and not is_whole(3.0)
    assert are_numbers((1, 2.5), 2) and not are_numbers([1], 2) and not are_numbers("12", 2)
    assert is_size([1, 8192]) and not is_size([0, 5]) and not is_size([8193, 5])


def test_what_counts_as_a_text_or_a_name():
    assert is_text("a b") and is_name("a") and is_name(5)
    for value in ("", "  ", "a\nb", "\ud800", "x" * 1001, None, ["a"]):
        assert not is_text(value) and not is_name(value)


def test_digits_are_those_of_ascii():
    assert are_digits("007") and are_digits("123456789")
    for text in ("", "-1", "1.0", "٣", "१२", "³", "1" * 10, "1" * 5000, " 1"):
        assert not are_digits(text)


def test_problems_of_an_object_name_the_key():
    fields = {"a": (is_number, "a number"), "b": (is_text, "a name")}
    assert list(field_problems({"a": 1, "b": "x", "c": None}, fields)) == []
    assert list(field_problems({"a": "1"}, fields)) == [
        "a: found '1', expected a number",
        "found no 'b', expected a name",
    ]
    assert list(field_problems([1], fields)) == ["found [1], expected an object with a, b"]
