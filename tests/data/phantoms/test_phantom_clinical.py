"""Phantoms that look like clinical CT: soft lesions, coarse painting, noise in mm."""

import copy
import json
from dataclasses import replace

from lesion_d2.data.phantoms.anatomy import paint_body, sample_body
from lesion_d2.data.phantoms.lesions import LESION_TYPES, sample_lesion
from lesion_d2.data.phantoms.looks import LOOKS
from lesion_d2.data.phantoms.phantom import MIN_CONTRAST, PhantomOptions, Series, write_phantom
from lesion_d2.data.phantoms.scanner import ClinicalScanner
from lesion_d2.data.phantoms.shapes import BOWEL, FAT, Tubes
from lesion_d2.data.phantoms.tissues import sample_clinical_tissues

import cv2
import numpy as np
import pytest
from deeplesion_rows import read_rows
from pycocotools import mask as coco_mask

LIVER_TYPE = next(kind for kind in LESION_TYPES if kind.coarse_type == 4)
OPTIONS = {"size": 192, "median_diameter": 16.0, "mottle_hu": 5.0, "appearance": "clinical"}


def test_an_appearance_that_there_is_not():
    with pytest.raises(ValueError, match="appearance: found 'pretty', expected 'mottled' or"):
        PhantomOptions(appearance="pretty")


@pytest.mark.parametrize("coarse_type", LOOKS)
def test_shares_of_looks_are_of_the_type(coarse_type):
    assert sum(look.share for look in LOOKS[coarse_type]) == pytest.approx(1)
    assert coarse_type in {kind.coarse_type for kind in LESION_TYPES}


@pytest.mark.parametrize("pixel", [0.75, 1.5])
def test_noise_has_its_size_in_mm(pixel):
    """A pixel twice as wide is the mean of four pixels."""
    scanner, rng = ClinicalScanner(noise=10.0, kernel=0.45), np.random.default_rng(0)
    noise = scanner.make_noise(rng, 512, pixel)
    if pixel == 0.75:
        assert noise.std() == pytest.approx(10, rel=1e-3)
    else:
        fine = scanner.make_noise(rng, 1024, 0.75)
        averaged = cv2.resize(fine, (512, 512), interpolation=cv2.INTER_AREA)
        assert noise.std() == pytest.approx(averaged.std(), rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_lesions_are_seen_and_masks_lie_on_them(seed):
    rng = np.random.default_rng(seed)
    series = Series(rng, sample_body(rng, clinical=True), PhantomOptions(**OPTIONS))
    before, _ = series.render(series.key, [])
    after, masks = series.render(series.key, series.lesions)
    assert after.shape == masks[0].shape == (192, 192)
    for mask in masks:
        assert np.abs(after - before)[mask].mean() >= 0.8 * MIN_CONTRAST["clinical"]
    far = cv2.dilate(np.any(masks, axis=0).astype(np.uint8), np.ones((13, 13))) == 0
    assert np.abs(after - before)[far].max() < 2


@pytest.fixture(scope="module")
def liver_lesion():
    """A painted liver, and an even lesion of 50 HU in it."""
    grid = (np.arange(128, dtype=np.float32) - 63.5) * 0.5
    rng = np.random.default_rng(0)
    body, tissues = sample_body(rng, clinical=True), sample_clinical_tissues(rng)
    canvas = paint_body(body, grid - 60, grid - 12, 255.0, tissues)
    free = np.zeros((128, 128), bool)
    lesion = sample_lesion(rng, LIVER_TYPE, canvas, free, 16.0, 0.0, clinical=True)
    even = {"hu": 50.0, "relative": False, "core": 0.0, "mottle_hu": 0.0}
    return canvas, replace(lesion, **even, softness=0.0, rim=0.0)


def test_a_soft_edge_goes_over_and_leaves_the_mask(liver_lesion):
    """The cover of a soft lesion crosses a half where that of a sharp one does."""
    canvas, lesion = liver_lesion
    sharp, soft = (replace(lesion, softness=width).paint(copy_of(canvas)) for width in (0.0, 4.0))
    assert ((sharp > 0.5) == (soft > 0.5)).all()
    assert ((soft > 0.05) & (soft < 0.95)).sum() > 3 * ((sharp > 0.05) & (sharp < 0.95)).sum()


def test_a_rim_is_brighter_than_the_middle(liver_lesion):
    canvas, lesion = copy_of(liver_lesion[0]), replace(liver_lesion[1], rim=30.0)
    distance = lesion.inside(canvas.x, canvas.y[:, None], canvas.z)
    lesion.paint(canvas)
    shell = 0.125 * lesion.radius
    np.testing.assert_allclose(canvas.hu[np.abs(distance + shell) < 0.1 * shell], 80, atol=4)
    np.testing.assert_allclose(canvas.hu[distance < -2 * shell], 50, atol=1e-3)


def test_a_lesion_of_the_liver_ends_at_its_surface(liver_lesion):
    """On it, a lesion leaves what is beside the liver as it was."""
    canvas, lesion = copy_of(liver_lesion[0]), liver_lesion[1]
    canvas.labels = canvas.labels.copy()
    canvas.labels[:, 64:] = FAT
    moved = replace(lesion, center=(canvas.x[63], canvas.y[64], canvas.z))
    before, free = canvas.hu.copy(), replace(moved, within=()).paint(copy_of(canvas))
    cover = moved.paint(canvas)
    assert free[:, 65:].max() == 1 and cover[:, 65:].max() == 0
    assert (canvas.hu[:, 65:] == before[:, 65:]).all()
    liver = np.isin(canvas.labels, lesion.within)
    inside = cv2.erode(liver.astype(np.uint8), np.ones((3, 3))) > 0
    assert free[inside].max() == 1
    np.testing.assert_allclose(cover[inside], free[inside], atol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_bowel_lies_beside_the_liver(seed):
    """What is painted later lies over what was before."""
    stages = sample_body(np.random.default_rng(seed), clinical=True).stages
    livers = [i for i, stage in enumerate(stages) if getattr(stage, "tissue", "") == "liver"]
    loops = [i for i, s in enumerate(stages) if isinstance(s, Tubes) and s.label == BOWEL]
    assert len(livers) == 2 and max(loops) < min(livers)


def copy_of(canvas):
    copied = copy.copy(canvas)
    copied.hu = canvas.hu.copy()
    return copied


def test_boxes_lie_around_masks(tmp_path):
    write_phantom(tmp_path / "set", num_patients=3, seed=2, workers=1, **OPTIONS | {"size": 96})
    rows = read_rows(tmp_path / "set")
    masks = json.loads((tmp_path / "set" / "true_masks.json").read_text())
    for line, row in enumerate(rows, start=2):
        mask = coco_mask.decode(masks[row["File_name"][:-4]][str(line)])
        found_rows, found_columns = np.nonzero(mask)
        extent = found_columns.min(), found_rows.min(), found_columns.max(), found_rows.max()
        box = np.array([float(value) for value in row["Bounding_boxes"].split(",")])
        # Five pixels around the ends of the diameters, which lie near the mask's extent.
        np.testing.assert_allclose(box - (-5, -5, 5, 5), extent, atol=3)
