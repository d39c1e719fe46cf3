"""Resampled volumes, against SimpleITK's linear interpolation."""

from lesion_d2.data.volume_set.form import Lesion, Volume, lesion_of_mask
from lesion_d2.importers import ImportedVolume
from lesion_d2.importers.resampling import resample
from lesion_d2.structures.rle import decode_mask

import numpy as np
import pytest
from made_up_scans import make_volume

SimpleITK = pytest.importorskip("SimpleITK")

SHAPE, SPACING = (6, 20, 24), (0.7, 0.9, 2.5)
ORIGIN, DIRECTION = (-30.5, 12.25, 100.0), (1.0, 0, 0, 0, 1, 0, 0, 0, -1)


def imported(lesions, voxels) -> ImportedVolume:
    volume = Volume("a", "a", "images/a.b2nd", SHAPE, SPACING, ORIGIN, DIRECTION, tuple(lesions))
    return ImportedVolume(voxels, volume, ("a line",))


def resample_by_itk(array: np.ndarray, volume: Volume) -> np.ndarray:
    image = SimpleITK.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    filter = SimpleITK.ResampleImageFilter()
    filter.SetInterpolator(SimpleITK.sitkLinear)
    filter.SetSize(volume.shape[::-1])
    filter.SetOutputSpacing(volume.spacing)
    filter.SetOutputOrigin(volume.origin)
    filter.SetOutputDirection(volume.direction)
    filter.UseNearestNeighborExtrapolatorOn()
    return SimpleITK.GetArrayFromImage(filter.Execute(image))


@pytest.mark.parametrize("spacing", [(0.5, 0.6, 1.25), (1.3, 0.9, 4.0), SPACING])
def test_voxels_and_masks_are_itks(spacing):
    voxels, (z, y, x) = make_volume(SHAPE), np.indices(SHAPE)
    masks = [
        (np.hypot(x - 8, y - 9) < 5) & (np.abs(z - 2) < 2),
        (x > 19) & (y < 4) & (z > 3),  # to three sides of the volume
    ]
    lesions = [
        lesion_of_mask(number, 1, mask, attributes={"malignancy": 2.5}, ignore=number == 2)
        for number, mask in enumerate(masks, start=1)
    ]
    result = resample(imported(lesions, voxels), spacing)
    volume = result.volume
    extent = np.multiply(SHAPE, SPACING[::-1])
    assert volume.shape == tuple(np.rint(extent / spacing[::-1]).astype(int))
    # The outer corner of the first voxel stays.
    corner = imported(lesions, voxels).volume.to_patient([[-0.5] * 3])
    assert np.allclose(volume.to_patient([[-0.5] * 3]), corner)

    inside = tuple(slice(1, -1) for _ in range(3))  # ITK cuts beyond the last centers otherwise
    expected = resample_by_itk(voxels, volume)
    assert np.abs(result.voxels - expected)[inside].max() <= 0.51
    assert result.left_out == ("a line",)
    for lesion, mask in zip(volume.lesions, masks, strict=True):
        found = np.zeros(volume.shape, bool)
        for number, counts in lesion.masks.items():
            found[number] = decode_mask({"size": volume.shape[1:], "counts": counts})
        share = resample_by_itk(mask, volume)
        decided = np.abs(share - 0.5) > 1e-3
        assert (found == (share >= 0.5))[inside][decided[inside]].all()
        assert (lesion.category, lesion.ignore) == (1, lesion.id == 2)
        assert lesion.attributes == {"malignancy": 2.5}


def test_lesions_that_vanish_are_told():
    mask = np.zeros(SHAPE, bool)
    mask[2, 5, 5] = True
    large = np.zeros(SHAPE, bool)
    large[1:4, 4:16, 4:16] = True
    lesions = [lesion_of_mask(1, 0, mask), lesion_of_mask(2, 0, large)]
    result = resample(imported(lesions, make_volume(SHAPE)), (2.1, 2.7, 5.0))
    (lesion,) = result.volume.lesions
    assert lesion.id == 1
    assert "a, lesion 1: no voxel of it is left at a spacing of 2.1 x 2.7 x 5 mm" in result.left_out


def test_volumes_larger_than_any_scan_are_refused():
    with pytest.raises(
        ValueError, match=r"a at 0\.001 x 0.9 x 2.5 mm: found 6 slices of 16800 x 20"
    ):
        resample(imported([], make_volume(SHAPE)), (0.001, 0.9, 2.5))


def test_lesions_need_masks():
    lesion = Lesion(1, 0, (2.0, 2, 1, 5, 5, 2))
    with pytest.raises(ValueError, match="a, lesion 1: found no masks"):
        resample(imported([lesion], make_volume(SHAPE)), (1, 1, 1))
