import csv
import importlib
import logging
import re
import struct
from pathlib import Path

from lesion_d2.boxes import first_pixel
from lesion_d2.data import deeplesion, deeplesion_csv
from lesion_d2.data.ct import read_slice
from lesion_d2.data.deeplesion import (
    COARSE_TYPES,
    load_deeplesion,
    register_deeplesion,
)
from lesion_d2.data.mask_files import PseudoMasks, mask_annotation
from lesion_d2.data.pseudo_masks import ellipse_mask, pseudo_mask

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from scipy import ndimage

SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "deeplesion_sample"
DIAMETERS = "2 lengths in pixels, none below 0 or above the image's diagonal"
SPLITS = {"train": "1", "val": "2", "test": "3"}


def test_a_file_is_read_once_for_all_of_its_splits(tmp_path, monkeypatch):
    rows = [good_row(1, Train_Val_Test="1"), good_row(2, Train_Val_Test="2")]
    csv_file, read = write_dataset(tmp_path, rows) / "DL_info.csv", []
    read_table = deeplesion_csv.read_csv_table
    monkeypatch.setattr(
        deeplesion_csv, "read_csv_table", lambda *args: read.append(1) or read_table(*args)
    )
    expected = [load_deeplesion(csv_file, tmp_path / "Images_png", s) for s in ("train", "val")]
    assert len(read) == 2
    for number in (3, 4):  # what another block has read is read again: files change between runs
        with deeplesion_csv.read_once():
            found = [
                load_deeplesion(csv_file, tmp_path / "Images_png", s) for s in ("train", "val")
            ]
        assert found == expected and len(read) == number


def good_row(number: int = 1, slice_index: int = 10, **changes: str) -> dict[str, str]:
    row = {
        "File_name": f"{number:06d}_02_03_{slice_index:03d}.png",
        "Patient_index": f"{number}",
        "Study_index": "2",
        "Series_ID": "3",
        "Key_slice_index": f"{slice_index}",
        "Measurement_coordinates": "100.5, 120, 130.25, 140, 110, 135, 120, 125",
        "Bounding_boxes": "95.5, 115, 135.25, 145",
        "Lesion_diameters_Pixel_": "35.8478, 14.1421",
        "Normalized_lesion_location": "0.1, 0.2, 0.3",
        "Coarse_lesion_type": "3",
        "Possibly_noisy": "0",
        "Slice_range": "5, 17",
        "Spacing_mm_px_": "0.488281, 0.488281, 5",
        "Image_size": "512, 256",
        "DICOM_windows": "-175, 275",
        "Patient_gender": "F",
        "Patient_age": "NaN",
        "Train_Val_Test": "1",
    }
    assert set(changes) <= set(row)
    return row | changes


