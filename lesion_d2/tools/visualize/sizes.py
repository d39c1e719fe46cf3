"""Sensitivity over the number of training images, for instance with and without pretraining."""

import argparse
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lesion_d2.evaluation.result_files import read_froc_file
from lesion_d2.utils.figures import SERIES, figure_written

from .curves import figure_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """One size of a training set.

    Attributes:
        images: in the training set.
        hits, lesions: of all folds together, at one rate of false positives.
    """

    images: int
    hits: int
    lesions: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the sensitivity in %; lesions count as independent."""
        from scipy.stats import binomtest

        found = binomtest(self.hits, self.lesions).proportion_ci(0.95, method="exact")
        return 100 * found.low, 100 * found.high

    @property
    def sensitivity(self) -> float:
        """Hits among the lesions, in %."""
        return 100 * self.hits / self.lesions


def sizes(text: str) -> tuple[str, list[tuple[int, str]]]:
    """Parse ``NAME=IMAGES:PATTERN,IMAGES:PATTERN``, a series of the figure.

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    name, _, rest = text.partition("=")
    parts = [part.partition(":") for part in rest.split(",")]
    if not name or not all(number.isdecimal() and pattern for number, _, pattern in parts):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected NAME=IMAGES:PATTERN,..., a number of images and OUTPUT_DIRs"
        )
    return name, [(int(number), pattern) for number, _, pattern in parts]


def draw_sizes(args: argparse.Namespace) -> list[str]:
    """Draw sensitivity over the number of images, and print it; return the paths of PNG and PDF.

    Raises:
        FileNotFoundError: a pattern has no evaluation.
        ValueError: a table has no such rate, or no lesions.
    """
    series = {name: [pool(n, p, args.fps) for n, p in parts] for name, parts in args.series}
    for name, points in series.items():
        for point in points:
            low, high = point.interval
            print(
                f"{name}, {point.images} images: {point.hits} of {point.lesions}, "
                f"{point.sensitivity:.1f} % ({low:.0f} to {high:.0f})"
            )
    with figure_written(args.output, (4.6, 3.2)) as figure:
        axes = figure.subplots()
        widest = max(point.images for points in series.values() for point in points)
        for place, (name, points) in enumerate(series.items()):
            # Side by side, so that intervals do not overlap.
            shift = 0.012 * widest * (place - (len(series) - 1) / 2)
            _draw_series(axes, name, points, shift, SERIES[place % len(SERIES)])
        axes.set_xlabel("Annotated images in training")
        axes.set_ylabel(f"Sensitivity (%) at {args.fps:g} FPs per image")
        axes.set_xticks(sorted({p.images for points in series.values() for p in points}))
        axes.set_ylim(-2, 100)
        axes.legend(loc="upper left", frameon=False)
    return figure_paths(args.output)


def pool(images: int, pattern: str, fps: float) -> Point:
    """The hits of all evaluations of some runs at one rate: of the folds of a cross-validation.

    Args:
        images: in each training set.
        pattern: of OUTPUT_DIRs; all their data sets count.
        fps: false positives per image, one of the table's rates.

    Raises:
        FileNotFoundError, ValueError: as :func:`draw_sizes`.
    """
    files = sorted(glob.glob(f"{pattern}/inference/*/froc.json"))
    if not files:
        raise FileNotFoundError(f"{pattern}: found no inference/*/froc.json, expected evaluations")
    hits = lesions = 0
    for file in files:
        row = read_froc_file(file)["rows"][0]
        value = row.get(f"sens@{fps:g}")
        if value is None or not row["lesions"]:
            raise ValueError(
                f"{file}: found no sens@{fps:g}, expected a rate of the table, and lesions"
            )
        hits += round(value * row["lesions"] / 100)
        lesions += row["lesions"]
    return Point(images, hits, lesions)


def _draw_series(
    axes: "Axes", name: str, points: Sequence[Point], shift: float, style: tuple
) -> None:
    points = sorted(points, key=lambda point: point.images)
    middle = [point.sensitivity for point in points]
    low, high = zip(*(point.interval for point in points), strict=True)
    lengths = [
        [m - a for m, a in zip(middle, low, strict=True)],
        [b - m for m, b in zip(middle, high, strict=True)],
    ]
    color, line, marker = style
    axes.errorbar(
        [point.images + shift for point in points],
        middle,
        yerr=lengths,
        label=name,
        color=color,
        linestyle=line,
        marker=marker,
        elinewidth=0.8,
        capsize=2,
    )
