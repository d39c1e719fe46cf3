"""Write the toy data sets: noisy images with one circle or donut each, and their masks.

python datasets/prepare_toys.py
python datasets/prepare_toys.py --train 100 --val 50 --test 100 --root /data/toys
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from lesion_d2.data.toys import ToyOptions, write_toys


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of the command."""
    options = ToyOptions()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "toys"
    parser.add_argument("--root", type=Path, default=default, help="default: %(default)s")
    for split in ("train", "val", "test"):
        parser.add_argument(
            f"--{split}",
            type=int,
            default=options.count(split),
            dest=f"num_{split}",
            metavar="N",
            help=f"{split} images of each task (default: %(default)s)",
        )
    parser.add_argument("--seed", type=int, default=options.seed)
    parser.add_argument("--workers", type=int, help="processes; default: all cores")
    parser.add_argument("--overwrite", action="store_true", help="replace sets with other options")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the data sets; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args(argv)
    start = time.perf_counter()
    try:
        written = write_toys(**vars(args))
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if written:
        print(f"Wrote {args.root} in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