def write_dataset(root: Path, rows: list[dict[str, str]], without=()) -> Path:
    """DL_info.csv and a file's header for each key slice that is not in ``without``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "Images_png").mkdir(exist_ok=True)
    with open(root / "DL_info.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    size_of = {row["File_name"]: row["Image_size"] for row in rows}
    for name in size_of.keys() - set(without):
        header = png_header(size_of[name])
        folder, _, name = name.rpartition("_")
        if folder:
            (root / "Images_png" / folder).mkdir(exist_ok=True)
            (root / "Images_png" / folder / name).write_bytes(header)
    return root


def png_header(size: str) -> bytes:
    """The first bytes of a 16-bit grayscale PNG of a size as DL_info.csv has it."""
    width, height = (
        map(int, size.split(",")) if re.fullmatch(r"[1-9]\d*, \d+", size) else (512, 256)
    )
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", width, height, 16, 0)


def load(root: Path, split: str | None = "train", **options) -> list[dict]:
    return load_deeplesion(root / "DL_info.csv", root / "Images_png", split, **options)


def slow_load(root: Path, split: str | None, first_pixel: float = 1) -> dict[str, dict]:
    """By image, cell after cell."""
    images = {}
    with open(root / "DL_info.csv", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            if row["Possibly_noisy"] == "1" or (split and row["Train_Val_Test"] != SPLITS[split]):
                continue

            def numbers(column, row=row):
                return [float(text) for text in row[column].split(",")]

            spacing = numbers("Spacing_mm_px_")
            width, height = map(int, numbers("Image_size"))
            x1, y1, x2, y2 = [v - first_pixel for v in numbers("Bounding_boxes")]
            name = row["File_name"][: -len(".png")]
            folder, slice_name = name[: name.rindex("_")], name[name.rindex("_") + 1 :]
            image = images.setdefault(
                name,
                {
                    "file_name": str(root / "Images_png" / folder / f"{slice_name}.png"),
                    "image_id": name,
                    "height": height,
                    "width": width,
                    "spacing": tuple(spacing),
                    "slice_range": tuple(int(text) for text in row["Slice_range"].split(",")),
                    "slice_index": int(slice_name),
                    "patient": int(row["Patient_index"]),
                    "study": int(row["Study_index"]),
                    "series": int(row["Series_ID"]),
                    "window": tuple(numbers("DICOM_windows")),
                    "annotations": [],
                },
            )
            image["annotations"].append(
                {
                    "bbox": [
                        max(x1, -0.5),
                        max(y1, -0.5),
                        min(x2, width - 0.5),
                        min(y2, height - 0.5),
                    ],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "recist": [v - first_pixel for v in numbers("Measurement_coordinates")],
                    "diameters_mm": tuple(
                        pixels * spacing[0] for pixels in numbers("Lesion_diameters_Pixel_")
                    ),
                    "coarse_type": int(row["Coarse_lesion_type"]),
                    "row": line,
                }
            )
    return images


def made_up_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows with up to three lesions an image, in three splits, some noisy, some at the border."""
    rng = np.random.default_rng(seed)

    def text(values):
        return ", ".join(f"{value:.6g}" for value in values)

    rows = []
    while len(rows) < count:
        image = len(rows)
        size = int(rng.choice([512, 768, 1024]))
        for _ in range(rng.integers(1, 4)):
            ends = rng.uniform(0, 60, (4, 2)) + rng.uniform(0, size - 60, 2)
            box = np.concatenate([ends.min(axis=0) - 5, ends.max(axis=0) + 5])
            rows.append(
                good_row(
                    image // 5 + 1,
                    image % 5 + 20,
                    Measurement_coordinates=text(ends.ravel()),
                    Bounding_boxes=text(box),
                    Lesion_diameters_Pixel_=text(rng.uniform(5, 60, 2)),
                    Coarse_lesion_type=f"{rng.choice([-1, 1, 2, 3, 4, 5, 6, 7, 8])}",
                    Possibly_noisy=f"{int(rng.random() < 0.05)}",
                    Spacing_mm_px_=text([*[rng.uniform(0.3, 1)] * 2, rng.choice([1, 2.5, 5])]),
                    Image_size=f"{size}, {size}",
                    Train_Val_Test=f"{image % 3 + 1}",
                )
            )
    return rows[:count]


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_equals_a_slow_reading(tmp_path, split):
    root = write_dataset(tmp_path, made_up_rows(400))
    dicts = load(root, split)
    slow = slow_load(root, split)
    assert dicts == list(slow.values())
    assert max(len(image["annotations"]) for image in dicts) == 3
    lefts = [annotation["bbox"][0] for image in dicts for annotation in image["annotations"]]
    assert min(lefts) >= -0.5
    assert load(root, split, first_pixel=0) == list(slow_load(root, split, 0).values())


def test_thousands_of_rows(tmp_path):
    root = write_dataset(tmp_path, made_up_rows(6_000))
    dicts = load(root, None)
    assert dicts == list(slow_load(root, None).values())
    rows = [annotation["row"] for image in dicts for annotation in image["annotations"]]
    assert len(set(rows)) == len(rows) > 5_500 and max(rows) <= 6_001


def test_splits_are_disjoint_and_whole(tmp_path):
    root = write_dataset(tmp_path, made_up_rows(100))
    ids = [{image["image_id"] for image in load(root, split)} for split in SPLITS]
    assert len(set.union(*ids)) == sum(map(len, ids)) == len(load(root, None))


