"""COCO JSON: pictures, or slices of volumes, with boxes and masks.

Slices file#k of one file are one volume, and pictures that say so (by the keys volume and slice, or
--group-by); all other pictures are volumes of one slice. What 16- and 8-bit grey values mean has to
be said (--hu-offset, --hu-window) where the JSON does not. See docs/importing.md.
"""

from .listing import add_arguments, list_cases, list_coco

__all__ = ["add_arguments", "list_cases", "list_coco"]
