"""Insert synthetic lesions into real CT slices, and write them as a volume set.

python datasets/prepare_inserted.py scans --output $DETECTRON2_DATASETS/inserted
python datasets/prepare_inserted.py mine_train --copies 8 --output $DETECTRON2_DATASETS/more

Running it again after an interruption reuses finished volumes. The output does not depend on the
number of processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import lesion_d2  # noqa: F401  (registers the data sets)
from lesion_d2.importers import inserted
from lesion_d2.tools.import_data import add_common_arguments, interrupted, run_listing
from lesion_d2.utils.errors import run_program

_PROGRAM = "prepare_inserted.py"


def get_parser() -> argparse.ArgumentParser:
    """The command line: options of the inserted lesions, and of an import."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{inserted.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inserted.add_arguments(parser)
    add_common_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set; returns the exit status."""
    args = get_parser().parse_args(argv)
    return run_program(
        lambda: run_listing(inserted.list_cases(args), args, "inserted", _PROGRAM),
        _PROGRAM,
        interrupted=lambda: interrupted(args.output),
    )


if __name__ == "__main__":
    sys.exit(main())