def test_width_comes_before_height(tmp_path):
    image = load(write_dataset(tmp_path, [good_row()]))[0]
    assert (image["width"], image["height"]) == (512, 256)


def test_noisy_rows_are_dropped_and_counted(tmp_path, caplog):
    noisy = {"Possibly_noisy": "1", "Bounding_boxes": "9, 9, 1, 1"}  # not looked at further
    rows = [good_row(1), good_row(1, **noisy), good_row(2, **noisy), good_row(3)]
    with caplog.at_level(logging.INFO, logger=deeplesion.__name__):
        dicts = load(write_dataset(tmp_path, rows))
    assert [[a["row"] for a in image["annotations"]] for image in dicts] == [[2], [5]]
    assert "2 noisy rows" in caplog.text and "2 lesions on 2 key slices" in caplog.text


def test_rows_without_diameters_are_boxes_alone(tmp_path, caplog):
    ends, lengths = "Measurement_coordinates", "Lesion_diameters_Pixel_"
    rows = [
        good_row(1),
        good_row(2, **{ends: "", lengths: " "}),
        good_row(3, **{ends: ""}),
        good_row(4, **{lengths: ""}),
    ]
    with caplog.at_level(logging.INFO, logger=deeplesion.__name__):
        dicts = load(write_dataset(tmp_path, rows))
    annotations = [a for image in dicts for a in image["annotations"]]
    assert ["recist" in a for a in annotations] == [True, False, False, True]
    assert ["diameters_mm" in a for a in annotations] == [True, False, True, False]
    assert all(a["bbox"] == [94.5, 114, 134.25, 144] for a in annotations)
    assert "boxes alone: 3 rows lack diameters" in caplog.text


def test_coarse_types(tmp_path, caplog):
    rows = [good_row(1, Coarse_lesion_type=str(t)) for t in (-1, 1, 8)]
    rows.append(good_row(2, Coarse_lesion_type="-1"))
    root = write_dataset(tmp_path, rows)
    with caplog.at_level(logging.INFO, logger=deeplesion.__name__):
        dicts = load(root, coarse_types=True)
    assert [(a["category_id"], a["coarse_type"]) for a in dicts[0]["annotations"]] == [
        (0, 1),
        (7, 8),
    ]
    assert len(dicts) == 1
    assert "2 rows of unknown type" in caplog.text
    assert [len(image["annotations"]) for image in load(root)] == [3, 1]


def test_boxes_are_cut_to_the_image(tmp_path):
    row = good_row(Bounding_boxes="-5, -0.5, 516, 261")
    assert load(write_dataset(tmp_path, [row]))[0]["annotations"][0]["bbox"] == [
        *(-0.5, -0.5),
        *(511.5, 255.5),
    ]


def test_coordinates_count_from_one_but_in_generated_files(tmp_path, registered):
    """DeepLesion's authors take 1 from its coordinates; the phantoms' name pixels from 0."""
    root = write_dataset(tmp_path / "set", [good_row()])
    lesion = load(root)[0]["annotations"][0]
    assert lesion["bbox"] == [94.5, 114, 134.25, 144]
    assert lesion["recist"] == [99.5, 119, 129.25, 139, 109, 134, 119, 124]
    registered("lesions_from_one", str(root), None)
    registered("lesions_from_half", str(root), None, first_pixel=0.5)
    for name, number in (("lesions_from_one", 1), ("lesions_from_half", 0.5)):
        [image] = DatasetCatalog.get(name)
        assert image["annotations"][0]["bbox"] == [
            95.5 - number,
            115 - number,
            135.25 - number,
            145 - number,
        ]
        assert first_pixel(name) == number
    (root / "phantom.json").write_text("{}")
    assert load(root)[0]["annotations"][0]["bbox"] == [95.5, 115, 135.25, 145]
    DatasetCatalog.get("lesions_from_one")
    assert first_pixel("lesions_from_one") == 0  # what it was read by
    assert first_pixel("of another loader") == 0


