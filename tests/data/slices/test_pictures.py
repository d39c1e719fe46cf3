import json
from pathlib import Path

from lesion_d2.data.slices.ct import read_slice, slice_size, slice_stack
from lesion_d2.data.slices.pictures import (
    open_picture,
    picture_path,
    picture_source,
    read_picture,
    stored_geometry,
    stored_slice_path,
)
from lesion_d2.data.transforms.borders import slice_files, volume_extent

import cv2
import nibabel
import numpy as np
import pytest
from PIL import Image

sitk = pytest.importorskip("SimpleITK")

HU = np.random.default_rng(0).integers(-1000, 1000, (10, 14)).astype(np.int16)


def write(file: Path, values: np.ndarray) -> Path:
    """By SimpleITK, which writes all types of values."""
    sitk.WriteImage(sitk.GetImageFromArray(values), str(file))
    return file


@pytest.mark.parametrize("name", ["a.png", "a.tif", "012.png", "a#1.png"])
def test_16_bits_are_hu_by_the_offset(tmp_path, name):
    file = write(tmp_path / name, (HU.astype(np.int32) + 1024).astype(np.uint16))
    path = picture_path(file, hu_offset=1024)
    assert (read_slice(path) == HU).all() and read_slice(path).dtype == np.int16
    assert slice_size(path) == (10, 14) and picture_source(path) == (str(file), None)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_8_bits_are_hu_by_the_window(tmp_path, name):
    values = np.arange(140, dtype=np.uint8).reshape(10, 14)
    file = tmp_path / name
    cv2.imwrite(str(file), values)
    decoded = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)  # JPEG loses something
    hu = read_slice(picture_path(file, hu_window=(-160, 240)))
    assert np.abs(hu - (-160 + decoded / 255 * 400)).max() <= 0.5
    assert (read_picture(file) == decoded).all()


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_signed_and_floating_point_tiffs_hold_hu(tmp_path, kind):
    values = HU.astype(kind) + (0.25 if kind == "float32" else 0)
    path = picture_path(write(tmp_path / "a.tiff", values))
    assert (read_slice(path) == HU).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_colors_that_are_grey(tmp_path, mode):
    values = np.arange(140, dtype=np.uint8).reshape(10, 14)
    Image.fromarray(values).convert(mode).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png") == values).all()


def test_ambiguous_grey_values_are_refused(tmp_path):
    png = write(tmp_path / "a.png", HU.view(np.uint16))
    with pytest.raises(
        ValueError, match=r"a\.png: found 16-bit values .* expected hu_offset .--hu-o"
    ):
        picture_path(png, hu_window=(0, 1))
    grey = write(tmp_path / "b.png", HU.astype(np.uint8))
    with pytest.raises(
        ValueError, match=r"b\.png: found 8-bit values .* expected hu_window .--hu-w"
    ):
        picture_path(grey, hu_offset=1024)
    path = picture_path(png, hu_offset=1024)
    write(tmp_path / "a.png", HU.astype(np.uint8))
    with pytest.raises(ValueError, match="found values of uint8, expected uint16"):
        read_slice(path)


def save(file, values, **options):
    Image.fromarray(values).save(file, **options)


def color(file):
    save(file, np.stack([HU.astype(np.uint8)] * 2 + [np.zeros((10, 14), np.uint8)], -1))


def transparent(file):
    save(file, np.full((10, 14, 4), 7, np.uint8))


def color16(file):
    cv2.imwrite(str(file), np.ones((10, 14, 3), np.uint16))


def truncated(file):
    save(file, HU.view(np.uint16))
    file.write_bytes(file.read_bytes()[:150])


def two_pages(file):
    pages = [Image.fromarray(HU.astype(np.uint8))] * 2
    pages[0].save(file, format="TIFF", save_all=True, append_images=pages[1:])


def inverted(file):
    save(file, HU.astype(np.uint8), format="TIFF", tiffinfo={262: 0})


def not_finite(file):
    save(file, np.full((10, 14), np.nan, np.float32), format="TIFF")


