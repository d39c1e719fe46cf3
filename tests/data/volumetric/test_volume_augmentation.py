import math

from lesion_d2.data.transforms.augmentation import RandomAffine
from lesion_d2.data.volumetric.augmentation import RandomVolumePatch
from lesion_d2.data.volumetric.reading import ResampledVolume, array_record
from lesion_d2.data.volumetric.warp import VolumeWarp

import numpy as np
import pytest
from made_up_volumes import SHAPE, apply, made_up_voxels


def test_without_augmentation_patches_are_those_of_inference():
    volume = made_up_voxels()
    record = array_record(volume, (0.7, 0.8, 2.5))
    resampled = ResampledVolume(record, (0.9, 0.9, 1.0), (-1000.0, 500.0))
    patches = RandomVolumePatch(size=(30, 16, 16))
    np.random.seed(0)
    warp = patches.draw(SHAPE, resampled.shape, np.zeros((0, 6)))
    start = [-round(offset) for offset in (warp.z_offset, *warp.matrix[::-1, 2])]
    expected = resampled.read(start, warp.size)
    found = apply(warp, volume, -1000)
    # OpenCV's places are to 1/32 pixel.
    assert np.abs(found.astype(int) - expected).max() < 60
    assert np.abs(found.astype(int) - expected).mean() < 12
    nowhere = (expected == -1000).all(axis=(1, 2))
    assert nowhere.sum() == 30 - resampled.shape[0] and (found[nowhere] == -1000).all()


def test_foreground_patches_show_a_lesion_anywhere():
    patches = RandomVolumePatch(size=(4, 8, 8), foreground_prob=1.0)
    boxes = np.array([[20.5, 3.5, 4.5, 24.5, 6.5, 6.5], [1.5, 15.5, 0.5, 3.5, 17.5, 1.5]])
    np.random.seed(0)
    places = []
    for _ in range(60):
        warp = patches.draw(SHAPE, SHAPE, boxes)
        moved = warp.apply_boxes(boxes)
        shown = ((moved[:, :3] >= -0.5) & (moved[:, 3:] <= np.array([7.5, 7.5, 3.5]))).all(axis=1)
        assert shown.any()
        places.append((shown.argmax(), *moved[shown.argmax(), :3].round(3).tolist()))
    assert {number for number, *_ in places} == {0, 1} and len(set(places)) > 30
    anywhere = RandomVolumePatch(size=(4, 8, 8), foreground_prob=0.0)
    starts = [-anywhere.draw(SHAPE, SHAPE, boxes).matrix[0, 2] for _ in range(60)]
    assert min(starts) < 4 and max(starts) > 18


def test_small_volumes_lie_in_the_middle():
    patches = RandomVolumePatch(size=(16, 32, 32))
    warp = patches.draw((3, 24, 30), (3, 24, 30), np.zeros((0, 6)))
    volume = made_up_voxels((3, 24, 30))
    found = apply(warp, volume)
    assert np.array_equal(found[7:10, 4:28, 1:31], volume) or np.array_equal(
        found[6:9, 4:28, 1:31], volume
    )
    assert (found != -2000).sum() == volume.size


def test_draws_follow_the_seed_and_the_limits():
    patches = RandomVolumePatch(
        size=(8, 16, 16), flip_probs=(0.5, 0.5, 0.5), affine=RandomAffine(math.pi, 0, 0.2, 0)
    )

    def draw(seed: int) -> list[VolumeWarp]:
        np.random.seed(seed)
        return [patches.draw(SHAPE, (18, 24, 30), np.zeros((0, 6))) for _ in range(60)]

    warps, again, other = draw(1), draw(1), draw(2)
    assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(warps, again, strict=True))
    assert not np.array_equal(warps[0].matrix, other[0].matrix)
    scales = np.array([math.sqrt(abs(np.linalg.det(w.matrix[:, :2]))) for w in warps])
    assert 0.8 <= scales.min() < 0.85 and 1.15 < scales.max() <= 1.2
    assert np.abs([w.z_scale for w in warps]) == pytest.approx(2 * scales)
    mirrored = {(np.linalg.det(w.matrix[:, :2]) < 0, w.z_scale < 0) for w in warps}
    assert len(mirrored) == 4


def test_a_deformation_is_smooth_and_as_large_as_asked_for():
    patches = RandomVolumePatch(size=(16, 48, 48), elastic=2.0, elastic_grid=8)
    np.random.seed(0)
    found = patches.draw(SHAPE, SHAPE, np.zeros((0, 6))).displacement
    assert found.shape == (2, 16, 48, 48) and 0.4 < found.std() < 2
    assert all(np.abs(np.diff(found, axis=axis)).max() < 1.5 for axis in (1, 2, 3))


def test_values_change_as_far_as_asked_for():
    image = made_up_voxels()
    np.random.seed(0)
    assert RandomVolumePatch(size=SHAPE).change_values(image) is image
    brighter = RandomVolumePatch(size=SHAPE, brightness=50.0).change_values(image)
    (change,) = np.unique(brighter - image)
    assert 0 < abs(change) <= 50
    contrast = RandomVolumePatch(size=SHAPE, contrast=0.2).change_values(image)
    factor = contrast.std() / image.std()
    assert 0.8 <= factor <= 1.2 and abs(factor - 1) > 1e-3
    assert contrast.mean() == pytest.approx(image.mean(), abs=0.5)
    noise = RandomVolumePatch(size=SHAPE, noise=30.0).change_values(image) - image
    assert 0 < noise.std() <= 31 and abs(noise.mean()) < 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (8, 8)}, r"INPUT\.VOLUME\.PATCH_SIZE: found \(8, 8\), expected depth"),
        ({"foreground_prob": 2}, r"INPUT\.PATCH\.FOREGROUND_PROB: found \[2\], expected 0 to 1"),
        ({"flip_probs": (0, 0, -1)}, r"DEPTH_FLIP_PROB: found \(0, 0, -1\), expected 0 to 1"),
        ({"elastic": -1}, r"INPUT\.VOLUME\.ELASTIC: found -1, expected 0 or more"),
        ({"elastic_grid": 0}, r"INPUT\.VOLUME\.ELASTIC_GRID: found 0, expected 1 or more"),
    ],
)
def test_bad_options_name_their_key(options, message):
    with pytest.raises(ValueError, match=message):
        RandomVolumePatch(**{"size": (8, 8, 8), **options})
