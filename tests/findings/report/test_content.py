"""Words and numbers of a report."""

import dataclasses

from lesion_d2.findings import OperatingPoint
from lesion_d2.findings.report.content import (
    mask_runs,
    operating_point_text,
    place_text,
    side_letters,
    table_row,
    viewer_data,
    without_slices,
)

import numpy as np
import pytest


def test_mask_runs_are_its_pixels():
    mask = np.random.default_rng(0).random((15, 19)) < 0.6
    drawn = np.zeros_like(mask)
    runs = np.reshape(mask_runs(mask), (-1, 3))
    for y, first, last in runs:
        assert not drawn[y, first : last + 1].any()
        drawn[y, first : last + 1] = True
    assert (drawn == mask).all()
    # No run could be longer.
    assert len(runs) == (np.diff(mask, axis=1, prepend=False) & mask).sum()
    assert mask_runs(np.zeros((3, 4), bool)) == []


def test_viewer_data_are_the_findings(small_scan, small_findings):
    data = without_slices(viewer_data(small_scan, small_findings), [8, 3])
    assert (data["depth"], data["height"], data["width"]) == small_scan.volume.shape
    assert data["slices"] == [3, 8]
    first = data["findings"][0]
    assert first["box"] == [10, 8, 7, 29, 27, 9]
    assert [one["z"] for one in first["slices"]] == [7, 8, 9]
    assert [one["mask"] is None for one in first["slices"]] == [True, False, True]
    assert first["long"] == {"z": 8, "points": [[19.5, 11], [19.5, 24]], "mm": 12}


def test_row_tells_place_and_size(small_findings):
    row = table_row(small_findings.findings[1], small_findings).replace("\u00a0", " ")
    assert "Slice 4<" in row and "of 3–5<" in row
    # Center (40, 30, 3): -20 + 40 * 0.8 to the left, -30 + 30 * 1.2 back, 100 - 3 * 5 up.
    assert "L 12 P 6 S 85 mm" in row
    assert "voxel 40, 30, 3<" in row
    assert "12.0 × 8.0 mm" in row and "1.2 cm³" in row and ">0.60<" in row
    assert "on the mask" in row
    moved = dataclasses.replace(small_findings.findings[1], key_slice=4)
    row = table_row(moved, small_findings).replace("\u00a0", " ")
    assert "Slice 5<" in row and "S 80 mm" in row and "voxel 40, 30, 4<" in row
    guess = dataclasses.replace(small_findings.findings[1], measured_on="box", volume_mm3=900.2)
    row = table_row(guess, small_findings)
    assert "estimated from the box" in row and "900 mm³" in row


def test_place_names_the_sides():
    text = place_text(np.array([12.4, -3.6, -100.0]))
    assert text.replace("\u00a0", " ") == "L 12 A 4 I 100 mm"


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        (np.diag([1, 1, -1]), ("R", "L", "A")),
        ([[0, 0, 1], [1, 0, 0], [0, -1, 0]], ("A", "P", "S")),  # sagittal
        ([[1, 0, 0], [0, 0.2, 1], [0, -0.98, 0.2]], ("R", "L", "S")),  # coronal, tilted
    ],
)
def test_letters_at_the_edges(direction, letters):
    found = side_letters(np.array(direction, float))
    assert (found["left"], found["right"], found["top"]) == letters


def test_operating_point_says_where_it_is_from():
    assert operating_point_text(OperatingPoint(0.4)) == "score 0.4 or more, as given"
    text = operating_point_text(OperatingPoint(0.41234, 0.5, "volume", "deeplesion_val"))
    assert text == "score 0.412 or more: 0.5 false positives per volume on deeplesion_val"
