"""Generate the scan of a phantom patient as a DICOM series and as NIfTI, as input for predict.

python datasets/prepare_phantom_scan.py --output output/predict/scans

OUTPUT/dicom/<slice>.dcm and OUTPUT/phantom.nii.gz have the same voxels. The patient is not in the
data sets of prepare_phantom.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from lesion_d2.data.phantoms.anatomy import sample_body
from lesion_d2.data.phantoms.phantom import PRESETS, PhantomOptions, Series
from lesion_d2.scans import read_scan
from lesion_d2.scans.writing import write_dicom, write_nifti
from lesion_d2.tools.common.arguments import seed
from lesion_d2.utils.errors import run_program

import numpy as np


def make_scan(options: PhantomOptions) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Generate a patient and a series around a key slice, with noise as in the data sets.

    Returns:
        (Z, H, W) int16 in HU, and the spacing x, y, z in mm.
    """
    rng = np.random.default_rng([options.seed, 0])
    series = Series(rng, sample_body(rng, options.is_clinical), options)
    spacing = (series.pixel, series.pixel, float(series.spacing))
    with tempfile.TemporaryDirectory() as folder:
        series.write(rng, Path(folder) / "slices")
        return read_scan(Path(folder) / "slices", spacing=spacing).volume, spacing


def main(argv: list[str] | None = None) -> int:
    """Write the scan; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    scans = Path("output/predict/scans")
    add("--output", type=Path, default=scans, help=f"output folder (default: {scans})")
    add("--seed", type=seed, default=20261145, help="random seed of the patient")
    add("--size", type=int, default=512, help="width and height of slices, pixels (default: 512)")
    add("--extent-mm", type=float, default=40.0, help="mm on each side of the middle (default: 40)")
    args = parser.parse_args(argv)
    return run_program(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    chosen = {"size": args.size, "seed": args.seed, "extent_mm": args.extent_mm}
    options = replace(PRESETS["clinical"], **chosen)
    volume, spacing = make_scan(options)
    args.output.mkdir(parents=True, exist_ok=True)
    write_dicom(args.output / "dicom", volume, spacing)
    write_nifti(args.output / "phantom.nii.gz", volume, spacing)
    print(f"Wrote {len(volume)} slices to {args.output}/dicom and {args.output}/phantom.nii.gz")


if __name__ == "__main__":
    sys.exit(main())
