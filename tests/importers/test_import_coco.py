"""COCO JSON, its pictures by Pillow and its volumes by nibabel."""

import argparse
import json
import pickle
from pathlib import Path

from lesion_d2.data.coco.writing import write_coco
from lesion_d2.data.volume_set.voxels import read_voxels
from lesion_d2.importers.coco import add_arguments, list_cases, list_coco
from lesion_d2.importers.running import run_import
from lesion_d2.structures.rle import decode_mask, encode_mask

import nibabel
import numpy as np
import pytest
from made_up_coco import (
    HEIGHT,
    WIDTH,
    annotation_entry,
    coco_content,
    hu_image,
    image_entry,
    write_coco_file,
    write_png16,
)
from round_trip import check_trains_and_evaluates, registered

LIVER = Path(__file__).parents[3] / "shared" / "data" / "liver_slices"
DEPTH = 5
# Of the file's array: oblique by 6 degrees, columns to Right or Left, rows to Posterior, slices up.
TILT = np.array([[0.995, -0.1, 0], [0.1, 0.995, 0], [0, 0, 1]])
AFFINES = {
    "as_nibabel": np.diag([0.7, 0.9, 2.5]),
    "flipped": np.diag([-0.7, -0.9, -2.5]),
    "oblique": TILT @ np.diag([0.7, -0.9, 2.5]),
    "columns_to_posterior": np.array([[0, 0.9, 0], [-0.7, 0, 0], [0, 0, 2.5]]),
}


def masks_of_lesions() -> list[dict[int, np.ndarray]]:
    """Two that touch, the first on slices 1 to 3; by slice, (HEIGHT, WIDTH) as stored."""
    first, second = {}, {}
    for k in (1, 2, 3):
        first[k] = np.zeros((HEIGHT, WIDTH), bool)
        first[k][4 + k : 9, 5:12] = True
    second[3] = np.zeros((HEIGHT, WIDTH), bool)
    second[3][9:12, 8:20] = second[3][10:15, 18:20] = True
    return [first, second]


def mask_box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    size = [int(n[-1] - n[0] + 1) for n in (columns, rows)]
    return [int(columns[0]), int(rows[0]), *size]


