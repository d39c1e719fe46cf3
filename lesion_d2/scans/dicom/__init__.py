"""CT series of DICOM files."""

from .listing import DicomListing
from .series import DicomSeries

__all__ = ["DicomListing", "DicomSeries"]
