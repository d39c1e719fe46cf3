"""Measures of slices and lesions, on slices of which everything is known."""

import json

from lesion_d2.data.transforms.borders import find_body
from lesion_d2.tools.compare_phantoms.__main__ import main
from lesion_d2.tools.compare_phantoms.blobs import find_blobs
from lesion_d2.tools.compare_phantoms.measures import (
    flat_patches,
    measure_lesion,
    measure_slice,
    noise_spectrum,
    rise_width,
)

import cv2
import numpy as np
import pytest

ROWS, COLUMNS = np.mgrid[:256, :256]


def make_slice(*, blur=2.0, noise=0.0, lesion=0.0, texture=0.0) -> np.ndarray:
    """Fat (-100 HU) around soft tissue (60 HU), with a lesion of radius 12 at (100, 120)."""
    hu = np.full((256, 256), -1000.0)
    from_middle = np.hypot(COLUMNS - 128, ROWS - 128)
    hu[from_middle < 100], hu[from_middle < 80] = -100, 60
    rng = np.random.default_rng(0)
    grain = cv2.GaussianBlur(rng.normal(size=hu.shape), (0, 0), 2)
    hu += np.where(np.hypot(COLUMNS - 100, ROWS - 120) < 12, lesion + texture * grain, 0)
    return cv2.GaussianBlur(hu, (0, 0), blur) + noise * rng.normal(size=hu.shape)


def test_level_and_frequency_of_white_noise():
    found = measure_slice(make_slice(noise=10))
    # The flattest 30 % of the patches have a little less than all, and lost three parameters.
    assert 9 < found.noise < 10
    assert found.spectrum.sum() == pytest.approx(1)
    # But for the mean and the slopes, white noise has as much of all frequencies.
    np.testing.assert_allclose(found.spectrum[2:], found.spectrum[2:].mean(), rtol=0.2)


def test_spectrum_of_one_wave():
    wave = np.sin(2 * np.pi * 3 / 16 * np.arange(16)) * np.ones((16, 1))
    spectrum = noise_spectrum(wave[None])
    # The ring of three cycles has 16 of 256 frequencies; two of them hold all the power.
    assert spectrum[3] == pytest.approx(1)


def test_correlated_noise_has_a_lower_frequency():
    white = np.random.default_rng(0).normal(size=(256, 256))
    flat = make_slice()
    sharp = measure_slice(flat + 10 * white).frequency
    soft = measure_slice(flat + 30 * cv2.GaussianBlur(white, (0, 0), 1.5)).frequency
    assert soft < 0.6 * sharp


def test_tissues_body_and_table():
    hu = make_slice(blur=0.5)
    hu[240:243, 60:180] = 0  # a table
    found = measure_slice(hu)
    assert found.fat == pytest.approx(-100, abs=5)
    assert found.soft == pytest.approx(60, abs=5)
    assert found.body == pytest.approx(np.pi * 100**2 / 256**2, rel=0.01)
    assert found.table == pytest.approx(3 * 120 / 256**2, rel=0.01)
    assert found.histogram.sum() == pytest.approx(1, abs=0.01)


def test_a_slice_of_air():
    hu = np.full((64, 64), -1000.0)
    assert not find_body(hu).any()
    assert measure_slice(hu) is None


def test_no_patch_where_nothing_is_flat():
    hu = np.full((64, 64), -100.0)
    assert flat_patches(hu, np.ones_like(hu, bool)).shape == (0, 16, 16)
    assert np.isnan(measure_slice(hu).noise)
    assert measure_slice(hu).spectrum is None


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_width_of_the_skin(blur):
    """A blurred edge is the integral of a Gaussian: 10 to 90 % of it are 2.563 of its SD."""
    assert measure_slice(make_slice(blur=blur)).skin == pytest.approx(2.563 * blur, rel=0.15)


def test_width_of_a_ramp():
    ramp = np.concatenate([np.zeros(5), np.arange(11), np.full(5, 10)])
    assert rise_width(ramp, 0.5) == pytest.approx(4)  # 8 of 10 steps of half a unit
    assert np.isnan(rise_width(np.ones(9), 1.0))


@pytest.mark.parametrize("contrast", [-40.0, 55.0])
def test_a_lesions_contrast(contrast):
    hu = make_slice(lesion=contrast, blur=1.0)
    box = np.array([83.0, 103, 118, 138])  # its pixels from 88 to 112, and 5 on each side
    found = measure_lesion(hu, box, margin=5)
    assert found.inside == pytest.approx(60 + contrast, abs=1)
    assert found.contrast == pytest.approx(contrast, abs=1)
    assert found.side == 35
    assert found.uneven < 0.5
    # Rings are a pixel wide, so an edge of 2.6 pixels is no wider than 4.
    assert 1.5 < found.edge < 4


def test_soft_edges_and_uneven_lesions_are_told():
    box = np.array([83.0, 103, 118, 138])
    sharp = measure_lesion(make_slice(lesion=-50, blur=0.7), box, margin=5)
    soft = measure_lesion(make_slice(lesion=-50, blur=3.0), box, margin=5)
    assert soft.edge > sharp.edge + 2
    uneven = measure_lesion(make_slice(lesion=-50, texture=100, blur=0.7), box, margin=5)
    assert uneven.uneven > 5 * sharp.uneven


def test_a_lesion_that_nobody_sees_has_no_edge():
    found = measure_lesion(make_slice(), np.array([83.0, 103, 118, 138]), margin=5)
    assert found.contrast == pytest.approx(0, abs=0.1)
    assert np.isnan(found.edge)


def test_a_lesion_of_no_pixels():
    assert measure_lesion(make_slice(), np.array([100.0, 100, 111, 111]), margin=5) is None


def test_the_tool_prints_and_draws_the_comparison(tiny_phantom, tmp_path, capsys):
    assert main(["phantom_test", "--output", str(tmp_path), "--workers", "1"]) == 0
    assert "lesion: contrast, HU" in capsys.readouterr().out
    found = json.loads((tmp_path / "comparison.json").read_text())["phantom_test"]
    assert found["lesions"] > 0
    low, middle, high = found["lesion: longer side, pixels"].values()
    assert 4 < low <= middle <= high < 64
    picture = cv2.imread(str(tmp_path / "comparison.png"))
    assert picture is not None and picture.std() > 10


def test_a_name_that_nobody_registered(capsys):
    assert main(["nothing_train"]) == 1
    assert "nothing_train" in capsys.readouterr().err


@pytest.mark.parametrize("contrast", [-40, 40])
def test_the_strongest_blob_is_the_disc(contrast):
    hu = np.full((96, 96), 60.0) + np.random.default_rng(0).normal(size=(96, 96))
    y, x = np.mgrid[:96, :96]
    hu[np.hypot(x - 40, y - 55) < 9] += contrast
    boxes, scores = find_blobs(hu, margin=5)
    # A disc answers most to sigma = r / sqrt(2); the scales are a quarter apart.
    np.testing.assert_allclose(boxes[0], [26, 41, 54, 69], atol=1.5)
    assert len(boxes) == len(scores) == 100 and (np.diff(scores) <= 0).all()
    assert scores[0] > 3 * scores[1]  # which is of the noise


def test_a_flat_slice_has_no_blobs():
    boxes, scores = find_blobs(np.zeros((32, 32)), margin=5)
    assert boxes.shape == (0, 4) and scores.shape == (0,)
