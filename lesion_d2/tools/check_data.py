"""Tell what is in a registered data set, and what is wrong with it.

python -m lesion_d2.tools.check_data NAME... [--output DIR]

``mine`` is all splits of a data set: mine_train, mine_val and mine_test; of a volume set those with
every slice, mine_volumes_train and so on. Every file is read once.
Counts and faults are printed, and written to DIR: ``data_check.json``, ``data_check.png`` with
boxes and masks on their lesions, and ``data_check.html``. What each fault means stands in
docs/data_checks.md. Exit status: 0, 1 where something would spoil a training, 2
where a data set cannot be read at all.
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
    parser.add_argument("names", nargs="+", metavar="NAME", help="data sets, or all splits of one")
    parser.add_argument("--output", help="folder to write to (output/data_checks/NAME)")
    parser.add_argument("--workers", type=positive, help="processes (all cores)")
    parser.add_argument(
        "--num", type=positive, default=16, help="pictures on the contact sheet (16)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="draw no contact sheet")
    parser.add_argument(
        "--allow-missing", action="store_true", help="missing files are no error, but a warning"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print what was found and where it was written, and return the exit status."""
    args = get_parser().parse_args(argv)
    setup_logger(name="lesion_d2")
    return run_program(lambda: _run(args), status=2, interrupted="interrupted, nothing is written")


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
