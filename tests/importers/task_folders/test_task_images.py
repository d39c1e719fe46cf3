import argparse

from lesion_d2.importers.task_folders.images import (
    Values,
    add_value_arguments,
    find_image,
    image_stem,
    open_image,
    values_of,
)

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from made_up_tasks import affine_of, save


def test_values_become_hu(tmp_path):
    stored = np.arange(4096, dtype=np.uint16).reshape(16, 16, 16)
    file = save(tmp_path / "a.nii", stored, np.eye(4))
    turned = stored.T[::-1, ::-1, ::-1].astype(int)
    image = open_image(file)
    assert np.array_equal(Values(hu_offset=1024).read(image)[0], turned - 1024)
    window, _ = Values(hu_window=(-1000, 2000)).read(image)
    assert np.array_equal(window, np.rint(turned / 65535 * 3000 - 1000))
    with pytest.raises(ValueError, match=r"a\.nii: found values from 0 to 4095.*--hu-offset"):
        Values().read(image)
    signed = open_image(save(tmp_path / "b.nii", stored.astype(np.int16), np.eye(4)))
    with pytest.raises(
        ValueError, match=r"b\.nii: found values of int16, expected uint8 or uint16"
    ):
        Values(hu_window=(0, 1)).read(signed)
    flat = open_image(save(tmp_path / "c.nii", np.ones((4, 4, 4), np.int16), np.eye(4)))
    with pytest.raises(ValueError, match=r"c\.nii: found 1 in nearly all voxels"):
        Values(percentiles_to_hu=(-1000, 1000)).read(flat)
    lost = open_image(save(tmp_path / "d.nii", np.full((4, 4, 4), np.nan, np.float32), np.eye(4)))
    with pytest.raises(ValueError, match=r"d\.nii: found infinite values or NaN"):
        Values(percentiles_to_hu=(-1000, 1000)).read(lost)


def test_values_are_told_in_one_way():
    with pytest.raises(ValueError, match="found hu_offset and hu_window, expected one of them"):
        Values(hu_offset=1, hu_window=(0, 1))
    with pytest.raises(ValueError, match=r"hu_window: found \(240, -160\), expected two HU"):
        Values(hu_window=(240, -160))
    parser = argparse.ArgumentParser()
    add_value_arguments(parser)
    found = values_of(parser.parse_args(["--hu-window", "-160", "240"]))
    assert found == Values(hu_window=(-160.0, 240.0)) and found.are_told
    assert values_of(parser.parse_args([])) == Values()


def test_images_of_itk_lie_where_their_nifti_lies(tmp_path):
    stored = np.random.default_rng(0).integers(-1000, 500, (5, 6, 7)).astype(np.int16)
    file = save(tmp_path / "a.nii.gz", stored, affine_of("PIL", 6, stored.shape))
    expected = open_image(file)
    for ending in ("mha", "nrrd"):
        sitk.WriteImage(sitk.ReadImage(str(file)), str(tmp_path / f"b.{ending}"))
        found = open_image(tmp_path / f"b.{ending}")
        assert np.allclose(found.origin, expected.origin, atol=1e-3)
        assert np.array_equal(Values().read(found)[0], Values().read(expected)[0])
        with pytest.raises(
            ValueError, match=rf"b\.{ending}: found no NIfTI file, expected one with 2"
        ):
            open_image(tmp_path / f"b.{ending}", (0, 2))


def test_a_slice_that_lies_along_the_patient_is_refused(tmp_path):
    file = save(tmp_path / "a.nii", np.zeros((1, 20, 30), np.int16), np.eye(4))
    with pytest.raises(ValueError, match=r"a\.nii: found 30 slices of 1 x 20 pixels, expected a s"):
        open_image(file)


def test_names_of_images(tmp_path):
    assert image_stem("a_0000.nii.gz") == "a_0000" and image_stem("a.b.NRRD") == "a.b"
    assert image_stem("._a.nii.gz") is None and image_stem("a.json") is None
    assert find_image(tmp_path, "a") is None
    for name in ("a.nii.gz", "a.mha"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"found a\.nii\.gz and a\.mha, expected one of them"):
        find_image(tmp_path, "a")
    (tmp_path / "a.mha").unlink()
    assert find_image(tmp_path, "a") == str(tmp_path / "a.nii.gz")


def test_nifti_of_two_axes_and_of_no_thickness(tmp_path):
    pixels = np.arange(-15, 15, dtype=np.int16).reshape(6, 5)
    image = nibabel.Nifti1Image(pixels, None)
    image.header["pixdim"][1:3] = 0.5, 0.25
    nibabel.save(image, tmp_path / "a.nii.gz")
    opened = open_image(tmp_path / "a.nii.gz")
    assert opened.shape == (1, 5, 6) and opened.spacing[:2] == (0.5, 0.25)
    voxels, told = Values().read(opened)
    assert sorted(voxels.ravel()) == list(range(-15, 15))
    assert "the file does not say how it lies in the patient" in told[0]
    assert "found -15 as the lowest value, expected HU" in told[1] and "a.nii.gz: " in told[1]
