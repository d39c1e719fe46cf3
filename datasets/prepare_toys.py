"""Generate the toy data sets: noisy images with one circle or donut each, and their masks.

python datasets/prepare_toys.py
python datasets/prepare_toys.py --train 100 --val 50 --test 100 --root /data/toys
python datasets/prepare_toys.py --volumes      # in 3-D: spheres and shells, as volume sets
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from lesion_d2.data.toys.images import SPLITS, ToyOptions, write_toys
from lesion_d2.data.toys.volumes import DEFAULTS, write_toy_volumes
from lesion_d2.tools.common.arguments import seed
from lesion_d2.utils.errors import run_program


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of the command; missing ones are the defaults of the images or the volumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--volumes", action="store_true", help="generate the toys in 3-D")
    parser.add_argument(
        "--root",
        type=Path,
        help=f"default: {folder / 'toys'}; with --volumes, the folder of one data set per "
        f"task, default: {folder}".replace("%", "%%"),  # argparse's escape
    )
    for split in SPLITS:
        counts = f"{ToyOptions().count(split)}, or {DEFAULTS.count(split)} volumes"
        parser.add_argument(
            f"--{split}",
            type=int,
            dest=f"num_{split}",
            metavar="N",
            help=f"{split} images of each task (default: {counts})",
        )
    parser.add_argument(
        "--seed", type=seed, default=ToyOptions().seed, help="random seed (default: 0)"
    )
    parser.add_argument("--workers", type=int, help="processes for images (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace sets with other options")
    args = parser.parse_args(argv)
    if args.root is None:
        args.root = folder if args.volumes else folder / "toys"
    options = DEFAULTS if args.volumes else ToyOptions()
    for split in SPLITS:
        if getattr(args, f"num_{split}") is None:
            setattr(args, f"num_{split}", options.count(split))
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the data sets; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = vars(parse_args(argv))
    return run_program(lambda: _run(args))


def _run(args: dict[str, object]) -> None:
    start = time.perf_counter()
    if args.pop("volumes"):
        del args["workers"]
        written = write_toy_volumes(args.pop("root"), **args)
    else:
        written = [args["root"]] if write_toys(**args) else []
    if written:
        print(f"Wrote {', '.join(map(str, written))} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
