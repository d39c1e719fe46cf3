"""Findings as DICOM objects for archives and viewers; needs the extra ``scans``."""

from ...scans.limits import require

for _package in ("pydicom", "highdicom"):
    require(_package)

from .segmentation import write_segmentation  # noqa: E402
from .structured_report import write_structured_report  # noqa: E402

__all__ = ["write_segmentation", "write_structured_report"]
