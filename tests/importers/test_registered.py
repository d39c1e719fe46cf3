"""What registered data sets and folders hold, before anything is painted into it."""

from pathlib import Path

from lesion_d2.data.deeplesion.csv_rows import CSV_COLUMNS
from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import Lesion, Volume, VolumeSet, write_volume_set
from lesion_d2.data.volume_set.voxels import write_voxels
from lesion_d2.importers.registered import find_sources
from lesion_d2.scans.writing import write_nifti
from lesion_d2.structures.rle import encode_mask

import numpy as np
import pandas as pd
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from slice_files import write_slices

SERIES = "000001_01_01"
SPACING = (1.0, 1.0, 2.0)


def write_numbered(folder: Path, number: int) -> None:
    """Slices 1, 2, ... of 8 x 8 pixels, each of the HU of its number."""
    write_slices(folder, {n: np.full((8, 8), n) for n in range(1, number + 1)})


def image_of(folder: Path, number: int, *annotations: dict, **more) -> dict:
    boxes = [{"bbox": [1, 1, 5, 5], "bbox_mode": 0, "category_id": 0, **a} for a in annotations]
    return {
        "file_name": str(folder / f"{number:03d}.png"),
        "height": 8,
        "width": 8,
        "spacing": SPACING,
        "annotations": boxes,
        **more,
    }


@pytest.fixture
def register():
    """Registers dicts under a name, undone after the test."""
    names = []

    def add(name: str, dicts: list[dict]) -> str:
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(thing_classes=["lesion"])
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_sub_volumes_of_one_series_stay_apart(tmp_path, register):
    """Each numbers its lesions from 1 on, and has its own slices of the folder they share."""
    folder = tmp_path / "Images_png" / SERIES
    write_numbered(folder, 12)
    dicts = []
    for first, last in ((2, 5), (4, 9)):
        volume = {"volume": f"{SERIES}_{first:03d}-{last:03d}", "slice_range": (first, last)}
        for n in range(first, last + 1):
            found = [{"lesion_id": 1}] if n < first + 2 else []
            dicts.append(image_of(folder, n, *found, patient=1, **volume))
    found = find_sources([register("made_up_sub_volumes", dicts)]).volumes
    assert [(v.name, v.patient) for v in found] == [
        (f"{SERIES}_002-005", "000001"),
        (f"{SERIES}_004-009", "000001"),
    ]
    first, second = (volume.read() for volume in found)
    assert first.voxels[:, 0, 0].tolist() == [2, 3, 4, 5]
    assert second.voxels[:, 0, 0].tolist() == [4, 5, 6, 7, 8, 9]
    for imported in (first, second):
        assert [lesion.slices for lesion in imported.volume.lesions] == [[0, 1]]


def test_lesions_that_are_annotated_on_key_slices_alone(tmp_path, register):
    """The slices beside show the lesion, too; not where its mask or all its slices are known."""
    folder = tmp_path / "Images_png" / SERIES
    write_numbered(folder, 7)
    volume = {"patient": 1, "volume": f"{SERIES}_001-007", "slice_range": (1, 7)}
    mask = np.zeros((8, 8), bool)
    mask[1:5, 1:5] = True
    key = [{"lesion_id": n, "is_key": True} for n in (1, 2, 3)]
    key[1]["segmentation"] = encode_mask(mask)
    key = {4: [*key, {"lesion_id": 4}], 5: [{"lesion_id": 3}]}
    dicts = [image_of(folder, n, *key.get(n, ()), **volume) for n in range(1, 8)]
    (found,) = find_sources([register("made_up_key_slices", dicts)]).volumes
    lesions = found.read().volume.lesions
    assert [(le.slices, le.ignore) for le in lesions] == [
        ([3], False),
        ([3], False),
        ([3, 4], False),
        ([3], False),  # a box in 3-D of one slice
        ([2, 4], True),  # half of 4 mm is a slice of 2 mm
    ]


def test_splits_of_a_table_without_images(tmp_path):
    """DeepLesion with the images of one split is that split; without any it is none."""
    cells = dict.fromkeys(CSV_COLUMNS, "1") | {
        "Measurement_coordinates": "2, 4, 6, 4, 4, 3, 4, 5",
        "Bounding_boxes": "2, 2, 6, 6",
        "Lesion_diameters_Pixel_": "4, 2",
        "Possibly_noisy": "0",
        "Slice_range": "1, 1",
        "Spacing_mm_px_": "1, 1, 2",
        "Image_size": "8, 8",
        "DICOM_windows": "-175, 275",
    }
    names = {"000001_01_01": "1", "000002_01_01": "2", "000003_01_01": "1"}
    rows = [
        cells | {"File_name": f"{name}_001.png", "Patient_index": name[:6], "Train_Val_Test": code}
        for name, code in names.items()
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "DL_info.csv", index=False)
    (tmp_path / "Images_png").mkdir()
    with pytest.raises(ValueError, match="no lesions left"):
        find_sources([str(tmp_path)])

    write_numbered(tmp_path / "Images_png" / "000003_01_01", 1)
    found = find_sources([str(tmp_path)])
    assert [(v.patient, v.split) for v in found.volumes] == [("000003", "train")]

    (line,) = found.left_out
    assert "found no image of split 'val' in" in line


