import os
import shutil
from pathlib import Path

from lesion_d2.config import get_lesion_config
from lesion_d2.data.dataset_options import DatasetOptions, read_dataset
from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.data.formats.problems import ProblemsError
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.prepared import form
from lesion_d2.data.prepared.form import prepared_index, read_prepared, write_prepared
from lesion_d2.data.prepared.slices import prepared_file, with_prepared_slices
from lesion_d2.data.slices.ct import read_slice, slice_size, slice_stack
from lesion_d2.data.transforms.borders import slice_files
from lesion_d2.tools.prepare_slices import prepare_slices

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "deeplesion_sample"
SIZE = (48, 64)
PREPARED = DatasetOptions(prepared_slices=True)


def _write(folder, numbers):
    """Slices of noise, whose extremes are all that 16 bits have."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        pixels = rng.integers(30_000, 34_000, SIZE).astype(np.uint16)
        pixels[0, :2] = 0, 65535
        cv2.imwrite(str(folder / f"{number:03d}.png"), pixels)


@pytest.fixture
def series(tmp_path):
    """A series with a gap: its folder of PNG files, and its file of prepared slices."""
    folder = tmp_path / "Images_png" / "000001_01_01"
    _write(folder, [8, 9, 10, 11, 13])
    prepare_slices(tmp_path, workers=1)
    return folder, tmp_path / "Images_prepared" / "000001_01_01.slices"


def test_slices_sizes_and_names_are_those_of_the_png_files(series):
    folder, file = series
    files, prepared = slice_files(folder), slice_files(str(file))
    assert list(files) == list(prepared) == [8, 9, 10, 11, 13]
    for number, png in files.items():
        read = read_slice(prepared[number])
        assert read.dtype == np.int16 and np.array_equal(read, read_slice(png))
        assert slice_size(prepared[number]) == SIZE
    with pytest.raises(FileNotFoundError, match=r"012\.png: no such CT slice"):
        read_slice(file / "012.png")
    with pytest.raises(ValueError, match=r"found 64 x 48 pixels, expected 48 x 64"):
        read_slice(file / "008.png", SIZE[::-1])


@pytest.mark.parametrize("number", [8, 10, 13])
def test_stacks_are_the_same_at_gaps_and_ends(series, number):
    folder, file = series
    options = {"num_slices": 7, "interval": 2.0, "spacing_z": 1.5, "window": (-1000.0, 1000.0)}
    expected = slice_stack(folder / f"{number:03d}.png", **options)
    assert np.array_equal(slice_stack(file / f"{number:03d}.png", **options), expected)


def test_a_png_file_that_changed_is_told(series):
    folder, file = series
    os.utime(folder / "009.png", ns=(0, 10**18))
    for read in (read_slice, slice_size):
        with pytest.raises(ValueError, match=r"Images_png/000001_01_01/009.png: has changed since"):
            read(file / "009.png")
    assert read_slice(file / "008.png").shape == SIZE
    with pytest.raises(ValueError, match=r"009\.png: has changed since"):
        slice_stack(file / "008.png", num_slices=3, interval=0, spacing_z=1.0)


def test_a_png_file_that_came_or_went_is_told(series):
    folder, file = series
    _write(folder, [12])
    options = {"num_slices": 3, "interval": 0.0, "spacing_z": 1.0}
    for read in (
        lambda: slice_stack(file / "011.png", **options),
        lambda: read_slice(file / "012.png"),
        lambda: slice_files(str(file)),
    ):
        with pytest.raises(ValueError, match=r"012\.png: was added since .*prepare_slices again"):
            read()
    (folder / "012.png").unlink()
    (folder / "009.png").unlink()
    for read in (lambda: slice_stack(file / "008.png", **options), lambda: slice_files(str(file))):
        with pytest.raises(ValueError, match=r"009\.png: was removed since"):
            read()


def test_every_damaged_byte_is_told_with_its_file(series):
    _, file = series
    data, index = file.read_bytes(), prepared_index(file)
    starts = {entry.start: name for name, entry in index.items()}
    first = min(starts)
    for place in [*range(0, first, 7), *(start + 40 for start in starts), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        os.utime(file, ns=(0, 10**18 + place))  # a write within the clock's tick has the same time
        hit = [name for start, name in starts.items() if start <= place]
        match = f"slices/{hit[-1]}.png: damaged" if hit else "000001_01_01.slices: "
        with pytest.raises(ValueError, match=match):
            slice_stack(file / "010.png", num_slices=7, interval=0.0, spacing_z=1.0)
    for length in (0, 10, first, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"000001_01_01\.slices: .*prepare_slices again"):
            slice_size(file / "010.png")


def test_a_chunk_of_another_size_is_not_decoded(tmp_path, monkeypatch):
    folder = tmp_path / "Images_png" / "a"
    _write(folder, [1])
    file = tmp_path / "Images_prepared" / "a.slices"
    write_prepared(file, {"1": folder / "001.png"})
    larger = {name: e._replace(size=(1, 3073)) for name, e in prepared_index(file).items()}
    monkeypatch.setattr(form, "prepared_index", lambda file: larger)
    with pytest.raises(ValueError, match="found 6144 bytes of pixels, expected 6146"):
        read_prepared(file, ["1"])


def test_two_names_of_one_number_are_refused(tmp_path):
    folder = tmp_path / "Images_png" / "a"
    _write(folder, [1])
    shutil.copy(folder / "001.png", folder / "1.png")
    with pytest.raises(ProblemsError, match="files with this number, expected one"):
        prepare_slices(tmp_path, workers=1)


def test_what_the_index_cannot_hold_is_refused(tmp_path, monkeypatch):
    _write(tmp_path, [1, 2])
    file, png = tmp_path / "a.slices", tmp_path / "001.png"
    with pytest.raises(ValueError, match=r"001\.png: found 17 digits, expected 16 at most"):
        write_prepared(file, {"1".zfill(17): png})
    monkeypatch.setattr(form, "MAX_SLICES", 1)
    with pytest.raises(ValueError, match=r"a\.slices: found 2 slices, expected 1 to 1"):
        write_prepared(file, {"001": png, "002": tmp_path / "002.png"})
    assert not file.exists()


# --- data sets ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared_sample(tmp_path_factory):
    """The folder of a real data set, of which the slices around key slices are prepared."""
    if not SAMPLE.is_dir():
        pytest.skip("needs shared/data/deeplesion_sample")
    root = tmp_path_factory.mktemp("sample")
    shutil.copy(SAMPLE / "DL_info.csv", root)
    (root / "Images_png").symlink_to(SAMPLE / "Images_png")
    near = {}
    for image in load_deeplesion(root / "DL_info.csv", root / "Images_png", None):
        key = Path(image["file_name"])
        for number in range(int(key.stem) - 2, int(key.stem) + 3):
            png = key.with_stem(f"{number:03d}")
            if png.exists():
                near.setdefault(key.parent, {})[png.stem] = png
    for folder, pngs in near.items():
        write_prepared(prepared_file(folder), dict(sorted(pngs.items())))
    return root


@pytest.fixture
def sample(prepared_sample, tmp_path, registered):
    """The name of the data set, in a folder of its own."""
    root = shutil.copytree(prepared_sample, tmp_path / "sample", symlinks=True)
    registered("prepared_sample", str(root), None)
    return "prepared_sample"


def _samples(dicts):
    cfg = get_lesion_config()
    cfg.MODEL.MASK_ON, cfg.INPUT.PSEUDO_MASK = True, "grabcut"
    mapper = LesionDatasetMapper(cfg, True)
    np.random.seed(0)
    return [mapper.load(image) for image in dicts[:2]]


def test_real_samples_are_the_same_bits_through_the_mapper(sample):
    png = DatasetCatalog.get(sample)
    prepared = read_dataset(sample, PREPARED)
    assert all("/Images_prepared/" in image["file_name"] for image in prepared)
    assert [{**i, "file_name": ""} for i in prepared] == [{**i, "file_name": ""} for i in png]
    for a, b in zip(_samples(prepared), _samples(png), strict=True):
        assert torch.equal(a["image"], b["image"]) and a["image"].dtype == torch.int16
        found, expected = a["instances"], b["instances"]
        assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)
        assert torch.equal(found.gt_masks.tensor, expected.gt_masks.tensor)
    assert DatasetCatalog.get(sample) == png


def test_series_that_are_not_prepared_are_told_before_any_work(sample):
    prepared = read_dataset(sample, PREPARED)
    file, other = sorted({Path(image["file_name"]).parent for image in prepared})[:2]
    file.unlink()
    other.write_bytes(b"\0" * 100)
    with pytest.raises(ProblemsError) as error:
        read_dataset(sample, PREPARED)
    assert f"{file}: no such file of prepared slices" in str(error.value)
    assert f"{other}: found no prepared slices" in str(error.value)
    for damaged in (file, other):  # one line for all slices of a series
        folder = damaged.parents[1] / "Images_png" / damaged.stem
        slices = [{"file_name": os.fspath(folder / f"{n:03d}.png")} for n in range(5)]
        with pytest.raises(ProblemsError) as error:
            with_prepared_slices(sample, slices)
        assert len(error.value.problems) == 1


def test_volumes_files_stay_as_they_are_beside_prepared_slices(sample):
    png = DatasetCatalog.get(sample)[0]
    file = "root/Images_nifti/000001_01_01_103-115.nii.gz/103.png"
    with pytest.raises(ProblemsError, match="found no image in Images_png"):
        with_prepared_slices(sample, [{"file_name": file}])
    nifti, prepared = with_prepared_slices(sample, [{"file_name": file}, png])
    assert nifti == {"file_name": file}
    assert prepared["file_name"] == read_dataset(sample, PREPARED)[0]["file_name"]


def test_data_sets_in_other_layouts_have_none():
    DatasetCatalog.register("made_up_layout", list)
    try:
        assert read_dataset("made_up_layout") == []
        with pytest.raises(ValueError, match=r"made_up_layout: .* expected one in DeepLesion's"):
            read_dataset("made_up_layout", PREPARED)
    finally:
        DatasetCatalog.remove("made_up_layout")
        MetadataCatalog.remove("made_up_layout")
