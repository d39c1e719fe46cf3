import collections
import re

from lesion_d2.data.formats.problems import raise_problems, short_repr

import numpy as np
import pytest


def test_one_problem_is_one_line_and_twenty_of_many_are_shown():
    raise_problems("a.csv", [])
    with pytest.raises(ValueError, match=r"^a\.csv: found 3$"):
        raise_problems("a.csv", ["found 3"], "1 bad cell")
    problems = [f"found {i}" for i in range(21)]
    for counted, text in ((None, "21 problems"), ("21 bad cells", "21 bad cells")):
        with pytest.raises(ValueError) as error:
            raise_problems("a.csv", problems, counted)
        assert str(error.value).split("\n  ") == [f"a.csv: {text}, the first 20", *problems[:20]]
    with pytest.raises(ValueError, match=r"^a\.csv: 20 problems\n"):
        raise_problems("a.csv", problems[:20])


@pytest.mark.parametrize(
    "value, text",
    [
        ([1, 2.5, None], "[1, 2.5, None]"),
        ("a\nb", r"'a\nb'"),
        (np.array([[1], [2]]), "array([[1], [2]])"),
        (collections.OrderedDict(a=1), "{'a': 1}"),
        ([10**5000], "[<integer of 16610 bits>]"),
        (np.array([[], None], object), "<ndarray of objects, shape (2,)>"),
    ],
)
def test_short_values_are_as_python_writes_them(value, text):
    assert short_repr(value) == text


def test_endless_values_are_cut_before_they_are_written():
    deep, wide = [0], (0,)
    for _ in range(100_000):
        deep = [deep]
    for _ in range(100):
        wide = (wide, wide)
    values = [deep, wide, {1: deep, "a": wide}, collections.defaultdict(list, a=wide)]
    array = np.empty(2, object)
    array[0] = wide  # NumPy would look into all of it to make an array of it
    values += [array, np.zeros(10**6), "x" * 10**6, list(range(10**6))]
    for value in values:
        text = short_repr(value)
        assert len(text) <= 60 and re.search(r"\.\.\.|objects", text) and "\n" not in text
