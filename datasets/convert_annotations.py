"""Convert the published annotations of DeepLesion's sub-volumes (a pickle) to JSON.

python datasets/convert_annotations.py Revised-Train744.pkl volumes_train.json
python datasets/convert_annotations.py boxes_3d.pkl volumes_val.json --split val

The pickle is read by a restricted unpickler, and the JSON is complete or absent.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lesion_d2.data.deeplesion.annotation_files import (
    BOX_COLUMNS,
    SLICE_NUMBERS,
    read_annotations,
    write_annotations,
)
from lesion_d2.utils.errors import run_program


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", type=Path, help="the pickle, .pkl")
    parser.add_argument("output", type=Path, help="the JSON to write, .json")
    parser.add_argument("--split", help="split to read from a pickle that has several")
    parser.add_argument(
        "--slice-numbers",
        choices=SLICE_NUMBERS,
        help="slice numbers in the pickle: as on disk, or counted from 0 at a volume's first slice "
        "(default: inferred from the file); the JSON has those on disk",
    )
    parser.add_argument(
        "--box-columns",
        choices=BOX_COLUMNS,
        help="order of columns of 3-D boxes in the pickle (default: inferred from the file)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Convert one file; returns the exit status."""
    args = parse_args(argv)
    return run_program(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if args.output.suffix != ".json":
        raise ValueError(f"{args.output}: found another ending, expected .json")
    volumes = read_annotations(
        args.input,
        args.split,
        slice_numbers=args.slice_numbers,
        box_columns=args.box_columns,
    )
    write_annotations(args.output, volumes)
    print(f"Wrote {sum(map(len, volumes.values()))} lesions of {len(volumes)} volumes")


if __name__ == "__main__":
    sys.exit(main())