def integers32(file):
    save(file, HU.astype(np.int32), format="TIFF")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (color, r"found colors \(RGB\), expected grey values"),
        (transparent, "found transparent pixels"),
        (color16, "found a picture of RGB of uint16"),
        (truncated, "truncated PNG, its end chunk"),
        (two_pages, "found 2 images in one file"),
        (inverted, "found a TIFF in which 0 is white"),
        (not_finite, "found infinite values or NaN"),
        (integers32, "found a picture of int32"),
        (lambda file: file.write_text("no picture"), "found no readable picture"),
        (lambda file: save(file, np.ones((10, 14), bool)), "found a picture of bool"),
    ],
)
def test_a_picture_that_is_no_slice_is_refused(tmp_path, make, found):
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png: {found}") as error:
        read_slice(picture_path(tmp_path / "a.png", hu_offset=0, hu_window=(0, 1)))
    assert "\n" not in str(error.value)


def test_a_picture_is_its_own_neighbor(tmp_path):
    for number in (4, 5, 6):
        write(tmp_path / f"{number}.png", (HU.astype(np.int32) + 1000 * number).astype(np.uint16))
    path = picture_path(tmp_path / "5.png", hu_offset=0)
    options = {"interval": 2, "spacing_z": 1, "slice_range": (0, 0)}
    for channel in slice_stack(path, num_slices=3, **options):
        assert (channel == read_slice(path)).all()
    assert list(slice_files(Path(path).parent)) == [0]


# --- slices of volumes ----------------------------------------------------------------------------

VOLUME = np.random.default_rng(1).integers(-1000, 1000, (14, 10, 5)).astype(np.int16)  # x, y, k
FLIPPED = np.array([[0, 0.6, 0, 1], [-0.7, 0, 0, 2], [0, 0, 3, 4], [0, 0, 0, 1]])


def write_volume(folder: Path, name: str) -> Path:
    file = folder / name
    if name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(VOLUME, FLIPPED), file)
    else:
        image = sitk.GetImageFromArray(VOLUME.T)
        image.SetSpacing((0.7, 0.6, 3))
        image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, -1))
        sitk.WriteImage(image, str(file))
    return file


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.mha", "ct.nrrd"])
def test_slices_of_volumes_as_nibabel_and_itk_index_them(tmp_path, name):
    file = write_volume(tmp_path, name)
    for k in (0, 3):
        path = stored_slice_path(file, k)
        assert (read_slice(path) == VOLUME[:, :, k].T).all()
        assert slice_size(path) == (10, 14) and picture_source(path) == (str(file), k)
    assert stored_geometry(file) == ((5, 10, 14), (0.7, 0.6, 3))
    stack = slice_stack(path, num_slices=5, interval=3, spacing_z=3, slice_range=(0, 4))
    assert (stack == VOLUME.T[[1, 2, 3, 4, 4]]).all()
    assert list(slice_files(Path(path).parent)) == [0, 1, 2, 3, 4]
    assert volume_extent(str(Path(path).parent), (0, 4), (0.7, 0.6)) is not None
    with pytest.raises(FileNotFoundError, match="no such CT slice"):
        read_slice(stored_slice_path(file, 5))


def test_what_is_read_belongs_to_the_caller_and_follows_the_file(tmp_path):
    path = stored_slice_path(write_volume(tmp_path, "ct.nii.gz"), 0)
    read_slice(path)[:] = 0
    assert (read_slice(path) == VOLUME[:, :, 0].T).all()
    changed = nibabel.Nifti1Image(VOLUME - 1, FLIPPED)
    nibabel.save(changed, tmp_path / "b.nii.gz")
    (tmp_path / "b.nii.gz").replace(tmp_path / "ct.nii.gz")
    assert (read_slice(path) == VOLUME[:, :, 0].T - 1).all()


def test_size_and_type_are_read_from_the_header(tmp_path):
    file = write(tmp_path / "a.tif", HU.view(np.uint16))
    picture = open_picture(file)
    assert (picture.size, picture.kind) == ((10, 14), "uint16")
    with pytest.raises(FileNotFoundError, match="no such picture"):
        open_picture(tmp_path / "b.tif")
    (tmp_path / "c.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="found no readable picture"):
        open_picture(tmp_path / "c.json")