def test_masks_prepared_before_coordinates_were_moved_are_refused(tmp_path):
    """A mask file has end points in pixels of the image, which tell by what it was made."""
    root = write_dataset(tmp_path, [good_row()])
    [before], [now] = load(root, first_pixel=0), load(root)
    [lesion], name = before["annotations"], now["image_id"]
    found = pseudo_mask("ellipse", None, lesion["recist"], lesion["bbox"], (256, 512))
    masks = PseudoMasks("old.json", {}, [mask_annotation(name, lesion, found)])
    assert masks.entry(before, lesion)
    with pytest.raises(ValueError, match=r"old.json: the mask of row 2 .* run .*prepare_masks ag"):
        masks.entry(now, now["annotations"][0])


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no DeepLesion sample beside")
def test_ends_of_real_diameters_lie_where_the_authors_draw_them(monkeypatch):
    """Their overlay of 000001_03_01_088 has the four ends at round(value - 1)."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SAMPLE.parent))
    [lesion] = DatasetCatalog.get("deeplesion_sample")[3]["annotations"]
    assert np.rint(lesion["recist"]).tolist() == [257, 157, 259, 133, 251, 145, 264, 146]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no DeepLesion sample beside")
def test_real_lesions_stand_out_most_where_the_reader_puts_them(monkeypatch):
    """Within a pixel: the contrast of the ellipses with what is around them falls on both sides."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SAMPLE.parent))
    contrasts = []
    for image in DatasetCatalog.get("deeplesion_sample"):
        hu = np.clip(read_slice(image["file_name"]), -175, 275).astype(float)
        recist = np.array(image["annotations"][0]["recist"])
        size = hu.shape
        inside = ellipse_mask(recist, *size)
        around = ndimage.binary_dilation(inside, iterations=3) & ~inside
        spread = hu[inside | around].std()
        moved = [np.roll(hu, (-shift, -shift), (0, 1)) for shift in (-3, 0, 3)]
        contrasts.append([abs(m[inside].mean() - m[around].mean()) / spread for m in moved])
    up, here, down = np.mean(contrasts, axis=0)
    assert here > up and here > down


@pytest.mark.parametrize(
    "column, cell, expected",
    [
        ("Measurement_coordinates", "1, 2, 3, 4, 5, 6, 7", "8 numbers"),
        ("Measurement_coordinates", "1, 2, 3, 4, 5, 6, 7, x", "8 numbers"),
        ("Measurement_coordinates", "1, 2, 3, 4, 5, 6, 7, NaN", "8 numbers"),
        ("Measurement_coordinates", ",", "8 numbers"),
        ("Bounding_boxes", "1, 2, 3, inf", "4 numbers"),
        ("Bounding_boxes", "50, 20, 50, 40", "x1 < x2 and y1 < y2"),
        ("Bounding_boxes", "20, 50, 40, 30", "x1 < x2 and y1 < y2"),
        ("Bounding_boxes", "-9, 20, -2, 40", "a box inside the image"),
        ("Bounding_boxes", "500, 20, 550, 40", "a box inside the image"),
        ("Bounding_boxes", "20, 257, 40, 260", "a box inside the image"),
        ("Lesion_diameters_Pixel_", "12", "2 numbers"),
        ("Patient_index", "one", "1 number"),
        ("Series_ID", "1.5", "1 integer"),
        ("Coarse_lesion_type", "0", "-1 or 1 to 8"),
        ("Coarse_lesion_type", "9", "-1 or 1 to 8"),
        ("Possibly_noisy", "2", "0 or 1"),
        ("Slice_range", "17, 5", "first <= last"),
        ("Slice_range", "5", "2 numbers"),
        ("Slice_range", "5, 7.5", "2 integers"),
        ("Spacing_mm_px_", "0.5, 0.5, 0", "3 numbers of mm from 0.01 to 100"),
        ("Spacing_mm_px_", "0.5, -0.5, 5", "3 numbers of mm from 0.01 to 100"),
        ("Spacing_mm_px_", "0.5, 0.5, nan", "3 numbers of mm from 0.01 to 100"),
        ("Spacing_mm_px_", "1e-300, 1e-300, 5", "3 numbers of mm from 0.01 to 100"),
        ("Spacing_mm_px_", "0.5, 0.5, 1e300", "3 numbers of mm from 0.01 to 100"),
        ("Measurement_coordinates", "1e6, 2, 3, 4, 5, 6, 7, 8", "end points inside the image"),
        ("Measurement_coordinates", "1, 2, 3, 4, 5, -60, 7, 8", "end points inside the image"),
        ("Measurement_coordinates", "1, 2, 3, 270, 5, 6, 7, 8", "end points inside the image"),
        ("Lesion_diameters_Pixel_", "-12, 5", DIAMETERS),
        ("Lesion_diameters_Pixel_", "12, -5", DIAMETERS),
        ("Lesion_diameters_Pixel_", "1e300, 5", DIAMETERS),
        ("Image_size", "0, 512", "a positive width and height"),
        ("Image_size", "512 x 512", "2 numbers"),
        ("DICOM_windows", "275, -175", "low < high, HU"),
        ("DICOM_windows", "275", "low < high, HU"),
        ("Train_Val_Test", "4", "1, 2 or 3"),
        ("Train_Val_Test", "train", "1 number"),
        ("Key_slice_index", "11", "the slice number of File_name"),
        ("File_name", "000001_02_010.png", "<p>_<s>_<r>_<slice>.png"),
        ("File_name", "000001_02_03_010.jpg", "<p>_<s>_<r>_<slice>.png"),
        ("File_name", "", "<p>_<s>_<r>_<slice>.png"),
        ("File_name", "../000001_02_03_010.png", "<p>_<s>_<r>_<slice>.png"),
        ("File_name", "/000001_02_03_010.png", "<p>_<s>_<r>_<slice>.png"),
        ("File_name", "\u0661_02_03_010.png", "<p>_<s>_<r>_<slice>.png"),
    ],
)
def test_bad_cell(tmp_path, column, cell, expected):
    root = write_dataset(tmp_path, [good_row(1), good_row(2, **{column: cell}), good_row(3)])
    with pytest.raises(ValueError) as error:
        load(root)
    file = root / "DL_info.csv"
    text = f"{file}: row 3, column {column}: found {cell!r}, expected {expected}"
    assert str(error.value) == text


