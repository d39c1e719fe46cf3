"""Public formats of annotated images, each read into a data set of volumes.

A format is a module with ``add_arguments(parser)``, which adds what the format needs, its source
first, and ``list_cases(args) -> Listing``, which reads no voxels. Its docstring is the help of its
subcommand of ``lesion_d2.tools.import_data``, the first line by itself the short one.
"""

from types import ModuleType

from . import coco, dicom, lidc, luna16, mdt, nndetection, nnunet, phantom
from .case import Case, ImportedVolume, Listing

#: Subcommand of ``lesion_d2.tools.import_data`` -> the format's module.
FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "nndetection": nndetection,
    "nnunet": nnunet,
    "mdt": mdt,
    "luna16": luna16,
    "lidc": lidc,
    "dicom": dicom,
    "phantom": phantom,
}

__all__ = ["FORMATS", "Case", "ImportedVolume", "Listing"]
