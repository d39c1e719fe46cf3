"""CT scans from disk: DICOM, NIfTI, MetaImage, NRRD and DeepLesion's PNG folders.

Example::

    scan = read_scan("patient.zip")
    scan.volume.shape, scan.spacing    # (Z, H, W) of HU; x, y, z in mm
    scan.to_patient([[256, 256, 40]])  # LPS in mm

    found = find_scans(["study", "ct.nii.gz"], min_slices=9)
    for candidate in found.candidates:
        scan = candidate.read()
    print("\\n".join(found.left_out))  # what is no CT scan, and why
"""

from .orientation import Turn
from .reading import ScanCandidate, ScanList, find_scans, read_scan
from .scan import Grid, Scan, SliceSource

__all__ = [
    "Grid",
    "Scan",
    "ScanCandidate",
    "ScanList",
    "SliceSource",
    "Turn",
    "find_scans",
    "read_scan",
]
