"""The scan of a phantom patient, as DICOM and as NIfTI."""

import runpy
from pathlib import Path

from lesion_d2.scans import read_scan

import numpy as np
import pytest

pytest.importorskip("pydicom")
SCRIPT = Path(__file__).parents[3] / "datasets" / "prepare_phantom_scan.py"


def test_both_files_hold_the_same_scan(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    arguments = ["--output", str(tmp_path / "scans"), "--size", "64", "--extent-mm", "4"]
    assert main(arguments) == 0
    assert "Wrote 5 slices" in capsys.readouterr().out
    dicom = read_scan(tmp_path / "scans" / "dicom")
    nifti = read_scan(tmp_path / "scans" / "phantom.nii.gz")
    assert dicom.volume.shape == (5, 64, 64) and dicom.spacing[2] == 2.0
    assert np.array_equal(dicom.volume, nifti.volume) and dicom.volume.max() > 200
    assert np.allclose(dicom.spacing, nifti.spacing) and np.allclose(dicom.origin, nifti.origin)
    assert np.allclose(dicom.direction, nifti.direction)
    assert dicom.format == "dicom" and dicom.messages == nifti.messages == ()
    before = {
        path: path.read_bytes() for path in (tmp_path / "scans").rglob("*.*") if path.is_file()
    }
    assert main(arguments) == 0
    assert all(path.read_bytes() == content for path, content in before.items())


def test_options_out_of_range_are_one_line(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main(["--output", str(tmp_path), "--extent-mm", "200"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "extent_mm" in line
    assert list(tmp_path.iterdir()) == []
