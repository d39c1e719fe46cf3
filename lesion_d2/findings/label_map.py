"""Findings as a label map in the grid of the scan's file."""

import gzip
import os

import numpy as np

from ..scans import Scan
from ..structures.rle import decode_mask
from ..utils.files import atomic_write
from .finding import Finding, Findings

_MAX_LABEL = np.iinfo(np.uint16).max


def label_volume(findings: Findings) -> np.ndarray:
    """The number of the finding at each voxel, from masks or boxes.

    A finding without masks has the voxels whose centers lie in its boxes. Where findings overlap,
    the one with the higher score is kept.

    Returns:
        (Z, H, W) uint16, 0 for background.

    Raises:
        ValueError: a finding's number does not fit in uint16.
    """
    volume = np.zeros(findings.shape, np.uint16)
    for finding in sorted(findings.findings, key=lambda f: f.score):  # the best one is written last
        if not 1 <= finding.number <= _MAX_LABEL:
            raise ValueError(
                f"{findings.scan_name}: found finding number {finding.number}, expected 1 to "
                f"{_MAX_LABEL} in a label map"
            )
        for index, mask in region_masks(finding, findings.shape[1:]).items():
            volume[index][mask] = finding.number
    return volume


def region_masks(finding: Finding, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """Slice -> H x W bool mask, for all slices with pixels of a finding (see :func:`label_volume`).

    Args:
        finding: a finding.
        size: H, W.
    """
    if finding.measured_on == "mask":
        masks = {s.slice_index: decode_mask(s.mask) for s in finding.slices if s.mask is not None}
    else:
        masks = {s.slice_index: _box_mask(s.box, size) for s in finding.slices}
    return {index: mask for index, mask in masks.items() if mask.any()}


def write_label_map(file: str | os.PathLike, scan: Scan, findings: Findings) -> None:
    """Write :func:`label_volume` as NIfTI (``.nii`` or ``.nii.gz``).

    It has the axes, shape and affine matrix of the scan's NIfTI, MetaImage or NRRD file, so that
    viewers can overlay them. For DICOM and PNG, it has the axes x, y, z of
    :class:`~lesion_d2.scans.Scan`.

    Raises:
        ValueError: another file extension, or the findings are of a scan of another size.
    """
    name = os.fspath(file)
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{file}: found another ending, expected .nii or .nii.gz")
    if findings.shape != scan.volume.shape:
        raise ValueError(
            f"{file}: found findings in {findings.shape} voxels, expected the scan's "
            f"{scan.volume.shape}"
        )
    volume = label_volume(findings)
    if scan.grid is None:
        labels, affine = volume.transpose(2, 1, 0), _ras_affine(scan)
    else:
        labels, affine = scan.grid.restore(volume), scan.grid.ras_affine
    import nibabel  # slow to import

    image = nibabel.Nifti1Image(labels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    content = image.to_bytes()
    with atomic_write(file) as partial:
        # Without a timestamp, so that the same findings give the same bytes.
        partial.write_bytes(gzip.compress(content, 3, mtime=0) if name.endswith(".gz") else content)


def _box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers lie in a box, H x W bool."""
    x1, y1, x2, y2 = box
    rows, columns = np.arange(size[0]), np.arange(size[1])
    return np.outer((y1 <= rows) & (rows <= y2), (x1 <= columns) & (columns <= x2))


def _ras_affine(scan: Scan) -> np.ndarray:
    """4 x 4 affine matrix from x, y, z to NIfTI's RAS in mm."""
    affine = np.eye(4)
    affine[:3, :3] = scan.direction * scan.spacing
    affine[:3, 3] = scan.origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
