import pickle
import re

from lesion_d2.importers.mdt import MdtOptions, list_mdt
from lesion_d2.importers.running import run_import

import numpy as np
import pandas as pd
import pytest
from made_up_tasks import lesion_voxels
from round_trip import check_trains_and_evaluates, damaged_lines

SPACING = (0.7, 0.7, 1.25)
OPTIONS = MdtOptions(SPACING, hu_range=(-1200, 600))
#: z, y, x of each region's first and last voxel, slices from the feet; the first two touch.
REGIONS = [((2, 5, 6), (3, 9, 12)), ((4, 5, 6), (5, 7, 9)), ((7, 20, 3), (7, 22, 4))]


def write_folder(folder, pids, table="pickle"):
    """As the toolkit's preprocessing of LIDC writes it: pid -> mean ratings of regions."""
    folder.mkdir(exist_ok=True)
    rows = []
    for pid, ratings in pids.items():
        hu = np.random.default_rng(len(pid)).uniform(-1500, 900, (9, 30, 24))
        rois = np.zeros(hu.shape, np.uint8)
        for number, (first, last) in enumerate(REGIONS[: len(ratings)], start=1):
            rois[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = number
        image = np.clip(hu, -1200, 600).astype(np.float32)
        image = (image - np.mean(image)) / np.std(image).astype(np.float16)
        np.save(folder / f"{pid}_img.npy", image)
        np.save(folder / f"{pid}_rois.npy", rois)
        np.save(folder / f"{pid}_hu.npy", np.clip(hu, -1200, 600))
        slices = list(np.unique(np.argwhere(rois)[:, 0]))
        info = {"pid": pid, "class_target": np.array(ratings), "spacing": SPACING}
        rows.append({**info, "fg_slices": slices})
        if table == "meta":
            (folder / f"meta_info_{pid}.pickle").write_bytes(pickle.dumps(rows[-1]))
    frame = pd.DataFrame(columns=["pid", "class_target", "spacing", "fg_slices"])
    for number, row in enumerate(rows):
        frame.loc[number] = row
    if table == "pickle":
        frame.to_pickle(folder / "info_df.pickle")
    elif table == "csv":
        frame["class_target"] = [str(row["class_target"].tolist()) for row in rows]
        frame.to_csv(folder / "info_df.csv", index=False)
    return folder


@pytest.mark.parametrize("table", ["pickle", "csv", "meta"])
def test_arrays_become_volumes_with_rated_lesions(tmp_path, table):
    pids = {"0001": [1.5, 3.0, 4.25], "0002": []}
    listing = list_mdt(write_folder(tmp_path, pids, table), OPTIONS)
    assert listing.classes == ("benign", "malignant") and not listing.left_out
    found = {case.patient: pickle.loads(pickle.dumps(case.read))() for case in listing.cases}
    assert list(found) == ["0001", "0002"] and found["0002"].volume.lesions == ()
    imported = found["0001"]
    assert imported.volume.spacing == SPACING and imported.volume.origin is None
    assert imported.volume.window == (-1200, 600)
    hu = np.load(tmp_path / "0001_hu.npy")[::-1]
    assert np.abs(imported.voxels - hu).max() < 1.01
    lesions = imported.volume.lesions
    assert [lesion.category for lesion in lesions] == [0, 1, 1]
    assert [lesion.attributes["malignancy"] for lesion in lesions] == [1.5, 3.0, 4.25]
    for lesion, ((z1, y1, x1), (z2, y2, x2)) in zip(lesions, REGIONS, strict=True):
        assert lesion.box == (x1 - 0.5, y1 - 0.5, 8 - z2, x2 + 0.5, y2 + 0.5, 8 - z1)
        size = (z2 - z1 + 1) * (y2 - y1 + 1) * (x2 - x1 + 1)
        assert len(lesion_voxels(imported.volume, lesion)) == size


def test_arrays_of_hu_slices_from_the_head_and_classes(tmp_path):
    write_folder(tmp_path, {"a": [1, 0]})
    hu = np.round(np.load(tmp_path / "a_hu.npy"))
    np.save(tmp_path / "a_img.npy", hu.astype(np.float32))
    options = MdtOptions(SPACING, head_first=True, classes=("square", "donut"))
    (case,) = list_mdt(tmp_path, options).cases
    imported = case.read()
    assert np.array_equal(imported.voxels, hu)
    assert [lesion.category for lesion in imported.volume.lesions] == [1, 0]
    assert imported.volume.lesions[0].box[2] == 2 and not imported.volume.lesions[0].attributes
    (line,) = list_mdt(tmp_path, MdtOptions(SPACING, classes=("square",))).damaged
    assert "'a': found the class target 1, expected a class from 0 to 0" in line


def test_normalized_images_need_the_range_they_had(tmp_path):
    write_folder(tmp_path, {"a": []})
    (case,) = list_mdt(tmp_path, MdtOptions(SPACING)).cases
    with pytest.raises(ValueError, match=r"a_img\.npy: found values from -.*--hu-range LOW HIGH"):
        case.read()


def test_folds_are_places_in_the_sorted_pids(tmp_path):
    write_folder(tmp_path, {pid: [] for pid in ("c", "a", "b")})
    file = tmp_path / "fold_ids.pickle"
    folds = [[np.array([0]), np.array([2]), np.array([1]), 0], [[1], [0], [2], 1]]
    file.write_bytes(pickle.dumps(folds))
    found = list_mdt(tmp_path, MdtOptions(SPACING, fold_ids=file)).folds
    assert found == (
        {"train": ("a",), "val": ("c",), "test": ("b",)},
        {"train": ("b",), "val": ("a",), "test": ("c",)},
    )
    for wrong in ([[0], [1], [3]], [[0], [1]], [[0], [[1], [1, 2]], [2]], [0, 1, 2], "abc"):
        file.write_bytes(pickle.dumps([wrong]))
        with pytest.raises(ValueError, match=r"fold_ids\.pickle: fold 0: found .* from 0 to 2"):
            list_mdt(tmp_path, MdtOptions(SPACING, fold_ids=file))
    file.write_bytes(pickle.dumps([[[0, 1], [1], [2]]]))
    with pytest.raises(ValueError, match="fold 0: found a patient in two of train, val and test"):
        list_mdt(tmp_path, MdtOptions(SPACING, fold_ids=file))


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda f: (f / "b_rois.npy").unlink(), r"b_rois\.npy: no such file"),
        (
            lambda f: np.save(f / "b_rois.npy", np.zeros((9, 30, 23), np.uint8)),
            r"b_rois\.npy: found the shape \(9, 30, 23\), expected \(9, 30, 24\) of b_img",
        ),
        (
            lambda f: np.save(f / "b_rois.npy", np.zeros((9, 30, 24), np.uint8)),
            r"b_rois\.npy: found no voxel of the instances 1, expected all those in class_target",
        ),
        (
            lambda f: np.save(f / "b_rois.npy", np.load(f / "b_rois.npy") * 0.5),
            r"b_rois\.npy: found a value that is not an integer",
        ),
        (
            lambda f: np.save(f / "b_img.npy", np.array([[["x"]]], object)),
            r"b_img\.npy: found no readable array \(.*Python objects",
        ),
        (
            lambda f: (f / "b_img.npy").write_bytes((f / "b_img.npy").read_bytes()[:-90]),
            r"b_img\.npy: found no readable array",
        ),
        (
            lambda f: (f / "b_img.npy").write_bytes(
                (f / "b_img.npy").read_bytes().replace(b")", b"(", 1)
            ),
            r"b_img\.npy: found no readable array",
        ),
        (
            lambda f: (f / "b_img.npy").write_bytes(
                (f / "b_img.npy").read_bytes().replace(b"(9, ", b"(-9,", 1)
            ),
            r"b_img\.npy: found no readable array",
        ),
        (
            lambda f: (f / "c_img.npy").write_bytes(b""),
            r"c_img\.npy: found no class_target of 'c'",
        ),
    ],
)
def test_a_damaged_image_is_one_line_and_the_others_go_on(tmp_path, edit, message):
    edit(write_folder(tmp_path, {"a": [], "b": [2.0]}))
    listing = list_mdt(tmp_path, OPTIONS)
    (line,) = damaged_lines(listing)
    assert re.search(message, line) and "\n" not in line
    assert listing.cases[0].name == "a"


