"""Report the contents and the faults of a registered data set.

python -m lesion_d2.tools.check_data NAME... [--output DIR]

mine means all splits of a data set: mine_train, mine_val and mine_test; for a volume set, those
with every slice: mine_volumes_train and so on. Every file is read once.
Counts and faults are printed, and written to DIR: data_check.json, data_check.png with
boxes and masks on their lesions, and data_check.html. docs/data_checks.md explains the faults.
Exit status: 1 if there is an error, which would spoil a training; 2 if a data set cannot be read.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import lesion_d2  # noqa: F401  (registers the data sets)
from lesion_d2.data_checks import JSON_FILE, PAGE_FILE, SHEET_FILE, check_data_set
from lesion_d2.tools.common.arguments import positive
from lesion_d2.utils.errors import run_program

from detectron2.utils.logger import setup_logger


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.check_data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="data sets; or the name of one without its split, for all splits",
    )
    parser.add_argument("--output", help="output folder (default: output/data_checks/NAME)")
    parser.add_argument("--workers", type=positive, help="processes (default: all cores)")
    parser.add_argument(
        "--num", type=positive, default=16, help="pictures on the contact sheet (default: 16)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw no contact sheet")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="report missing files as a warning, not an error",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print the report and its files, and return the exit status."""
    args = get_parser().parse_args(argv)
    setup_logger(name="lesion_d2")
    return run_program(lambda: _run(args), status=2, interrupted="interrupted, nothing was written")


def _run(args: argparse.Namespace) -> int:
    output = Path(args.output or Path("output/data_checks", "_".join(args.names)))
    report = check_data_set(
        args.names,
        output=output,
        workers=args.workers,
        pictures=0 if args.no_pictures else args.num,
        allow_missing=args.allow_missing,
    )
    print(f"{report.text()}\n\nwritten to {output}: {', '.join(_written(output))}")
    return 1 if report.has_errors else 0


def _written(output: Path) -> list[str]:
    return [name for name in (PAGE_FILE, JSON_FILE, SHEET_FILE) if (output / name).is_file()]


if __name__ == "__main__":
    sys.exit(main())
