"""LIDC-IDRI: DICOM series, and the XML files of their four readers.

Outlines become masks, the readers' annotations of a nodule one lesion by the majority of voxels,
and its mean malignancy the class, benign or malignant, as in Jaeger et al., section 4.4.1. Nodules
below 3 mm and findings that are no nodules are counted, and left out.
"""

from .listing import add_arguments, list_cases, list_lidc

__all__ = ["add_arguments", "list_cases", "list_lidc"]
