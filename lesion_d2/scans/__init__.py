"""CT scans from disk: DICOM, NIfTI, MetaImage, NRRD and DeepLesion's PNG folders."""

from .orientation import Turn
from .scan import Grid, Scan, SliceSource

__all__ = ["Grid", "Scan", "SliceSource", "Turn"]
