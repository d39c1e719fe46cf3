"""What a training and a data check both look for in dicts."""

from lesion_d2.data.dict_rules import (
    KEYS,
    annotation_problems,
    has_numbers,
    image_problems,
    number_problems,
)

import numpy as np
import pytest

IMAGE = {
    "file_name": "a.png",
    "image_id": 7,
    "height": np.int64(4),
    "width": 5,
    "spacing": None,
    "slice_range": np.array([0, 3]),
    "annotations": [],
    "patient": "p1",
}


def test_a_right_image_has_no_problem():
    assert not list(image_problems(IMAGE))
    assert not list(image_problems({**IMAGE, "slice_range": None}))
    assert len(list(image_problems({}))) == len(KEYS)


@pytest.mark.parametrize(
    "key, value", [("height", 0), ("width", 5.0), ("slice_range", (1,)), ("patient", {"id": 1})]
)
def test_a_wrong_value_is_one_line(key, value):
    (problem,) = image_problems({**IMAGE, key: value})
    assert problem.startswith(f"found {key} ") and ", expected " in problem


@pytest.mark.parametrize("value", [0, 1, True, np.int64(1), np.True_, 1.0])
def test_iscrowd_is_0_or_1(value):
    assert not list(annotation_problems({"iscrowd": value}))


@pytest.mark.parametrize("value", [2, None, "1", [1], np.array([1, 0]), float("nan")])
def test_other_iscrowd_is_wrong(value):
    (problem,) = annotation_problems({"iscrowd": value})
    assert problem.startswith("found iscrowd ")


@pytest.mark.parametrize("value", [None, 5, [1.0], [1, float("nan")], ["a", "b"], [[1], [2, 3]]])
def test_numbers_that_are_none(value):
    annotation = {"diameters_mm": value}
    assert not has_numbers(annotation, "diameters_mm")
    assert len(list(number_problems(annotation, ["recist", "diameters_mm"]))) == 1
    assert not list(number_problems({"diameters_mm": (9, np.float32(4))}, ["diameters_mm"]))
