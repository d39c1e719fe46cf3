"""Content of files in COCO's format, and valid values."""

from dataclasses import dataclass

from ..formats.problems import short_repr

#: COCO's coordinate of the center of an image's first pixel; 0 is its outer edge.
FIRST_PIXEL = 0.5
#: Tolerance in pixels for boxes and outlines beyond the image's border, as some annotation tools
#: write them.
MAX_OVERHANG = 10.0


class BadEntryError(ValueError):
    """An entry is invalid.

    Args:
        key: the entry's key.
        found: its value.
        expected: description of valid values.
    """

    def __init__(self, key: str, found: object, expected: str):
        super().__init__(f"{key}: found {short_repr(found)}, expected {expected}")


@dataclass(frozen=True)
class CocoAnnotation:
    """A box of an image.

    Args:
        id: id in the file.
        category: index in :attr:`CocoFile.classes`.
        box: XYXY in pixels, with integers at pixel centers; clipped to the image.
        mask: counts of the compressed RLE of size (H, W); None without a mask.
        ignore: whether the region is neither lesion nor background.
        lesion_id: lesion id, shared by its annotations on all slices of a volume.
        recist: end points of the long and the short diameter, 8 numbers x, y, in coordinates like
            ``box``.
        diameters_mm: long and short diameter, mm.
    """

    id: int
    category: int
    box: tuple[float, float, float, float]
    mask: str | None = None
    ignore: bool = False
    lesion_id: int | str | None = None
    recist: tuple[float, ...] | None = None
    diameters_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class CocoImage:
    """An image.

    Args:
        id: id in the file.
        file_name: relative to the folder of images, with ``/``, and without ``#k``.
        stored_slice: the ``k`` of ``file#k``; None for a picture.
        height, width: in pixels.
        spacing: x, y, z in mm; None if the file does not have it.
        patient: patient id.
        volume, slice: the volume of a picture, and its slice number.
        hu_offset, hu_window: mapping of grey values to HU, see
            :func:`~lesion_d2.data.slices.pictures.picture_path`.
        window: (low, high) HU for display.
        annotations: its annotations.
    """

    id: int
    file_name: str
    stored_slice: int | None
    height: int
    width: int
    spacing: tuple[float, float, float] | None = None
    patient: str | None = None
    volume: str | None = None
    slice: int | None = None
    hu_offset: int | None = None
    hu_window: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    annotations: tuple[CocoAnnotation, ...] = ()

    @property
    def name(self) -> str:
        """``file_name`` as in the file."""
        number = self.stored_slice
        return self.file_name if number is None else f"{self.file_name}#{number}"


@dataclass(frozen=True)
class CocoFile:
    """The content of a file.

    Args:
        classes: names of the categories, in ascending order of ids.
        category_ids: ids of the categories in the file.
        images: images in the file's order.
        messages: warnings for the user, one line each.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]
    messages: tuple[str, ...] = ()
