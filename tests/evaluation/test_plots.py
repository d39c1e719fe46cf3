import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation import froc_curve, plot_froc

import cv2
import numpy as np
import pytest


def example_curve(num_errors):
    box = np.array([[0.0, 0, 10, 10]])
    pred = [np.concatenate([box, np.repeat(box + 50, num_errors, axis=0)])] * 2
    scores = [np.linspace(0.9, 0.1, num_errors + 1), np.linspace(0.2, 0.8, num_errors + 1)]
    return froc_curve(pred, scores, [box, box])


def test_draws_curves_and_bands(tmp_path):
    curves = {"first": example_curve(20), "second": example_curve(5)}
    rates = np.geomspace(0.125, 16, 9)
    low = curves["first"].at(rates) - 0.1
    plot_froc(curves, tmp_path / "plain.png")
    plot_froc(curves, tmp_path / "band.png", bands={"first": (rates, low, low + 0.2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["band.png", "plain.png"]
    plain, band = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("plain", "band"))
    assert plain.shape == band.shape and plain.shape[0] > 400
    assert 0.01 < (plain != band).any(axis=2).mean() < 0.5


def test_nothing_is_left_of_a_picture_that_failed(tmp_path):
    with pytest.raises(ValueError, match="band 'other' has no curve, expected one of first"):
        plot_froc({"first": example_curve(3)}, tmp_path / "a.png", bands={"other": ([], [], [])})
    with pytest.raises(FileNotFoundError):
        plot_froc({"first": example_curve(3)}, tmp_path / "nowhere" / "a.png")
    assert list(tmp_path.iterdir()) == []