def test_an_image_size_that_is_not_the_files_is_a_bad_cell(tmp_path):
    root = write_dataset(tmp_path, [good_row(1), good_row(2), good_row(3)])
    path = root / "Images_png" / "000002_02_03" / "010.png"
    path.write_bytes(png_header("512, 512"))
    with pytest.raises(ValueError) as error:
        load(root)
    assert str(error.value) == (
        f"{root / 'DL_info.csv'}: row 3, column Image_size: found '512, 256', expected 512, 512, "
        f"the size of {path}"
    )
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"row 3, column File_name: found .*010.png: found 0 byte"):
        load(root, allow_missing=True)


@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_second_row_of_other_size_is_a_bad_cell(tmp_path, allow_missing):
    root = write_dataset(tmp_path, [good_row(1, Image_size="256, 256"), good_row(1)])
    message = "row 2, column Image_size: found '256, 256', expected 512, 256, the size of"
    with pytest.raises(ValueError, match=message):
        load(root, allow_missing=allow_missing)


@pytest.mark.parametrize("split", ["train", "val", None])
def test_an_image_in_two_splits_is_a_bad_cell(tmp_path, split):
    other = good_row(2, Train_Val_Test="2")
    rows = [good_row(1), other, good_row(1, Train_Val_Test="2"), good_row(3, Train_Val_Test="3")]
    root = write_dataset(tmp_path, rows)
    with pytest.raises(ValueError) as error:
        load(root, split)
    assert str(error.value).endswith(
        "row 4, column Train_Val_Test: found '2', expected 1, the split of an earlier row of its "
        "image"
    )
    assert len(load(root, "test")) == 1
    rows[2]["Possibly_noisy"] = "1"
    assert len(load(write_dataset(tmp_path, rows), "train")) == 1


def test_repeated_rows_are_counted_and_kept(tmp_path, caplog):
    other = "96.5, 115, 135.25, 145"
    rows = [good_row(1), good_row(1), good_row(1, Bounding_boxes=other), good_row(2), good_row(1)]
    with caplog.at_level(logging.INFO, logger=deeplesion.__name__):
        dicts = load(write_dataset(tmp_path, rows))
    assert [len(image["annotations"]) for image in dicts] == [4, 1]
    assert "2 rows repeat an earlier one" in caplog.text


