"""COCO JSON: pictures, or slices of volumes, with boxes and masks.

Slices file#k of one file are one volume, and so are pictures with the keys volume and slice, or by
--group-by; all other pictures are volumes of one slice. --hu-offset and --hu-window convert 16- and
8-bit gray values to HU, if the JSON does not. See docs/importing.md.
"""

from .listing import add_arguments, list_cases, list_coco

__all__ = ["add_arguments", "list_cases", "list_coco"]
