"""Make the README's picture: detections on a slice beside the FROC curve of their evaluation.

Example, after make demo (make overview calls it so)::

    python docs/site/overview_picture.py output/quickstart/inference/phantom_clinical_test \\
        --output docs/overview.png

The folder is that of an evaluation, with pictures of lesion_d2.tools.visualize predictions.
"""

import argparse
from pathlib import Path

from PIL import Image


def beside(pictures: list[Image.Image], height: int, gap: int = 16) -> Image.Image:
    """Pictures of one height in a row, on white."""
    scaled = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
    width = sum(picture.width for picture in scaled) + gap * (len(scaled) - 1)
    row, x = Image.new("RGB", (width, height), "white"), 0
    for picture in scaled:
        row.paste(picture, (x, 0))
        x += picture.width + gap
    return row


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("results", type=Path, help="OUTPUT_DIR/inference/DATASET")
    add("--picture", default="best_01_*.png", help="pattern of the slice's file in pictures/")
    add("--height", type=int, default=640)
    add("--output", type=Path, required=True)
    args = parser.parse_args()
    found = sorted((args.results / "pictures").glob(args.picture))
    if not found:
        raise SystemExit(f"{args.results / 'pictures'}: found no {args.picture}, expected a slice")
    files = found[0], args.results / "froc.png"
    pictures = [Image.open(file).convert("RGB") for file in files]
    beside(pictures, args.height).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
