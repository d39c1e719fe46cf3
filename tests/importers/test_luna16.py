"""LUNA16, in files that SimpleITK writes."""

import pickle
from pathlib import Path

from lesion_d2.importers.luna16 import list_luna16, sphere_lesion
from lesion_d2.importers.running import run_import

import numpy as np
import pytest
from made_up_scans import make_volume
from round_trip import check_trains_and_evaluates

SimpleITK = pytest.importorskip("SimpleITK")
SHAPE, SPACING = (8, 40, 48), (0.6, 0.8, 2.5)
ORIGIN = (-100.25, -80.5, -310.0)
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
# x, y, z in voxels of the file, diameter in mm; the first two touch.
NODULES = [(20, 18, 3.2, 9.0), (33, 18, 3.2, 7.0), (30, 30.4, 6, 3.5)]
HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def uid(number: int) -> str:
    return f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{100225287222365 + number}"


def write_scan(file: Path, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), compress: bool = False):
    image = SimpleITK.GetImageFromArray(make_volume(SHAPE))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction)
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(file), compress)
    return image


def rows(series: str, image, nodules) -> str:
    lines = []
    for *index, diameter in nodules:
        x, y, z = image.TransformContinuousIndexToPhysicalPoint(index)
        lines.append(f"{series},{x:.6f},{y:.6f},{z:.6f},{diameter}\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def luna(tmp_path_factory):
    """Subsets 0, 1 and 3 of a scan each, the first flipped, the last without a nodule."""
    root = tmp_path_factory.mktemp("luna")
    first = write_scan(root / "subset0" / f"{uid(0)}.mhd", FLIPPED)
    second = write_scan(root / "subset1" / f"{uid(1)}.mhd", compress=True)
    write_scan(root / "subset3" / f"{uid(2)}.mhd")
    (root / "annotations.csv").write_text(
        HEADER
        + rows(uid(0), first, NODULES)
        + rows(uid(1), second, NODULES[2:])
        + f"{uid(77)},1.5,2.5,3.5,4.5\n{uid(77)},1.5,2.5,9.5,4.5\n"
    )
    (root / "candidates.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n{uid(0)},1,2,3,0")
    return root, first


@pytest.fixture(scope="module")
def flipped(luna):
    """The first scan, read as another process does."""
    return pickle.loads(pickle.dumps(list_luna16(luna[0]).cases[0])).read()


@pytest.mark.parametrize("index", range(len(NODULES)))
def test_nodules_lie_where_itk_says(luna, flipped, index):
    volume, image = flipped.volume, luna[1]
    lesion = volume.lesions[index]
    *place, diameter = NODULES[index]
    center = image.TransformContinuousIndexToPhysicalPoint(place)
    x1, y1, z1, x2, y2, z2 = lesion.box
    (found,) = volume.to_patient([np.mean([(x1, y1, z1), (x2, y2, z2)], axis=0)])
    assert np.abs((found - center) / SPACING).max() <= 0.5
    assert lesion.diameters_mm == (diameter, diameter)

    # Voxels of the file whose centers are in the sphere, and the slices' boxes around them.
    voxels = np.argwhere(np.ones(SHAPE))[:, ::-1]
    near = np.abs(voxels - place).max(axis=1) < diameter
    voxels = voxels[near]
    places = [image.TransformIndexToPhysicalPoint(voxel.tolist()) for voxel in voxels]
    inside = np.array(places)[np.linalg.norm(np.subtract(places, center), axis=1) < diameter / 2]
    inside = volume.from_patient(inside)
    for number, box in lesion.boxes.items():
        on_slice = inside[np.abs(inside[:, 2] - number) < 0.01, :2]
        if len(on_slice):
            box = np.array(box)
            assert (on_slice > box[:2] - 1e-6).all() and (on_slice < box[2:] + 1e-6).all()
            assert (np.abs(on_slice.min(axis=0) - box[:2]) < 1).all()
            assert (np.abs(on_slice.max(axis=0) - box[2:]) < 1).all()
    numbers, counts = np.unique(np.rint(inside[:, 2]).astype(int), return_counts=True)
    assert set(numbers[counts > 9]) <= set(lesion.boxes)


def test_it_trains_and_evaluates(luna, tmp_path):
    summary = run_import(list_luna16(luna[0]), tmp_path / "nodules", format="luna16", workers=1)
    assert summary.written and len(summary.volume_set.folds) == 3
    volume_set = check_trains_and_evaluates(tmp_path / "nodules", tmp_path)
    assert [len(volume.lesions) for volume in volume_set.volumes] == [3, 1, 0]
    assert {volume.window for volume in volume_set.volumes} == {(-1350, 150)}


def test_voxels_are_the_files(luna, flipped):
    imported, image = flipped, luna[1]
    for point in [(0, 1, 0), (5, 7, 2), (47, 39, 7)]:
        world = image.TransformIndexToPhysicalPoint(point)
        x, y, z = np.rint(imported.volume.from_patient([world])[0]).astype(int)
        assert imported.voxels[z, y, x] == image[point]


def test_a_scan_without_a_nodule_stays_and_rows_without_a_scan_are_told(luna):
    listing = list_luna16(luna[0])
    assert [case.patient for case in listing.cases] == [uid(0), uid(1), uid(2)]
    assert listing.cases[2].read().volume.lesions == ()
    assert not listing.damaged
    (line,) = listing.left_out
    assert "2 rows of 1 scans that do not exist" in line and uid(77) in line


def test_each_subset_tests_once(luna):
    listing = list_luna16(luna[0])
    a, b, c = (case.patient for case in listing.cases)
    assert listing.folds == (
        {"train": (c,), "val": (b,), "test": (a,)},
        {"train": (a,), "val": (c,), "test": (b,)},
        {"train": (b,), "val": (a,), "test": (c,)},
    )
    assert [case.split for case in listing.cases] == ["test", "val", "train"]


def test_two_subsets_make_no_folds(tmp_path):
    for number in range(2):
        write_scan(tmp_path / f"subset{number}" / f"{uid(number)}.mhd")
    (tmp_path / "CSVFILES").mkdir()
    (tmp_path / "CSVFILES" / "annotations.csv").write_text(HEADER)
    listing = list_luna16(tmp_path)
    assert listing.folds == () and [case.split for case in listing.cases] == [None, None]


def test_excluded_findings_are_ignored(luna, tmp_path):
    root, image = luna
    excluded = tmp_path / "annotations_excluded.csv"
    far = f"{uid(0)},900,900,900,-1\n{uid(78)},1,2,3,-1\n"
    excluded.write_text(HEADER + rows(uid(0), image, [(12, 30, 2, 5.0), (30, 8, 5, -1)]) + far)
    listing = list_luna16(root, excluded=excluded)
    absent = "annotations_excluded.csv: 1 rows of 1 scans that do not exist"
    assert any(line.startswith(absent) for line in listing.left_out)
    imported = listing.cases[0].read()
    lesions = imported.volume.lesions
    assert [lesion.ignore for lesion in lesions] == [False, False, False, True, True]
    assert [lesion.id for lesion in lesions] == [1, 2, 3, 4, 5]
    assert lesions[3].diameters_mm == (5.0, 5.0)
    assert lesions[4].diameters_mm == (10.0, 10.0)
    (line,) = imported.left_out
    assert line.startswith("annotations_excluded.csv, row 4: found a center at 900, 900, 900 mm")


def test_a_sphere_between_two_slices_is_on_one():
    lesion = sphere_lesion(1, np.array([10.0, 10.0, 2.6]), 1.5, (0.5, 0.5, 2.5), (6, 20, 20))
    assert lesion.boxes == {3: pytest.approx((8.5, 8.5, 11.5, 11.5))}
    for diameter in (2.49, 2.500001, 2.51):  # it just reaches the slices, or just does not
        lesion = sphere_lesion(
            1, np.array([10.0, 10.0, 2.5]), diameter, (0.5, 0.5, 2.5), (6, 20, 20)
        )
        assert lesion.boxes == {3: pytest.approx((7.5, 7.5, 12.5, 12.5), abs=0.02)}


def test_a_sphere_is_cut_at_the_sides_of_the_volume():
    lesion = sphere_lesion(1, np.array([0.0, 10.0, -0.4]), 10.0, (1, 1, 1), (6, 20, 20))
    assert lesion.box[0] == -0.5 and lesion.box[2] == 0
    assert lesion.box[3] == pytest.approx(np.sqrt(25 - 0.16))
    assert sphere_lesion(1, np.array([-9.0, 10, 3]), 10.0, (1, 1, 1), (6, 20, 20)) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "no such file, expected the annotations"),
        ("", "found no readable CSV"),
        ("a,b\n1,2\n", "found no column seriesuid, coordX"),
        (HEADER.replace("\n", ",coordX\n"), "found the column 'coordX' 2 times, expected it once"),
        (HEADER + f"{uid(0)},1,2,nan,4\n", "row 2: found '1, 2, nan, 4', expected three"),
        (HEADER + f"\n{uid(0)},1,2,3,0\n\n", "row 3: found '1, 2, 3, 0'"),
        (HEADER + f"{uid(0)},1,2,3\n", "row 2: found '1, 2, 3, '"),
        (HEADER + f"{uid(0)},1,2,3,4,5,6\n", "found rows longer than the header"),
    ],
)
def test_damaged_annotations_are_told_in_one_line(tmp_path, table, message):
    (tmp_path / "subset0").mkdir()
    if table is not None:
        (tmp_path / "annotations.csv").write_text(table)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        list_luna16(tmp_path)
    text = str(error.value)
    assert text.startswith(str(tmp_path / "annotations.csv")) and message in text
    assert "\n" not in text


def test_other_folders_and_damaged_scans_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no folder subset0"):
        list_luna16(tmp_path)
    with pytest.raises(FileNotFoundError, match="away: no such folder, expected the folder"):
        list_luna16(tmp_path / "away")
    file = tmp_path / "subset0" / f"{uid(0)}.mhd"
    write_scan(file)
    (tmp_path / "annotations.csv").write_text(HEADER + f"{uid(0)},900,2,3,4\n")
    with pytest.raises(ValueError, match="row 2: found a center at 900, 2, 3 mm, expected one in"):
        list_luna16(tmp_path).cases[0].read()
    write_scan(tmp_path / "subset4" / file.name)
    write_scan(tmp_path / "subset4" / "lungs.nrrd")
    listing = list_luna16(tmp_path)
    assert len(listing.cases) == 1 and any("lungs.nrrd: found nrrd" in x for x in listing.left_out)
    (line,) = listing.damaged
    assert "subset4" in line and f"found a second file of scan {uid(0)}" in line
    raw = file.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:100])
    listing = list_luna16(tmp_path)
    (line, *_) = listing.damaged
    assert str(file) in line and "truncated" in line and line in listing.left_out