def test_bad_rows_of_other_splits_do_not_matter(tmp_path):
    bad = good_row(2, Slice_range="9, 1", Train_Val_Test="3")
    root = write_dataset(tmp_path, [good_row(1), bad])
    assert len(load(root, "train")) == 1
    with pytest.raises(ValueError, match="row 3, column Slice_range"):
        load(root, "test")


def test_all_bad_rows_are_counted_and_twenty_shown(tmp_path):
    rows = [good_row(i, Slice_range="9, 1", DICOM_windows="?") for i in range(1, 31)]
    root = write_dataset(tmp_path, [good_row(99), *rows])
    with pytest.raises(ValueError) as error:
        load(root)
    first, *lines = str(error.value).split("\n  ")
    assert first.endswith("60 bad cells in 30 rows, the first 20")
    assert [int(re.match(r"row (\d+),", line)[1]) for line in lines] == sorted([*range(3, 13)] * 2)


def test_missing_files_are_bad_rows(tmp_path):
    rows = [good_row(1), good_row(2), good_row(2), good_row(3, Slice_range="9, 1")]
    root = write_dataset(tmp_path, rows, without=["000002_02_03_010.png"])
    path = root / "Images_png" / "000002_02_03" / "010.png"
    expected = [
        f"row {row}, column File_name: found no file {path}, expected the key slice's PNG"
        for row in (3, 4)
    ]
    with pytest.raises(ValueError) as error:
        load(root)
    assert str(error.value).split("\n  ")[1:3] == expected
    with pytest.raises(ValueError, match=r"DL_info\.csv: row 5, column Slice_range"):
        load(root, allow_missing=True)


def test_allow_missing_drops_and_counts(tmp_path, caplog):
    rows = [good_row(1), good_row(2), good_row(2), good_row(3)]
    root = write_dataset(tmp_path, rows, without=["000002_02_03_010.png"])
    with caplog.at_level(logging.INFO, logger=deeplesion.__name__):
        assert [image["patient"] for image in load(root, allow_missing=True)] == [1, 3]
    assert "1 images whose files are missing" in caplog.text


def test_missing_csv_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"DL_info\.csv: .*DETECTRON2_DATASETS"):
        load(tmp_path)
    root = write_dataset(tmp_path, [good_row()])
    with pytest.raises(FileNotFoundError, match="elsewhere: no such folder"):
        load_deeplesion(root / "DL_info.csv", root / "elsewhere", None)


def test_empty_split(tmp_path):
    root = write_dataset(tmp_path, [good_row(1), good_row(2, Possibly_noisy="1")])
    with pytest.raises(ValueError, match=r"split 'val': no lesions left, expected at least one"):
        load(root, "val")
    root = write_dataset(tmp_path, [good_row(1, Coarse_lesion_type="-1")])
    with pytest.raises(ValueError, match=r"no lesions left.* 1 rows of unknown type") as error:
        load(root, coarse_types=True)
    assert "\n" not in str(error.value)


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="found split 'validation'"):
        load(write_dataset(tmp_path, [good_row()]), "validation")
    with pytest.raises(ValueError, match="found split 'all'"):
        register_deeplesion("deeplesion_all", str(tmp_path), "all")


def test_unreadable_csv(tmp_path):
    root = write_dataset(tmp_path, [good_row(1), good_row(2)])
    file = root / "DL_info.csv"
    text = file.read_text()

    def message():
        with pytest.raises(ValueError) as error:
            load(root)
        assert str(file) in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    file.write_text(text.replace("Slice_range", "slices"))
    assert "no column Slice_range" in message()
    file.write_text(text.replace("Normalized_lesion_location", "Slice_range"))
    assert "found the column 'Slice_range' 2 times, expected it once" in message()
    file.write_text(text.replace('"', ""))
    assert "rows longer than the header" in message()
    file.write_text(text + "1,2,3," * 20 + "\n")
    assert "line 4" in message()
    file.write_text("")
    assert "no readable CSV" in message()
    file.write_text(text.splitlines()[0] + "\n")
    assert "split 'train': no lesions left" in message()


