from lesion_d2.importers.task_folders.box_labels import box_lesions, check_box
from lesion_d2.importers.task_folders.images import Values, open_image, volume_of

import numpy as np
import pytest
from made_up_tasks import affine_of, save
from nibabel.affines import apply_affine
from PIL import Image

SHAPE = (20, 16, 9)


def read(file, *entries):
    image = open_image(file)
    volume = volume_of(image, Values(), "a", "a")
    return volume, box_lesions(list(entries), image, volume, first_id=1, source="a.json")


def write(folder, codes="LPS", angle=0.0):
    affine = affine_of(codes, angle, SHAPE)
    return save(folder / "a.nii", np.full(SHAPE, -1000, np.int16), affine), affine


def ras(affine, first, last):
    return {"class": 0, "ras_mm": apply_affine(affine, [first, last]).tolist()}


def test_a_box_is_on_the_slices_whose_centers_it_holds(tmp_path):
    file, affine = write(tmp_path)  # slices from the feet: k of the file is 8 - k of the volume
    cases = {(2.2, 5.9): (3, 5), (3.0, 5.0): (3, 5), (4.1, 4.4): (4, 4), (4.6, 4.9): (5, 5)}
    for (low, high), (first, last) in cases.items():
        _, (lesion,) = read(file, ras(affine, (3.25, 4, low), (8, 6.5, high)))
        assert lesion.box == pytest.approx((3.25, 4, 8 - last, 8, 6.5, 8 - first), abs=1e-5)
        assert lesion.slices == list(range(8 - last, 8 - first + 1))


def test_corners_may_come_in_any_order_and_boxes_are_cut(tmp_path):
    file, affine = write(tmp_path, "SAR", 5)
    first, last = (-3.0, 2.0, 4.0), (6.0, 30.0, 5.0)
    entries = [ras(affine, first, last), ras(affine, last, first)]
    entries.append(ras(affine, (first[0], last[1], first[2]), (last[0], first[1], last[2])))
    volume, lesions = read(file, *entries)
    assert lesions[0].box == pytest.approx(lesions[1].box)
    assert lesions[0].box == pytest.approx(lesions[2].box)
    depth, height, width = volume.shape
    # S of the file is z, A is y and R is x of the volume, each the other way round
    assert (depth, height, width) == SHAPE
    expected = (width - 1 - 5, -0.5, depth - 1 - 6, width - 1 - 4, height - 1 - 2, depth - 1)
    assert lesions[0].box == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"class": 0, "voxels": [[3, 4], [5, 6]]}, "expected three numbers per corner, as"),
        ({"class": 0, "voxels": [[20, 0, 0], [22, 3, 3]]}, "a box outside of the image"),
        ({"class": 0, "lps_mm": [[900, 0, 0], [910, 9, 9]]}, "a box outside of the image"),
        ({"class": 0, "lps_mm": [[10, 2, -3], [10, 9, 0]]}, "expected a box with an area above 0"),
    ],
)
def test_boxes_that_lie_nowhere_are_one_line(tmp_path, entry, message):
    check_box(entry, 1)
    with pytest.raises(ValueError, match=rf"a\.json: boxes, 0: found .*{message}"):
        read(write(tmp_path)[0], entry)


def test_a_picture_has_no_place_in_the_patient(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(file)
    with pytest.raises(ValueError, match="found ras_mm for an image without a position"):
        read(file, {"class": 0, "ras_mm": [[0, 0, 0], [1, 1, 1]]})
    _, (lesion,) = read(file, {"class": 0, "voxels": [[29, 3], [30, 3]]})
    assert lesion.box == (28.5, 2.5, 0, 29.5, 3.5, 0)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"class": 0},
        {"class": True, "voxels": [[0, 0, 0], [1, 1, 1]]},
        {"class": 1, "voxels": [[0, 0, 0], [1, 1, 1]]},
        {"class": 0, "voxels": [[0, 0, 0], [1, 1]]},
        {"class": 0, "voxels": [[0, 0, 0], [1.5, 1, 1]]},
        {"class": 0, "ras_mm": [[0, 0], [1, 1]]},
        {"class": 0, "ras_mm": [[0, 0, 0], [1, 1, float("nan")]]},
        {"class": 0, "ras_mm": [[0, 0, 0], [1, 1, "1"]]},
        {"class": 0, "ras_mm": [[0, 0, 0]]},
        {"class": 0, "ras_mm": [[0, 0, 0], [1, 1, 1]], "lps_mm": [[0, 0, 0], [1, 1, 1]]},
        {"class": 0, "voxels": [[0, 0, 0], [1, 1, 1]], "score": 1},
    ],
)
def test_what_is_no_box_is_refused(entry):
    with pytest.raises(ValueError, match="found ") as error:
        check_box(entry, 1)
    assert "expected" in str(error.value) and "\n" not in str(error.value)