@pytest.fixture
def volume_set(tmp_path):
    """A registered data set: of p0, which has a lesion, and of p1 and p2, which have none."""
    root = tmp_path / "made_up_sparse"
    lesion = Lesion(1, 0, (1.0, 1.0, 0.0, 5.0, 5.0, 0.0))
    volumes = []
    for n in range(3):
        write_voxels(root / f"v{n}.b2nd", np.zeros((2, 8, 8), np.int16))
        lesions = (lesion,) if n == 0 else ()
        volumes.append(Volume(f"v{n}", f"p{n}", f"v{n}.b2nd", (2, 8, 8), SPACING, lesions=lesions))
    splits = {"train": ("p0", "p1"), "val": ("p2",)}
    folds = ({"train": ("p1", "p2"), "test": ("p0",)},)
    write_volume_set(root, VolumeSet(("lesion",), tuple(volumes), splits=splits, folds=folds))
    names = register_volume_set(root)
    yield root.name
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_volumes_without_lesions_are_of_their_part(volume_set):
    """A data set of slices with lesions stands for volumes, those without lesions among them."""

    def found(name):
        return [(v.name, v.split) for v in find_sources([volume_set + name]).volumes]

    assert found("_train") == found("_volumes_train") == [("v0", "train"), ("v1", "train")]
    assert found("_val") == [("v2", "val")]
    assert found("_fold0_train") == [("v1", "train"), ("v2", "train")]
    assert found("") == [("v0", "train"), ("v1", "train"), ("v2", "val")]


def test_scans_of_one_name_from_two_folders_are_two_patients(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "ct1.nii.gz", np.zeros((2, 8, 8), np.int16), SPACING)
    texts = [f"train={tmp_path / 'a'}", f"val={tmp_path / 'b'}"]
    found = find_sources(texts).volumes
    assert [(v.name, v.patient, v.split) for v in found] == [
        ("ct1", "ct1", "train"),
        ("ct1_2", "ct1_2", "val"),
    ]
    again = find_sources([texts[0], f"val={tmp_path / 'a'}"]).volumes
    assert [v.patient for v in again] == ["ct1", "ct1"]  # one scan twice is one patient


def test_numbered_patients_of_two_places_are_two(tmp_path, register):
    dicts = {}
    for root in ("one", "two"):
        for series in (SERIES, "000001_02_01", "000002_01_01"):
            folder = tmp_path / root / "Images_png" / series
            write_numbered(folder, 1)
            image = image_of(folder, 1, patient=int(series[:6]))
            dicts.setdefault(f"{root}_{series}", []).append(image)
    names = [register(f"made_up_{name}", images) for name, images in dicts.items()]
    found = find_sources(names).volumes
    assert [v.patient for v in found] == [
        *("000001", "000001", "000002"),
        *("000001_2", "000001_2", "000002_2"),
    ]


def test_series_without_patients_are_their_own(tmp_path, register):
    """Both parts of a series with a gap are of one patient; a folder of its name elsewhere not."""
    for folder in (tmp_path / "a" / "ct", tmp_path / "b" / "ct"):
        write_numbered(folder, 5)
    (tmp_path / "a" / "ct" / "003.png").unlink()
    dicts = [image_of(tmp_path / "a" / "ct", n) for n in (1, 4)]
    dicts.append(image_of(tmp_path / "b" / "ct", 2, volume="ct", slice_range=None))
    found = find_sources([register("made_up_series", dicts)]).volumes
    assert [(v.name, v.patient) for v in found] == [
        ("ct_1-2", "ct"),
        ("ct_4-5", "ct"),
        ("ct", "ct_2"),
    ]


def test_spacing_may_be_an_array(tmp_path, register):
    folder = tmp_path / "Images_png" / SERIES
    write_numbered(folder, 1)
    image = image_of(folder, 1, {}, patient=1, spacing=np.array([1, 1, 2]))
    (found,) = find_sources([register("made_up_spacing", [image])]).volumes
    spacing = found.read().volume.spacing
    assert spacing == SPACING and all(type(value) is float for value in spacing)
