"""Export any registered data set as COCO JSON.

python -m lesion_d2.tools.export_coco deeplesion_val --output val_coco
python -m lesion_d2.tools.export_coco mine_volumes_test --output test_coco --images png8 \\
    --window -160 240 --polygons

annotations.json is complete or absent. Without --images it refers to the data set's own files.
"""

import argparse
import sys
from collections.abc import Sequence

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.coco.writing import IMAGES, WrittenCoco, write_coco
from lesion_d2.utils.errors import run_program

from .common.arguments import positive

_PROGRAM = "lesion_d2.tools.export_coco"


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dataset", help="name of the data set, such as deeplesion_val")
    add("--output", required=True, metavar="DIR", help="output folder")
    add(
        "--images",
        choices=IMAGES,
        default=IMAGES[0],
        help="pictures to write: none (default), 8 bits by --window, or 16 bits in DeepLesion's "
        "encoding, HU + 32768",
    )
    add(
        "--window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="HU of the values 0 and 255 of png8",
    )
    add("--polygons", action="store_true", help="masks as polygons, if these reproduce the mask")
    add("--workers", type=positive, metavar="N", help="processes (default: all cores)")
    add("--overwrite", action="store_true", help="replace an existing export")
    add("--allow-missing", action="store_true", help="leave out images whose file is missing")
    return parser


def describe(written: WrittenCoco) -> str:
    """The written file and the location of its images, one line each."""
    text = (
        f"Wrote {written.file}: {written.num_images} images, {written.num_annotations} annotations"
    )
    if written.num_masks:
        text += f", {written.num_masks} with masks ({written.num_rles} as RLE)"
    return f"{text}\nIts image names are relative to {written.image_root}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write a data set; returns the exit status."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: _run(args), _PROGRAM)


def _run(args: argparse.Namespace) -> None:
    written = write_coco(
        args.dataset,
        args.output,
        images=args.images,
        window=None if args.window is None else tuple(args.window),
        polygons=args.polygons,
        workers=args.workers,
        overwrite=args.overwrite,
        allow_missing=args.allow_missing,
    )
    print(describe(written))


if __name__ == "__main__":
    sys.exit(main())
