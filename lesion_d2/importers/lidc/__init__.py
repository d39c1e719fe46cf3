"""LIDC-IDRI: DICOM series, and the XML files of their four readers."""

from .listing import add_arguments, list_cases, list_lidc

__all__ = ["add_arguments", "list_cases", "list_lidc"]
