"""Tables of DeepLesion that are refused, or taken in part."""

import logging
import re

from lesion_d2.data.deeplesion import key_slices as deeplesion
from lesion_d2.data.deeplesion.key_slices import (
    load_deeplesion,
    register_deeplesion,
)

import pytest
from made_up_deeplesion import good_row, load, png_header, write_dataset

DIAMETERS = "2 lengths in pixels, none below 0 or above the image's diagonal"


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
def test_an_invalid_cell_is_refused_with_its_row_and_column(tmp_path, column, cell, expected):
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


def test_a_split_without_lesions_is_refused(tmp_path):
    root = write_dataset(tmp_path, [good_row(1), good_row(2, Possibly_noisy="1")])
    with pytest.raises(ValueError, match=r"split 'val': no lesions left, expected at least one"):
        load(root, "val")
    root = write_dataset(tmp_path, [good_row(1, Coarse_lesion_type="-1")])
    with pytest.raises(ValueError, match=r"no lesions left.* 1 rows of unknown type") as error:
        load(root, coarse_types=True)
    assert "\n" not in str(error.value)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found split 'validation'"):
        load(write_dataset(tmp_path, [good_row()]), "validation")
    with pytest.raises(ValueError, match="found split 'all'"):
        register_deeplesion("deeplesion_all", str(tmp_path), "all")


def test_an_unreadable_table_is_refused_with_its_name(tmp_path):
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
