import csv
import importlib
import logging
from pathlib import Path

from lesion_d2.data.dataset_options import DatasetOptions, read_dataset
from lesion_d2.data.deeplesion import csv_rows as deeplesion_csv
from lesion_d2.data.deeplesion import key_slices as deeplesion
from lesion_d2.data.deeplesion.key_slices import load_deeplesion, register_deeplesion
from lesion_d2.data.pseudo_masks import ellipse_mask, pseudo_mask
from lesion_d2.data.pseudo_masks.files import PseudoMasks, mask_annotation
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.structures.boxes import first_pixel
from lesion_d2.structures.lesion_types import COARSE_TYPES

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from made_up_deeplesion import good_row, load, made_up_rows, write_dataset
from scipy import ndimage

SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "deeplesion_sample"
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
    assert "3 rows have boxes without diameters" in caplog.text


def test_coarse_types_are_classes_and_lesions_of_unknown_type_are_left_out(tmp_path, caplog):
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
    dicts = read_dataset("lesions_elsewhere", DatasetOptions(allow_missing=True))
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
def test_real_annotations_are_those_of_a_loop_over_the_rows(monkeypatch):
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
