"""Compare the appearance of phantoms with real CT slices.

python -m lesion_d2.tools.compare_phantoms phantom_train mine_train [--output DIR]

Prints a table with the median and the 10th and 90th percentile of every measure for each data set:
share of the body in the image, HU of fat and soft tissue, level and spatial frequency of noise,
width of edges, size, contrast and inhomogeneity of lesions; and the share of lesions found by a
blob detector (Laplacian of Gaussian), which needs no training. Writes comparison.png
(histograms, spectra, contrasts, and examples of lesions) and comparison.json to DIR. Only
key slices are read, not their neighbors. Data sets may have different pixel sizes in mm.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import lesion_d2  # noqa: F401  (registers the data sets)
from lesion_d2.structures.recist import BOX_MARGIN
from lesion_d2.tools.common.arguments import positive
from lesion_d2.utils.errors import run_program
from lesion_d2.utils.files import write_json
from lesion_d2.utils.parallel import count_cores

from tabulate import tabulate

from .drawing import draw_comparison
from .summary import ROWS, DataSetMeasures, measure_data_set

_BLOB_RATES = (4, 16)


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.compare_phantoms", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="+", metavar="NAME", help="registered data sets")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/compare_phantoms"),
        metavar="DIR",
        help="output folder (default: output/compare_phantoms)",
    )
    parser.add_argument(
        "--margin", type=float, default=BOX_MARGIN, help="margin of boxes in pixels (default: 5)"
    )
    parser.add_argument(
        "--slices",
        type=positive,
        default=200,
        help="maximum number of slices per data set (default: 200)",
    )
    parser.add_argument("--workers", type=positive, help="processes (default: all cores, up to 16)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit status."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    workers = args.workers or min(16, count_cores())
    found = {
        name: measure_data_set(name, margin=args.margin, limit=args.slices, workers=workers)
        for name in dict.fromkeys(args.names)
    }
    print(format_table(found))
    args.output.mkdir(parents=True, exist_ok=True)
    draw_comparison(found, args.output / "comparison.png")
    write_json(args.output / "comparison.json", _as_json(found), indent=1)
    print(f"\nwritten to {args.output}: comparison.png, comparison.json")


def format_table(found: Mapping[str, DataSetMeasures]) -> str:
    """One row per measure, one column per data set: median (10th to 90th percentile)."""
    rows = []
    for row in ROWS:
        cells = []
        for measures in found.values():
            low, middle, high = measures.percentiles(row)
            digits = 2 if max(abs(low), abs(high)) < 10 else 0
            cells.append(f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        rows.append([row, *cells])
    for rate in _BLOB_RATES:
        cells = [f"{100 * measures.blobs.at([rate])[0]:.0f}" for measures in found.values()]
        rows.append([f"lesions found by blobs at {rate} false positives a slice, %", *cells])
    counts = [f"{len(m.slices)} slices, {len(m.lesions)} lesions" for m in found.values()]
    return tabulate([["measured", *counts], *rows], headers=["", *found], tablefmt="github")


def _as_json(found: Mapping[str, DataSetMeasures]) -> dict:
    """Percentiles, null without measurements."""
    return {
        name: {
            "slices": len(measures.slices),
            "lesions": len(measures.lesions),
            "blobs": {str(rate): _or_null(measures.blobs.at([rate])[0]) for rate in _BLOB_RATES},
            **{
                row: dict(zip(("p10", "median", "p90"), _numbers(measures, row), strict=True))
                for row in ROWS
            },
        }
        for name, measures in found.items()
    }


def _numbers(measures: DataSetMeasures, row: str) -> list[float | None]:
    return [_or_null(value) for value in measures.percentiles(row)]


def _or_null(value: float) -> float | None:
    return None if value != value else float(value)


if __name__ == "__main__":
    sys.exit(main())
