"""Findings as DICOM objects that archives and viewers read; takes the packages of ``scans``."""

from ...scans.limits import require

for _package in ("pydicom", "highdicom"):
    require(_package)

from .segmentation import write_segmentation  # noqa: E402
from .structured_report import write_structured_report  # noqa: E402

__all__ = ["write_segmentation", "write_structured_report"]
