"""LIDC-IDRI: DICOM series, and the XML files of their four readers.

Outlines become masks. The readers' annotations of a nodule become one lesion, by a majority vote of
voxels, and its mean malignancy the class, benign or malignant, as in Jaeger et al., section 4.4.1.
Nodules below 3 mm and findings that are not nodules are counted and left out.
"""

from .listing import add_arguments, list_cases, list_lidc

__all__ = ["add_arguments", "list_cases", "list_lidc"]
