"""Data sets of synthetic lesions in slices of all kinds of sources."""

import shutil
from dataclasses import replace
from pathlib import Path

from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import Volume, VolumeSet, lesion_of_mask, write_volume_set
from lesion_d2.data.volume_set.voxels import read_voxels, write_voxels
from lesion_d2.importers.inserted import InsertOptions, list_inserted
from lesion_d2.importers.running import run_import
from lesion_d2.scans.writing import write_nifti
from lesion_d2.structures.rle import decode_mask
from lesion_d2.utils.shards import Shard

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "deeplesion_sample"
SPACING = (1.5, 1.5, 5.0)
OPTIONS = InsertOptions(step_mm=20.0, median_diameter=20.0)


def make_voxels(seed: int = 0) -> np.ndarray:
    """Nine slices of a body with an organ and a lung, int16 with noise."""
    rows, columns = np.mgrid[:160, :160]
    hu = np.full((160, 160), -1000.0)
    for x, y, radius, value in ((80, 80, 70, -100), (52, 80, 24, 80), (108, 80, 22, -850)):
        hu[np.hypot(columns - x, rows - y) < radius] = value
    noise = 8 * np.random.default_rng(seed).normal(size=(9, 160, 160))
    return np.rint(hu + noise).astype(np.int16)


def real_mask() -> np.ndarray:
    mask = np.zeros((9, 160, 160), bool)
    mask[3:5, 70:84, 45:58] = True
    return mask


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A registered data set of two patients, one with a lesion."""
    root = tmp_path_factory.mktemp("sets") / "source_of_inserted"
    volumes = []
    for number in range(2):
        write_voxels(root / f"images/v{number}.b2nd", make_voxels(number))
        lesions = (lesion_of_mask(1, 1, real_mask()),) if number == 0 else ()
        volumes.append(
            Volume(f"v{number}", f"p{number}", f"images/v{number}.b2nd", (9, 160, 160), SPACING)
        )
        volumes[-1] = replace(volumes[-1], lesions=lesions)
    splits = {"train": ("p1",), "val": ("p0",)}
    write_volume_set(root, VolumeSet(("benign", "malignant"), tuple(volumes), splits=splits))
    names = register_volume_set(root)
    yield root
    for name in names:
        DatasetCatalog.remove(name)


def by_name(listing):
    return {case.name: case.read() for case in listing.cases}


CLASSES = {"malignant": (4, 5), "node": (2, 3, 7, 8)}


def test_lesions_are_added_and_those_of_the_source_stay(source, tmp_path):
    listing = list_inserted(["source_of_inserted_volumes"], OPTIONS, classes=CLASSES)
    assert listing.classes == ("benign", "malignant", "node")
    summary = run_import(listing, tmp_path / "mine", format="inserted", workers=1)
    assert summary.volume_set.splits == {"train": ("p1",), "val": ("p0",)}
    first, second = summary.volume_set.volumes
    real, *inserted = first.lesions
    assert replace(real, diameters_mm=None) == lesion_of_mask(1, 1, real_mask())
    assert len(inserted) > 1 and second.lesions
    for number, volume in enumerate((first, second)):
        before = make_voxels(number).astype(int)
        after = read_voxels(tmp_path / "mine" / volume.image)
        painted = np.zeros(before.shape, bool)
        for lesion in volume.lesions[1 - number :]:
            is_node = lesion.attributes["coarse_type"] not in (4, 5)
            assert lesion.attributes["inserted"] == 1 and lesion.category == 1 + is_node
            assert lesion.slices == sorted(lesion.masks)
            for n, counts in lesion.masks.items():
                mask = decode_mask({"size": [160, 160], "counts": counts}).astype(bool)
                assert not (mask & painted[n]).any()  # lesions lie apart
                painted[n] |= mask
                points = np.reshape(lesion.recist[n], (4, 2))
                expected = [*(points.min(0) - 5), *(points.max(0) + 5)]
                np.testing.assert_allclose(lesion.box_on(n), expected)
        assert np.abs(after - before)[painted].mean() > 15
        assert not (after != before)[real_mask()].any() or number == 1
        spans = [lesion.slices for lesion in volume.lesions[1 - number :]]
        assert all(span == list(range(span[0], span[-1] + 1)) for span in spans)
        assert max(map(len, spans)) > 1


def test_the_same_seed_gives_the_same_voxels_in_any_order(source):
    names, options = ["source_of_inserted_volumes"], replace(OPTIONS, copies=2)
    first = by_name(list_inserted(names, options, classes=CLASSES))
    assert list(first) == ["v0_1", "v0_2", "v1_1", "v1_2"]
    again = list_inserted(names, options, classes=CLASSES).cases[2].read()
    np.testing.assert_array_equal(again.voxels, first["v1_1"].voxels)
    assert again.volume == first["v1_1"].volume
    assert (first["v1_1"].voxels != first["v1_2"].voxels).any()
    other = list_inserted(names, replace(options, seed=1), classes=CLASSES).cases[2].read()
    assert (other.voxels != again.voxels).any()


def test_scans_without_annotations(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", make_voxels(), SPACING)
    options = replace(OPTIONS, box_margin=0.0, types=(5,), step_mm=100.0)
    listing = list_inserted([f"val={tmp_path}"], options)
    (case,) = listing.cases
    assert listing.classes == ("lesion",) and (case.split, case.patient) == ("val", case.name)
    found = case.read().volume
    assert found.spacing == pytest.approx(SPACING)
    for lesion in found.lesions:
        assert lesion.attributes["coarse_type"] == 5 and lesion.recist is None
        for n, counts in lesion.masks.items():
            ys, xs = np.nonzero(decode_mask({"size": [160, 160], "counts": counts}))
            box = (xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5)
            assert lesion.box_on(n) == box


def test_a_repeated_call_with_a_spacing_finds_its_data_set(tmp_path):
    """Options are compared with those in the file: JSON has no tuples."""
    (tmp_path / "scans").mkdir()
    write_nifti(tmp_path / "scans/a.nii.gz", make_voxels()[:1], SPACING)
    listing = list_inserted([str(tmp_path / "scans")], spacing=SPACING)
    part = Shard(1, 2)
    first, second = (
        run_import(listing, tmp_path / "mine", format="inserted", workers=1, shard=part)
        for _ in range(2)
    )
    assert first.written and not first.stood and second.stood


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real slices are not here")
def test_key_slices_of_deeplesion(tmp_path):
    """Slices beside a key slice show its lesion, which is not annotated there."""
    (tmp_path / "Images_png").mkdir()
    shutil.copytree(SAMPLE / "Images_png/000001_01_01", tmp_path / "Images_png/000001_01_01")
    header, row, *_ = (SAMPLE / "DL_info.csv").read_text().splitlines()
    (tmp_path / "DL_info.csv").write_text(f"{header}\n{row.replace('0.488281, ', '4.88281, ')}\n")
    listing = list_inserted([str(tmp_path)], replace(OPTIONS, types=(2,)))
    (case,) = listing.cases
    assert (case.name, case.patient, case.split) == ("000001_01_01", "000001", "test")
    lesion, region, *_ = case.read().volume.lesions
    assert lesion.slices == [6] and not lesion.ignore and lesion.recist
    # half of 21.957 px * 4.88281 mm is 53.6 mm, ten slices of 5 mm: to both ends
    assert region.ignore and region.slices == [n for n in range(13) if n != 6]


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (None, "--classes: found none for sources with the classes benign, malignant"),
        ({"a": (4,)}, r"--classes: found .* expected one class for each of the coarse types"),
    ],
)
def test_classes_that_are_missing(source, classes, line):
    with pytest.raises(ValueError, match=line):
        list_inserted(["source_of_inserted"], OPTIONS, classes=classes)


def test_sources_and_options_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="data set 'nothing', which is not registered"):
        list_inserted(["nothing"])
    with pytest.raises(ValueError, match=r"types: found .*, expected some of"):
        InsertOptions(types=(1,))
    with pytest.raises(ValueError, match="copies: found 0, expected 1 to 1000"):
        InsertOptions(copies=0)
    with pytest.raises(ValueError, match="--spacing: found"):
        list_inserted([str(tmp_path)], spacing=(1, 0, 1))
