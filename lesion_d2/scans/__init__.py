"""CT scans from disk: DICOM, NIfTI, MetaImage, NRRD and DeepLesion's PNG folders."""

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
