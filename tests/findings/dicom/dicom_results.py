"""Findings of the bright ellipsoid of :mod:`dicom_series`, and what other programs say of files."""

import shutil
import subprocess
from pathlib import Path

from lesion_d2.findings import (
    Algorithm,
    Findings,
    OperatingPoint,
    encode_mask,
    measure_findings,
)
from lesion_d2.scans import Scan

import numpy as np
import pydicom
import pytest

SCORE = 0.8125


def findings_of(scan: Scan, *, with_masks: bool = True, category: str = "liver") -> Findings:
    """What is bright in a scan as one finding."""
    bright = scan.volume > 0
    slices = np.flatnonzero(bright.any(axis=(1, 2)))
    boxes = []
    for z in slices:
        rows, columns = np.nonzero(bright[z])
        boxes.append([columns.min() - 5.5, rows.min() - 5.5, columns.max() + 5.5, rows.max() + 5.5])
    boxes, scores = np.array(boxes), np.full(len(slices), SCORE)
    boxes3d = np.array([[*boxes[0, :2], slices[0], *boxes[0, 2:], slices[-1]]])
    linked = boxes3d, np.array([SCORE]), np.array([0]), np.zeros(len(slices), int)
    return Findings(
        scan_name=scan.name,
        shape=scan.volume.shape,
        spacing=scan.spacing,
        origin=tuple(scan.origin.tolist()),
        direction=tuple(map(tuple, scan.direction.tolist())),
        findings=measure_findings(
            scan,
            boxes,
            scores,
            slices,
            linked,
            class_names=[category],
            masks=[encode_mask(bright[z]) for z in slices] if with_masks else None,
        ),
        algorithm=Algorithm(
            version="0.1.0",
            config_file="/secret/folder/retina_unet.yaml",
            meta_architecture="RetinaUNet",
            weights="/secret/folder/model_best.pth",
            weights_sha256="0123456789abcdef" * 4,
        ),
        operating_point=OperatingPoint(0.4, 0.5, "image", "phantom_test"),
    )


def stored_frames(folder: Path) -> dict[tuple[str, int], tuple[np.ndarray, tuple]]:
    """(SOP Instance UID, frame from 1) -> bright pixels as stored, and position and so on."""
    frames = {}
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        uid, pixels = dataset.SOPInstanceUID, dataset.pixel_array > 1024
        if "NumberOfFrames" not in dataset:
            place = (
                dataset.ImagePositionPatient,
                dataset.ImageOrientationPatient,
                dataset.PixelSpacing,
            )
            frames[uid, 1] = pixels, tuple(map(list, place))
            continue
        spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        for i, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            position = group.PlanePositionSequence[0].ImagePositionPatient
            orientation = group.PlaneOrientationSequence[0].ImageOrientationPatient
            frames[uid, i + 1] = pixels[i], tuple(map(list, (position, orientation, spacing)))
    return frames


def check_with_dciodvfy(file: Path) -> None:
    """Assert that dicom3tools finds no error; skip where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    run = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True)
    said = (run.stdout + run.stderr).splitlines()
    assert run.returncode == 0 and not [line for line in said if line.startswith("Error")], said


def dump_with_dcmtk(file: Path) -> str:
    """What dcmtk prints of a report; skip where it is not installed."""
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump (dcmtk) is not installed")
    run = subprocess.run(["dsrdump", "+Pl", file], capture_output=True, text=True)
    wrong = [line for line in run.stderr.splitlines() if line.startswith(("E:", "F:"))]
    assert run.returncode == 0 and not wrong, run.stderr
    return run.stdout