def test_short_and_blank_lines(tmp_path):
    root = write_dataset(tmp_path, [good_row(1), good_row(2)])
    file = root / "DL_info.csv"
    header, first, second = file.read_text().splitlines()
    file.write_text("\n".join([header, first, "", second, "", ""]))
    assert [image["annotations"][0]["row"] for image in load(root)] == [2, 4]
    file.write_text("\n".join([header, first, "000002_02_03_010.png,2,2", second]))
    with pytest.raises(ValueError, match="row 3, column Train_Val_Test: found '', expected 1 num"):
        load(root, None)


def test_registered_data_sets_are_read_lazily(tmp_path, monkeypatch):
    folders = ("deeplesion", "phantom", "phantom_columns")
    names = [f"{name}_{split}" for name in folders for split in SPLITS]
    assert {*names, "deeplesion_sample"} <= set(DatasetCatalog.list())
    write_dataset(tmp_path / "DeepLesion", [good_row(1), good_row(2, Train_Val_Test="2")])
    write_dataset(tmp_path / "phantom", [good_row(3, Train_Val_Test="3")])
    write_dataset(tmp_path / "phantom_columns", [good_row(4, Train_Val_Test="3")])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert [d["patient"] for d in DatasetCatalog.get("deeplesion_train")] == [1]
    assert [d["patient"] for d in DatasetCatalog.get("deeplesion_val")] == [2]
    assert [d["patient"] for d in DatasetCatalog.get("phantom_test")] == [3]
    assert [d["patient"] for d in DatasetCatalog.get("phantom_columns_test")] == [4]
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"datasets/DeepLesion/DL_info\.csv: no"):
        DatasetCatalog.get("deeplesion_train")
    metadata = MetadataCatalog.get("deeplesion_train")
    assert metadata.thing_classes == ["lesion"] and len(metadata.thing_colors) == 1
    assert metadata.evaluator_type == "lesion"


def test_register_another_root(tmp_path, registered):
    write_dataset(tmp_path, [good_row(1), good_row(2)], without=["000002_02_03_010.png"])
    registered("lesions_elsewhere", str(tmp_path), None, coarse_types=True)
    with pytest.raises(ValueError, match="found no file"):
        DatasetCatalog.get("lesions_elsewhere")
    metadata = MetadataCatalog.get("lesions_elsewhere")
    metadata.allow_missing = True
    dicts = DatasetCatalog.get("lesions_elsewhere")
    assert [image["annotations"][0]["category_id"] for image in dicts] == [2]
    assert metadata.thing_classes == list(COARSE_TYPES)
    assert len(metadata.thing_colors) == len(COARSE_TYPES)
    with pytest.raises(AssertionError, match="already registered"):
        register_deeplesion("lesions_elsewhere", str(tmp_path), None)


def test_a_second_import_registers_nothing_twice():
    before = DatasetCatalog.list()
    importlib.reload(deeplesion)
    assert DatasetCatalog.list() == before


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no DeepLesion sample beside")
def test_real_annotations(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SAMPLE.parent))
    dicts = DatasetCatalog.get("deeplesion_sample")
    assert dicts == list(slow_load(SAMPLE, None).values())
    assert [image["image_id"] for image in dicts] == [
        "000001_01_01_109",
        "000001_02_01_014",
        "000001_02_01_017",
        "000001_03_01_088",
    ]
    assert [image["spacing"][2] for image in dicts] == [5, 5, 5, 1]
    for image in dicts:
        (annotation,) = image["annotations"]
        ends = np.reshape(annotation["recist"], (4, 2))
        extent = [*(ends.min(axis=0) - 5), *(ends.max(axis=0) + 5)]
        np.testing.assert_allclose(annotation["bbox"], extent, atol=1e-3)
        lengths = np.linalg.norm(ends[[1, 3]] - ends[[0, 2]], axis=1) * image["spacing"][0]
        np.testing.assert_allclose(annotation["diameters_mm"], lengths, rtol=1e-4)
