"""What files of COCO's format hold, and what their values can be."""

from dataclasses import dataclass

from ..formats.problems import short_repr

#: What COCO's coordinates are at the center of an image's first pixel: 0 is its outer edge.
FIRST_PIXEL = 0.5
#: Annotation tools let boxes and outlines reach past the image's border a bit: pixels.
MAX_OVERHANG = 10.0


class BadEntryError(ValueError):
    """What is wrong with one entry.

    Args:
        key: of the entry.
        found: its value.
        expected: in words.
    """

    def __init__(self, key: str, found: object, expected: str):
        super().__init__(f"{key}: found {short_repr(found)}, expected {expected}")


@dataclass(frozen=True)
class CocoAnnotation:
    """A box of an image.

    Args:
        id: in the file.
        category: index in :attr:`CocoFile.classes`.
        box: XYXY in pixels, whole numbers being pixel centers; cut to the image.
        mask: counts of the compressed RLE of the image's (H, W); None without one.
        ignore: whether the region is neither lesion nor background.
        lesion: annotations of a volume's slices that have this in common are one lesion.
        recist: end points of the long and the short diameter, 8 numbers x, y, as ``box`` is.
        diameters_mm: long and short diameter, mm.
    """

    id: int
    category: int
    box: tuple[float, float, float, float]
    mask: str | None = None
    ignore: bool = False
    lesion: int | str | None = None
    recist: tuple[float, ...] | None = None
    diameters_mm: tuple[float, float] | None = None


@dataclass(frozen=True)
class CocoImage:
    """An image.

    Args:
        id: in the file.
        file_name: relative to the folder of images, with ``/``; of a volume's slice without ``#k``.
        stored_slice: the ``k`` of ``file#k``; None for a picture.
        height, width: in pixels.
        spacing: x, y, z in mm; None where the file does not say.
        patient: who it shows.
        volume, slice: the volume that a picture is of, and the number of its slice.
        hu_offset, hu_window: what its grey values mean, see
            :func:`~lesion_d2.data.slices.pictures.picture_path`.
        window: (low, high) HU for display.
        annotations: of it.
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
        """``file_name`` as the file has it."""
        number = self.stored_slice
        return self.file_name if number is None else f"{self.file_name}#{number}"


@dataclass(frozen=True)
class CocoFile:
    """What a file holds.

    Args:
        classes: names of the categories, by rising id.
        category_ids: of these in the file.
        images: in the file's order.
        messages: what has to be told, a line each.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]
    messages: tuple[str, ...] = ()
