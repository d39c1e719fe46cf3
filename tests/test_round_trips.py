"""What goes out and comes back is what it was, whatever it is: hypothesis draws it."""

import json
import math

from lesion_d2.data.deeplesion.annotation_files import (
    VolumeLesion,
    read_annotations,
    write_annotations,
)
from lesion_d2.data.deeplesion.volume_names import VolumeName
from lesion_d2.data.transforms.augmentation import AffineTransform, ResizeTransform
from lesion_d2.scans.orientation import canonical_turn
from lesion_d2.structures.boxes import moved_xywh, xyxy_box
from lesion_d2.structures.cropping import image_to_slice, slice_to_image
from lesion_d2.structures.rle import check_mask, decode_mask, encode_mask

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# The same few examples in every run: a draw that fails is no other one's on the next machine.
few = settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sizes = st.integers(1, 40)
pixels = st.floats(-1000, 1000, allow_nan=False)
points = st.lists(st.tuples(pixels, pixels), min_size=1, max_size=5).map(np.array)


@st.composite
def masks(draw) -> np.ndarray:
    height, width, seed = draw(sizes), draw(sizes), draw(st.integers(0, 2**16))
    share = draw(st.sampled_from((0.0, 0.02, 0.5, 0.98, 1.0)))
    return np.random.default_rng(seed).random((height, width)) < share


@st.composite
def volumes(draw) -> dict[VolumeName, list[VolumeLesion]]:
    numbers = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=3, unique=True))
    found = {}
    for patient in numbers:
        first, length = draw(st.integers(0, 999)), draw(st.integers(0, 60))
        digits = draw(st.integers(1, 6))
        text = (
            f"{patient:0{digits}}_01_{draw(st.integers(0, 99)):02}_{first:03}-{first + length:03}"
        )
        lesions = draw(st.lists(lesions_of(first, first + length), max_size=3))
        found[VolumeName.parse(text)] = lesions
    return found


@st.composite
def lesions_of(draw, first: int, last: int) -> VolumeLesion:
    low, high = sorted(draw(st.tuples(*[st.integers(first, last)] * 2)))
    x, y = draw(st.tuples(pixels, pixels))
    width, height = draw(st.tuples(*[st.floats(0.01, 500)] * 2))
    key = draw(st.none() | st.integers(low, high))
    return VolumeLesion((x, y, x + width, y + height), low, high, key)


@few
@given(masks())
def test_masks_and_their_run_lengths(mask):
    rle = encode_mask(mask)
    assert json.loads(json.dumps(rle)) == rle
    decoded = decode_mask(rle)
    assert decoded.dtype == bool and np.array_equal(decoded, mask)
    assert check_mask(rle)[1] == mask.sum()


@few
@given(masks(), st.data())
def test_run_lengths_that_end_early_are_never_a_mask(mask, data):
    rle = encode_mask(mask)
    end = data.draw(st.integers(0, len(rle["counts"]) - 1))
    with pytest.raises(ValueError, match="RLE"):
        decode_mask({**rle, "counts": rle["counts"][:end]})


@few
@given(volumes())
def test_annotations_and_their_json(tmp_path, lesions):
    write_annotations(tmp_path / "volumes.json", lesions)
    assert read_annotations(tmp_path / "volumes.json") == lesions


@few
@given(
    st.lists(st.integers(0, 10**9 - 1), min_size=3, max_size=3),
    st.tuples(st.integers(0, 10**6), st.integers(0, 19_999)).map(lambda ends: [ends[0], sum(ends)]),
    st.integers(1, 9),
    st.sampled_from(("", ".nii", ".nii.gz", ".annot")),
)
def test_names_of_volumes(parts, ends, digits, ending):
    text = (
        "_".join(f"{n:0{digits}}" for n in parts) + "_" + "-".join(f"{n:0{digits}}" for n in ends)
    )
    name = VolumeName.parse(text + ending)
    assert (name.patient, name.study, name.series_number) == tuple(parts)
    assert [name.first, name.last] == ends and str(name) == text
    assert VolumeName.parse(str(name)) == name


@few
@given(
    points,
    st.floats(0, 2 * math.pi),
    st.tuples(*[st.floats(0.3, 3)] * 2),
    st.tuples(pixels, pixels),
)
def test_affine_transforms_of_points_and_their_inverse(coords, angle, scale, move):
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    matrix = np.column_stack([turn @ np.diag(scale), move])
    transform = AffineTransform(matrix, 20, 30)
    back = transform.inverse().apply_coords(transform.apply_coords(coords))
    np.testing.assert_allclose(back, coords, atol=1e-6)


@few
@given(
    points, st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.tuples(*[st.integers(0, 99)] * 2)
)
def test_resized_and_cropped_points_and_their_inverse(coords, size, new_size, corner):
    transform = ResizeTransform(*size, *new_size)
    back = transform.inverse().apply_coords(transform.apply_coords(coords))
    np.testing.assert_allclose(back, coords, atol=1e-6)
    extent = (*corner, corner[0] + size[1], corner[1] + size[0])
    shown = slice_to_image(coords, extent, new_size)
    # The same by a transform of Detectron2's coordinates, in which a pixel's center is at a half.
    expected = transform.apply_coords(coords + 0.5 - corner) - 0.5
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    np.testing.assert_allclose(image_to_slice(shown, extent, new_size), coords, atol=1e-6)


@few
@given(st.tuples(*[st.integers(-2000, 2000)] * 4), st.sampled_from((0.0, 1.0, -0.5)))
def test_boxes_in_files_and_in_dicts(box, offset):
    x, y, width, height = (value / 4 for value in box)
    there = moved_xywh([x, y, width, height], offset)
    assert moved_xywh(there, -offset) == [x, y, width, height]
    as_corners = xyxy_box({"bbox": [x, y, width, height], "bbox_mode": BoxMode.XYWH_ABS})
    again = xyxy_box({"bbox": as_corners, "bbox_mode": BoxMode.XYXY_ABS})
    assert again == as_corners == [x, y, x + width, y + height]


@few
@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
)
def test_volumes_turned_to_one_orientation_and_back(axes, signs, shape):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, axes]
    turn = canonical_turn(affine)
    array = np.arange(np.prod(shape)).reshape(shape)
    turned = turn.apply(array)
    assert sorted(turned.shape) == sorted(shape)
    assert np.array_equal(turn.undo(turned), array)
