"""Generate a phantom data set: synthetic CT with lesions, in DeepLesion's layout on disk.

python datasets/prepare_phantom.py                         # the demo's set, like clinical CT
python datasets/prepare_phantom.py --preset quickstart-v1  # mottled lesions, 256 x 256 pixels
python datasets/prepare_phantom.py --preset columns        # with distractors
python datasets/prepare_phantom.py --preset full --root /data/phantom

Options that are not given are those of the preset, which docs/synthetic_data.md describes. Running
it again with the same options does nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from lesion_d2.data.phantoms.phantom import PRESETS, write_phantom
from lesion_d2.tools.common.arguments import seed
from lesion_d2.utils.errors import run_program

#: Presets that are written to ``phantom_<preset>``, not ``phantom``.
OWN_FOLDERS = ("columns", "clinical")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of the command; missing ones are set by the preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    help_root = f"default: {folder / 'phantom'}, or phantom_<preset> for {', '.join(OWN_FOLDERS)}"
    parser.add_argument("--root", type=Path, help=help_root.replace("%", "%%"))  # argparse's escape
    help_preset = "a set of options (default: clinical, the demo's)"
    parser.add_argument("--preset", choices=sorted(PRESETS), default="clinical", help=help_preset)
    parser.add_argument("--patients", type=int, dest="num_patients", help="number of patients")
    parser.add_argument("--size", type=int, help="width and height of slices in pixels")
    parser.add_argument("--seed", type=seed, help="random seed; each gives other patients")
    parser.add_argument("--extent-mm", type=float, help="mm of slices on both sides of a key slice")
    parser.add_argument("--median-diameter", type=float, help="median diameter of lesions, in mm")
    parser.add_argument("--mottle-hu", type=float, help="texture of lesions, in HU")
    parser.add_argument("--distractors", type=float, help="mean number per key slice, 0 to 10")
    parser.add_argument(
        "--appearance", choices=["mottled", "clinical"], help="appearance of lesions and noise"
    )
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set with other options")
    args = parser.parse_args(argv)
    if args.root is None:
        own = args.preset in OWN_FOLDERS
        args.root = folder / (f"phantom_{args.preset}" if own else "phantom")
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the data set; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args(argv)
    options = asdict(PRESETS[args.preset])
    del options["format_version"], options["clinical_version"]
    options.update({k: v for k in options if (v := getattr(args, k)) is not None})
    options.update(workers=args.workers, overwrite=args.overwrite)
    return run_program(lambda: _run(args.root, options))


def _run(root: Path, options: dict[str, object]) -> None:
    start = time.perf_counter()
    if write_phantom(root, **options):
        print(f"Wrote {root} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
