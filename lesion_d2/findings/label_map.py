"""Findings as a volume of labels in the grid of the file that the scan was read from."""

import gzip
import os

import numpy as np

from ..scans import Scan
from ..structures.rle import decode_mask
from ..utils.files import atomic_write
from .finding import Finding, Findings

_MAX_LABEL = np.iinfo(np.uint16).max


def label_volume(findings: Findings) -> np.ndarray:
    """The number of the finding at each voxel.

    A finding's voxels are those of its masks; where it has none, those whose centers lie in its
    boxes, as what is drawn is what was found. Where findings overlap, the better one's number
    stands.

    Returns:
        (Z, H, W) uint16, 0 where nothing was found.

    Raises:
        ValueError: a finding's number is none of uint16.
    """
    volume = np.zeros(findings.shape, np.uint16)
    for finding in sorted(findings.findings, key=lambda f: f.score):  # the best one comes last
        if not 1 <= finding.number <= _MAX_LABEL:
            raise ValueError(
                f"{findings.scan_name}: found finding number {finding.number}, expected 1 to "
                f"{_MAX_LABEL} in a label map"
            )
        for index, mask in region_masks(finding, findings.shape[1:]).items():
            volume[index][mask] = finding.number
    return volume


def region_masks(finding: Finding, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """Slice -> H x W bool of the slices where a finding has pixels, see :func:`label_volume`.

    Args:
        finding: of a scan.
        size: H, W.
    """
    if finding.measured_on == "mask":
        masks = {s.slice_index: decode_mask(s.mask) for s in finding.slices if s.mask is not None}
    else:
        masks = {s.slice_index: _box_mask(s.box, size) for s in finding.slices}
    return {index: mask for index, mask in masks.items() if mask.any()}


def write_label_map(file: str | os.PathLike, scan: Scan, findings: Findings) -> None:
    """Write :func:`label_volume` as NIfTI (``.nii`` or ``.nii.gz``).

    It has the axes, the shape and the affine matrix of the file that the scan was read from, be
    that NIfTI, MetaImage or NRRD, so that viewers lay one over the other. A scan of DICOM or PNG
    files, which have no such grid, lends its own: x, y, z, as :class:`~lesion_d2.scans.Scan` has
    them.

    Raises:
        ValueError: the file has another ending, or the findings are of a scan of another size.
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
    import nibabel  # takes long to import

    image = nibabel.Nifti1Image(labels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    content = image.to_bytes()
    with atomic_write(file) as partial:
        # Without the time, so that the same findings are the same bytes.
        partial.write_bytes(gzip.compress(content, 3, mtime=0) if name.endswith(".gz") else content)


def _box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers lie in a box, H x W bool."""
    x1, y1, x2, y2 = box
    rows, columns = np.arange(size[0]), np.arange(size[1])
    return np.outer((y1 <= rows) & (rows <= y2), (x1 <= columns) & (columns <= x2))


def _ras_affine(scan: Scan) -> np.ndarray:
    """4 x 4, from x, y, z to NIfTI's RAS in mm."""
    affine = np.eye(4)
    affine[:3, :3] = scan.direction * scan.spacing
    affine[:3, 3] = scan.origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
