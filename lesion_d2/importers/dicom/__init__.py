"""DICOM CT series with lesions as segmentations (SEG) or structure sets (RTSTRUCT).

Each segment or region of interest whose name matches a pattern is a lesion of the series that its
file refers to; with --components, each of its connected parts is.
"""

from .listing import add_arguments, list_cases, list_dicom

__all__ = ["add_arguments", "list_cases", "list_dicom"]
