"""Importers of public formats of annotated images, which write volume sets.

A format is a module with ``add_arguments(parser)``, which adds the format's arguments, the source
first, and ``list_cases(args) -> Listing``, which reads no voxels. Its docstring is the help of its
subcommand of ``lesion_d2.tools.import_data``, and its first line the short help.
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