@pytest.mark.parametrize(
    "table, message",
    [
        ({"pid": ["a"]}, r"found the columns \['pid'\], expected pid and class_target"),
        ({"pid": ["a", "a"], "class_target": [[], []]}, "row 1: found 'a' again"),
        ({"pid": ["../a"], "class_target": [[]]}, r"row 0: found the pid '\.\./a'"),
        (
            {"pid": ["a"], "class_target": [["x"]]},
            "row 0: class_target: found .*expected one number",
        ),
        ({"pid": ["a"], "class_target": [print]}, "builtins.print in the pickle.*info_df.csv"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, table, message):
    pd.DataFrame(table).to_pickle(tmp_path / "info_df.pickle")
    with pytest.raises(ValueError, match=rf"info_df\.pickle: {message}|{message}") as error:
        list_mdt(tmp_path, OPTIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lines, message",
    [
        ("a,[1]\nb", "row 3: class_target: found '', expected one number per region"),
        ("a,[1]\n,\n\n../c,[2]", r"row 5: found the pid '\.\./c'"),
    ],
)
def test_a_bad_row_of_a_csv_is_told_by_its_line(tmp_path, lines, message):
    (tmp_path / "info_df.csv").write_text(f"pid,class_target\n{lines}\n")
    with pytest.raises(ValueError, match=rf"info_df\.csv: {message}"):
        list_mdt(tmp_path, OPTIONS)


def test_no_table_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no info_df\.csv, info_df\.pickle or meta"):
        list_mdt(tmp_path, OPTIONS)


def test_an_import_trains_and_evaluates_perfectly_on_its_truth(tmp_path):
    listing = list_mdt(
        write_folder(tmp_path / "mdt", {"a": [1.0, 2.0, 5.0], "b": [4.0], "empty": []}), OPTIONS
    )
    run_import(listing, tmp_path / "made_mdt", format="mdt", workers=1)
    volume_set = check_trains_and_evaluates(tmp_path / "made_mdt", tmp_path)
    assert [volume.name for volume in volume_set.volumes] == ["a", "b", "empty"]
