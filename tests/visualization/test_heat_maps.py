"""Heat maps over slices, and tables of heat."""

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.visualization import (
    TRUTH_COLOR,
    HeatMap,
    heat_table,
    place,
)

import matplotlib as mpl
import numpy as np
import pytest
import torch
from made_up_pictures import SCALE, SIZE, colored, make_record, new_visualizer, on_edges


def test_a_heat_map_tints_the_slice_the_more_the_higher_its_values():
    values = np.zeros((SIZE, SIZE))
    values[:, 16:32], values[:, 32:48], values[:, 48:] = 0.5, 1.0, 7.0
    visualizer = new_visualizer()
    visualizer.draw_heat_map(HeatMap("map", values, 0.0, 1.0))
    image = visualizer.draw_truth_boxes(make_record([(20, 24, 40, 36)])).get_image()
    assert on_edges(colored(image, TRUTH_COLOR), (20, 24, 40, 36), width=1) == 1
    expected = []
    for share, opacity in ((0, 0.35), (0.5, 0.55), (1, 0.75), (1, 0.75)):
        color = 255 * np.array(mpl.colormaps["plasma"](0.72 * share)[:3])
        expected.append((1 - opacity) * 90 + opacity * color)
    columns = np.array([8, 24, 40, 56]) * SCALE
    assert np.abs(image[8 * SCALE, columns] - np.array(expected)).max() <= 2
    reds = image[8 * SCALE, columns[:3], 0].astype(int)
    assert (np.diff(reds) > 30).all()


@pytest.mark.parametrize("value", [0.3, 0.0])
def test_a_heat_map_of_one_value_has_the_first_color(value):
    visualizer, flat = new_visualizer(), np.full((SIZE, SIZE), value)
    image = visualizer.draw_heat_map(HeatMap("map", flat, value, value)).get_image()
    zero = new_visualizer().draw_heat_map(HeatMap("map", 0 * flat, 0.0, 1.0)).get_image()
    assert (image == zero).all()


def test_a_heat_map_has_a_value_a_pixel():
    with pytest.raises(
        ValueError, match=r"'map': found shape \(9, 64\), expected the slice's \(64, 64\)"
    ):
        new_visualizer().draw_heat_map(HeatMap("map", np.zeros((9, SIZE))))


def test_a_heat_map_lets_the_slice_through_where_it_has_no_values():
    values = np.full((SIZE, SIZE), np.nan)
    values[:, 16:32] = 1.0
    image = new_visualizer().draw_heat_map(HeatMap("map", values)).get_image()
    gray = (image == 90).all(axis=2)
    assert gray[:, : 16 * SCALE].all() and gray[:, 32 * SCALE :].all()
    assert not gray[:, 16 * SCALE : 32 * SCALE].any()


@pytest.mark.parametrize("size", [(20, 40), (19, 37)])
def test_features_of_an_image_that_is_no_multiple_of_their_stride_keep_their_place(size):
    cells = (torch.arange(10) + 0.5) * 4  # 5 x 10 of them, the last ones partly beyond the image
    geometry = {"image_size": size, "extent": (0, 0, *size[::-1]), "slice_size": size}
    x = place(cells.expand(5, -1), 4, **geometry)
    y = place(cells[:5, None].expand(-1, 10), 4, **geometry)
    assert x.shape == y.shape == size
    np.testing.assert_allclose(x[10, 2:37], np.arange(2, 37) + 0.5, atol=1e-4)
    np.testing.assert_allclose(y[2:18, 10], np.arange(2, 18) + 0.5, atol=1e-4)


def test_a_heat_table_has_a_row_and_a_column_a_label():
    values = np.array([[0.0, 0.5, 1.0, 0.25], [1.0, 0.75, 0.0, 0.5]])
    picture = heat_table(values, ["K-1", "K"], list("abcd"), width=400)
    assert picture.shape == (2 * 40 + 48 + 24, 400, 3)
    expected = 255 * mpl.colormaps["plasma"](0.72 * values)[..., :3]
    found = picture[np.ix_([20, 60], [80, 128, 176, 224])]
    assert np.abs(found - expected).max() <= 2
    for labels in (picture[:39, :50], picture[41:79, :50], picture[84:100, 56:104]):
        assert (labels > 200).all(axis=2).any()
    assert not picture[:80, 56 + 4 * 48 :].any()


def test_a_heat_table_of_many_columns_shows_all_of_them():
    values = np.linspace(0, 1, 300)[None]
    picture = heat_table(values, ["K"], [str(i) for i in range(300)], width=600)
    assert picture.shape[1] == 56 + 300 * 4
    expected = 255 * mpl.colormaps["plasma"](0.72 * values[0])[:, :3]
    assert np.abs(picture[20, 58::4] - expected).max() <= 2


def test_a_heat_table_wants_a_label_each():
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(1, 3\)"):
        heat_table(np.zeros((2, 3)), ["K"], list("abc"))
