import re
import zlib
from contextlib import contextmanager

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.evaluation import froc_curve, plot_froc, plots

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure


def example_curve(num_errors):
    box = np.array([[0.0, 0, 10, 10]])
    pred = [np.concatenate([box, np.repeat(box + 50, num_errors, axis=0)])] * 2
    scores = [np.linspace(0.9, 0.1, num_errors + 1), np.linspace(0.2, 0.8, num_errors + 1)]
    return froc_curve(pred, scores, [box, box])


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn; they are not written."""
    drawn = []

    @contextmanager
    def figure_written(file, size):
        drawn.append(Figure(figsize=size))
        yield drawn[-1]

    monkeypatch.setattr(plots, "figure_written", figure_written)
    return drawn


def cells(figure):
    return [text.get_text() for text in figure.axes[1].texts]


def test_png_and_pdf_are_written(tmp_path):
    curves = {"first": example_curve(20), "second": example_curve(5)}
    rates = np.geomspace(0.125, 16, 9)
    low = curves["first"].at(rates) - 0.1
    plot_froc(curves, tmp_path / "a.png", bands={"first": (rates, low, low + 0.2)}, title="set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[0] > 400 and (picture[0] == 255).all()
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and b"CreationDate" not in pdf
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    drawn = b"".join(zlib.decompressobj().decompress(s) for s in streams if s[:1] == b"x")
    assert drawn.count(b" l\n") > 100 and b"/Subtype /Image" not in pdf  # lines, no pixels


def test_the_table_has_the_sensitivities_at_the_marked_rates(tmp_path, figures):
    curve = example_curve(3)
    plot_froc({"a": curve}, tmp_path / "a.png")
    end = curve.fps_per_image[-1]
    assert end == 3
    expected = [f"{v:.1f}" for v in 100 * curve.at(plots.PLOT_TICKS)]
    expected = [f"({v})" if r > end else v for v, r in zip(expected, plots.PLOT_TICKS, strict=True)]
    assert cells(figures[0]) == expected
    ticks = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert ticks == ["1/8", "1/4", "1/2", "1", "2", "4", "8", "16"]


def test_a_bar_ends_the_curve_where_the_detections_end(tmp_path, figures):
    for errors, end in ((3, 3.0), (20, None), (0, 0.125)):
        plot_froc({"a": example_curve(errors)}, tmp_path / "a.png")
        axes = figures[-1].axes[0]
        bars = [line for line in axes.lines if line.get_marker() == "|"]
        assert [float(bar.get_xdata()[0]) for bar in bars] == [end] * (end is not None)
        (line,) = (line for line in axes.lines if line.get_label() == "a")
        assert line.get_xdata()[-1] == (end or 16)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["a"] + ["detections end"] * (end is not None)


def test_the_title_has_the_numbers_of_images_and_lesions(tmp_path, figures):
    one = froc_curve([np.zeros((0, 4))], [np.zeros(0)], [np.array([[0.0, 0, 9, 9]])])
    none = froc_curve([np.zeros((0, 4))], [np.zeros(0)], [np.zeros((0, 4))])
    for curves, title, expected in (
        ({"a": example_curve(2)}, "set", "set: 2 lesions in 2 volumes"),
        ({"a": one}, "", "1 lesion in 1 volume"),
        ({"a": none}, "", "0 lesions in 1 volume"),
        ({"a": one, "b": example_curve(2)}, "set", "set"),
    ):
        plot_froc(curves, tmp_path / "a.png", unit="volume", title=title)
        assert figures[-1].axes[0].get_title(loc="left") == expected
    assert cells(figures[2]) == ["–"] * 8  # nothing to find


def test_curves_differ_in_color_line_style_and_marker(tmp_path, figures):
    names = "abcdefg"
    plot_froc({name: example_curve(20) for name in names}, tmp_path / "a.png")
    lines = [line for line in figures[0].axes[0].lines if line.get_label() in names]
    for look in ("color", "marker"):
        assert len({getattr(line, f"get_{look}")() for line in lines}) == len(names)
    assert len({str(line._dash_pattern) for line in lines}) == len(names)


def test_nothing_is_left_of_a_picture_that_failed(tmp_path):
    with pytest.raises(
        ValueError, match="band 'other': found no curve of that name, expected one of first"
    ):
        plot_froc({"first": example_curve(3)}, tmp_path / "a.png", bands={"other": ([], [], [])})
    with pytest.raises(ValueError, match="found no curve"):
        plot_froc({}, tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        plot_froc({"first": example_curve(3)}, tmp_path / "nowhere" / "a.png")
    assert list(tmp_path.iterdir()) == []