def write_volumes(folder: Path, affine: np.ndarray) -> tuple[Path, np.ndarray]:
    """One with two lesions and a region to be ignored, one without; and the 4 x 4 affine."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = affine, (-90, 80, -300)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        volume = np.stack([hu_image(n) for n in range(DEPTH)])
        nibabel.save(nibabel.Nifti1Image(volume.T, matrix), folder / f"{name}.nii.gz")
    images = [image_entry(1 + k, f"a.nii.gz#{k}", patient="p") for k in range(DEPTH)]
    images.append(image_entry(20, "b.nii.gz#2"))
    annotations = [
        annotation_entry(
            10 * n + k, 1 + k, mask_box(mask), 1 + n, segmentation=encode_mask(mask), lesion_id=n
        )
        for n, masks in enumerate(masks_of_lesions(), 1)
        for k, mask in masks.items()
    ]
    annotations.append(annotation_entry(1, 5, [1, 2, 3, 4], 2, iscrowd=1))
    content = coco_content(images, annotations, [(2, "nodule"), (3, "cyst")])
    return write_coco_file(folder, content), matrix


@pytest.mark.parametrize("name", AFFINES)
def test_lesions_of_volumes_lie_where_nibabel_says(tmp_path, name):
    file, matrix = write_volumes(tmp_path, AFFINES[name])
    listing = list_coco(file)
    assert listing.classes == ("nodule", "cyst") and not listing.left_out
    assert [(case.name, case.patient) for case in listing.cases] == [("a", "p"), ("b", "b")]
    imported = pickle.loads(pickle.dumps(listing.cases[0])).read()
    volume, voxels = imported.volume, imported.voxels
    data = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    assert voxels.shape == volume.shape and volume.shape[0] == DEPTH and imported.left_out == ()
    assert [lesion.ignore for lesion in volume.lesions] == [False, False, True]
    for lesion, masks in zip(volume.lesions, masks_of_lesions(), strict=False):
        assert lesion.category == (0 if len(masks) == 3 else 1)
        expected = [(x, y, k) for k, mask in masks.items() for y, x in np.argwhere(mask)]
        ras = nibabel.affines.apply_affine(matrix, expected)
        found = []
        for z, counts in lesion.masks.items():
            rows, columns = np.nonzero(decode_mask({"size": volume.shape[1:], "counts": counts}))
            found += [(x, y, z) for y, x in zip(rows, columns, strict=True)]
            assert lesion.box_on(z) == (
                columns.min() - 0.5,
                rows.min() - 0.5,
                columns.max() + 0.5,
                rows.max() + 0.5,
            )
        patient = volume.to_patient(found) * (-1, -1, 1)
        order = [np.lexsort(np.round(points, 3).T) for points in (ras, patient)]
        np.testing.assert_allclose(patient[order[1]], ras[order[0]], atol=1e-3)
        values = sorted(data[tuple(np.transpose(expected))])
        assert sorted(voxels[z, y, x] for x, y, z in found) == values
        zs = sorted(lesion.masks)
        assert (lesion.box[2], lesion.box[5]) == (zs[0], zs[-1]) and lesion.slices == zs


def test_slices_that_are_no_images_are_told_of(tmp_path):
    file, _ = write_volumes(tmp_path, AFFINES["flipped"])
    empty = list_coco(file).cases[1].read()
    assert empty.volume.lesions == () and empty.volume.shape == (DEPTH, HEIGHT, WIDTH)
    assert empty.left_out == (
        "b: 4 of 5 slices are not in the JSON; they are imported without lesions",
    )


def test_slices_across_the_body_only(tmp_path):
    file, _ = write_volumes(tmp_path, np.array([[0, 0, 2.5], [0.7, 0, 0], [0, 0.9, 0]]))
    listing = list_coco(file)
    assert listing.cases == () and len(listing.damaged) == 2
    assert "a.nii.gz: found axial slices along axis 1 of the array, expected" in listing.damaged[0]


def test_a_data_set_trains_evaluates_and_comes_back_from_an_export(tmp_path):
    file, _ = write_volumes(tmp_path / "source", AFFINES["oblique"])
    root = tmp_path / "made_of_coco"
    assert run_import(list_coco(file), root, format="coco", workers=1).written
    volume_set = check_trains_and_evaluates(root, tmp_path)
    with registered(root):
        name = f"{root.name}_volumes"
        written = write_coco(name, tmp_path / "out", images="png16", workers=1)
    again = {case.name: case.read() for case in list_coco(written.file).cases}
    assert list(again) == ["a", "b"]
    for volume in volume_set.volumes:
        imported = again[volume.name]
        assert (imported.voxels == read_voxels(root / volume.image)).all()
        assert imported.volume.spacing == volume.spacing
        lesions = (sorted(v.lesions, key=lambda le: le.box) for v in (volume, imported.volume))
        for ours, theirs in zip(*lesions, strict=True):
            assert theirs.box == pytest.approx(ours.box, abs=1e-5) and theirs.masks == ours.masks
            assert (theirs.category, theirs.ignore) == (ours.category, ours.ignore)
            for z in ours.slices:
                assert theirs.box_on(z) == pytest.approx(ours.box_on(z), abs=1e-5)


# --- pictures -------------------------------------------------------------------------------------


def write_pictures(folder: Path, images: list[dict], annotations=()) -> Path:
    for number, image in enumerate(images):
        write_png16(folder / image["file_name"], hu_image(number))
    return write_coco_file(folder, coco_content(images, list(annotations)))


def test_pictures_of_a_volume_by_their_keys(tmp_path):
    numbers = (7, 5, 6, 9)
    images = [
        image_entry(n, f"img/{n}.png", volume="ct 1", slice=n, spacing=[1, 1, 5], window=[0, 80])
        for n in numbers
    ]
    images.append(image_entry(1, "img/sub/x.png"))
    annotations = [
        annotation_entry(1, 5, [4, 5, 10, 8], lesion_id="l", recist=[5, 6, 9, 6, 7, 5, 7, 8]),
        annotation_entry(2, 6, [3, 6, 10, 8], lesion_id="l", diameters_mm=[9, 4]),
        annotation_entry(3, 6, [20, 6, 4, 4]),
        annotation_entry(4, 9, [3, 6, 10, 8], lesion_id="l"),
    ]
    listing = list_coco(write_pictures(tmp_path, images, annotations), hu_offset=32768)
    assert [case.name for case in listing.cases] == ["ct_1_5-7", "ct_1_9-9", "sub_x"]
    assert [case.patient for case in listing.cases] == ["ct_1", "ct_1", "sub_x"]  # no split apart
    imported = listing.cases[0].read()
    assert (imported.voxels == np.stack([hu_image(k) for k in (1, 2, 0)])).all()
    volume = imported.volume
    assert (volume.spacing, volume.origin, volume.window) == ((1, 1, 5), None, (0, 80))
    first, second = volume.lesions
    assert first.box == (2.5, 4.5, 0, 13.5, 13.5, 1) and first.slices == [0, 1]
    assert first.box_on(0) == (3.5, 4.5, 13.5, 12.5) and first.box_on(1) == (2.5, 5.5, 12.5, 13.5)
    assert first.recist == {0: (4.5, 5.5, 8.5, 5.5, 6.5, 4.5, 6.5, 7.5)}
    assert first.diameters_mm == (9, 4) and first.masks is None
    assert second.box == (19.5, 5.5, 1, 23.5, 9.5, 1) and second.attributes == {"annotation": 3}
    single = listing.cases[2].read().volume
    assert single.shape == (1, HEIGHT, WIDTH) and single.spacing is None


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(words))


def test_command_line_with_splits_groups_and_patients(tmp_path):
    def entries(patient, count):
        return [image_entry(k, f"{patient}_ct_{k:03d}.png") for k in range(count)]

    write_pictures(tmp_path / "train", [*entries("p1", 2), image_entry(9, "p2_other.png")])
    write_pictures(tmp_path / "val", entries("p3", 3))
    args = arguments(
        *(f"{split}={tmp_path / split / 'coco.json'}" for split in ("train", "val")),
        *("--hu-offset", "32768", "--patient", r"^(p\d)_", "--group-by", r"(.*)_(\d+)\.png"),
        *("--spacing", "1", "1", "2"),
    )
    listing = list_cases(args)
    found = [(case.name, case.patient, case.split) for case in listing.cases]
    assert found == [("p1_ct", "p1", "train"), ("p2_other", "p2", "train"), ("p3_ct", "p3", "val")]
    assert listing.cases[2].read().voxels.shape == (3, HEIGHT, WIDTH)
    assert str(tmp_path) not in json.dumps(listing.options)
    summary = run_import(listing, tmp_path / "set_of_coco", format="coco", workers=1)
    assert summary.written and [v.name for v in summary.volume_set.volumes] == [f[0] for f in found]
    assert summary.volume_set.splits["val"] == ("p3",)


def test_a_volume_is_in_one_split(tmp_path):
    """Slices of one file in two JSON files are refused, pictures of one name are two."""
    file, _ = write_volumes(tmp_path, AFFINES["flipped"])
    content = json.loads(file.read_text())
    content["images"] = [image_entry(1, "b.nii.gz#4")]
    content["annotations"] = []
    other = write_coco_file(tmp_path, content, "other.json")
    with pytest.raises(ValueError, match=r"b\.nii\.gz: found its slices in .*coco\.json and"):
        list_coco({"train": file, "val": other})
    files = {s: write_pictures(tmp_path / s, [image_entry(1, "x.png")]) for s in ("train", "val")}
    listing = list_coco(files, hu_offset=0)
    assert [(case.name, case.patient) for case in listing.cases] == [("x", "x"), ("x_2", "x_2")]


def test_names_of_files_in_two_folders_differ(tmp_path):
    images = [image_entry(1, "a/x.png"), image_entry(2, "b/x.png"), image_entry(3, "b/x.y.png")]
    listing = list_coco(write_pictures(tmp_path, images), hu_offset=0)
    assert [case.name for case in listing.cases] == ["a_x", "b_x", "b_x.y"]


@pytest.mark.skipif(not LIVER.is_dir(), reason="no real slices beside the project")
def test_real_slices_are_listed_and_read():
    listing = list_coco(LIVER / "annotations.json", hu_offset=32768, patient=r"/(\d+)_")
    assert len(listing.cases) == 24 and len({case.patient for case in listing.cases}) == 11
    volume = listing.cases[0].read().volume
    assert (volume.name, volume.shape, volume.spacing) == ("000016_02_01_253", (1, 512, 512), None)
    [lesion] = volume.lesions
    assert lesion.box == (257.5, 189.5, 0, 289.5, 218.5, 0) and lesion.masks is None


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"spacing": [1, 1, 2]},
            "v: spacing: found .* in image 2, expected None as in image 1",
        ),
        ({"patient": "x"}, "v: patient: found 'x' in image 2, expected None as in image 1"),
        ({"height": 20}, "v: found 32 x 20 pixels in image 2, expected 32 x 24 as in image 1"),
        ({"hu_window": [0, 1]}, None),
    ],
)
def test_images_that_are_no_volume(tmp_path, second, message):
    images = [image_entry(n, f"{n}.png", volume="v", slice=n) for n in (1, 2)]
    images[1] |= second
    listing = list_coco(write_pictures(tmp_path, images), hu_offset=32768)
    if message is None:
        assert not listing.damaged
    else:
        assert listing.cases == () and len(listing.damaged) == 1
        with pytest.raises(ValueError, match=message):
            raise ValueError(listing.damaged[0])


def test_a_missing_picture_is_damage(tmp_path):
    file = write_pictures(tmp_path, [image_entry(1, "a.png"), image_entry(2, "b.png")])
    (tmp_path / "b.png").unlink()
    listing = list_coco(file, hu_offset=32768)
    assert [case.name for case in listing.cases] == ["a"]
    assert listing.damaged == (f"b.png: {tmp_path / 'b.png'}: no such picture",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_id": 2},
            "annotation 2: found the lesion 1 of annotation 1 again with another cat",
        ),
        ({}, "annotation 2: found the lesion 1 of annotation 1 again on the same slice"),
    ],
)
def test_annotations_that_are_no_lesion(tmp_path, changes, message):
    images = [image_entry(n, f"{n}.png", volume="v", slice=n) for n in (1, 2)]
    other = annotation_entry(2, 1, [1, 1, 4, 4], lesion_id=1, iscrowd=1)
    annotations = [annotation_entry(1, 1, [1, 1, 4, 4], lesion_id=1), {**other, **changes}]
    [case] = list_coco(write_pictures(tmp_path, images, annotations), hu_offset=0).cases
    with pytest.raises(ValueError, match=message):
        case.read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_by": "("}, r"group_by: found '\(', expected a regular expression"),
        ({"group_by": "(a)"}, r"group_by: found '\(a\)', expected two groups"),
        (
            {"group_by": "(.)/(a)"},
            "image 1: found the volume 'b' and the slice 'a' by group_by, exp",
        ),
        (
            {"group_by": "(b)/.(1)"},
            "image 2: found slice 1 of 'b' as in image 1, expected each slice once",
        ),
        ({"image_root": "nowhere"}, "nowhere: no such folder of images"),
    ],
)
def test_invalid_options_are_refused(tmp_path, options, message):
    file = write_pictures(tmp_path, [image_entry(1, "b/a1.png"), image_entry(2, "b/b1.png")])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list_coco(file, hu_offset=0, **options)


def test_files_of_other_categories_or_splits_are_refused(tmp_path):
    first = write_pictures(tmp_path / "a", [image_entry(1, "a.png")])
    content = coco_content([image_entry(1, "a.png")], [], [(1, "other")])
    second = write_coco_file(tmp_path / "b", content)
    with pytest.raises(ValueError, match=rf"{second}: categories: found .* those of {first}"):
        list_coco({"train": first, "val": second}, hu_offset=0)
    with pytest.raises(ValueError, match="found a second file without a split, expected one"):
        list_cases(arguments("a.json", "b.json"))
