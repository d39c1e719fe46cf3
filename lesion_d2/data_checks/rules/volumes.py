"""Checks of volumes: values that are not HU, unusual spacings, orientations and sizes.

Only sums over the slices of a volume are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...data.formats.problems import short_repr
from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ..faults import FaultLog
from ..slices import TISSUE, Pixels

_GRAY_LEVELS = 255
_STORED_VALUES = 4095
_MIN_RANGE = 10  # HU; noise alone is more
_OFFSET_SHARE = 0.15  # fraction of pixels from 824 to 1324, which is dense bone in HU
_TISSUE_SHARE = 0.001
_MAX_ASPECT = 1.01
_FIELD_OF_VIEW = 1000.0  # mm, more than any CT scanner's
_PIXELS, _SLICES = (0.1, 10.0), (0.1, 20.0)  # mm
_MIN_BONES = 300  # pixels, counting every second row and column
# Where bone lies below the body's center, in heights of the body. In 114 slices of 12 patients of
# DeepLesion 0.07 to 0.4; where the heart or the bowel is full of contrast medium it may be less.
_UPSIDE_DOWN, _MEDIAN_UPSIDE_DOWN = -0.15, -0.05


@dataclass
class VolumeSums:
    """Sums over the slices of a volume read so far.

    Args:
        name: name for messages.
        number: smallest number of its images.
        spacings: spacings in its slices' dicts.
        sizes: (height, width) of its slices' files.
        pixels: sums over all its slices; None before the first.
    """

    name: str
    number: int
    spacings: set = field(default_factory=set)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    pixels: Pixels | None = None

    def add(self, shape: tuple[int, int], pixels: Pixels) -> None:
        """Add a slice."""
        self.sizes.add(shape)
        self.pixels = pixels if self.pixels is None else self.pixels.joined(pixels)


def spacing_of(image: Mapping) -> tuple | str | None:
    """x, y, z in mm; None if unknown, a text if invalid."""
    spacing = image.get("spacing")
    if spacing is None:
        return None
    try:
        values = tuple(float(value) for value in spacing)
    except (TypeError, ValueError):
        return short_repr(spacing)
    return values if len(values) == 3 and all(map(is_spacing, values)) else short_repr(spacing)


def check_volume(volume: VolumeSums, log: FaultLog) -> None:
    """Log the faults of a volume, after all of its slices."""
    for kind, text in [*_spacing_faults(volume), *_hu_faults(volume)]:
        log.add(kind, f"{volume.name}: {text}", volume.number)


def _spacing_faults(volume: VolumeSums):
    if len(volume.sizes) > 1:
        sizes = " and ".join(f"{w} x {h}" for h, w in sorted(volume.sizes)[:3])
        yield "volume_sizes", f"found slices of {sizes} pixels, expected one size"
    for bad in sorted(one for one in volume.spacings if isinstance(one, str)):
        yield "bad_spacing", f"found spacing {bad}, expected for x, y and z {EXPECTED_SPACING}"
    good = sorted(one for one in volume.spacings if isinstance(one, tuple))
    if len(volume.spacings) > 1:
        found = " and ".join(map(_text, good[:2])) if len(good) > 1 else "several spacings"
        yield "mixed_spacing", f"found {found} mm, expected one spacing in all of its slices"
    for spacing in good[:1]:
        text = _oddity(spacing, max(volume.sizes, default=(0, 0)))
        if text is not None:
            yield "odd_spacing", f"found {_text(spacing)} mm (x, y, z), {text}"


def _oddity(spacing: tuple[float, ...], size: tuple[int, int]) -> str | None:
    x, y, z = spacing
    if max(x, y) / min(x, y) > _MAX_ASPECT:
        return "expected square pixels; is the order x, y, z?"
    if not all(_PIXELS[0] <= side <= _PIXELS[1] for side in (x, y)):
        return f"expected pixels of {_PIXELS[0]:g} to {_PIXELS[1]:g} mm"
    if max(size[1] * x, size[0] * y) > _FIELD_OF_VIEW:
        width, height = size[1] * x, size[0] * y
        return f"so an image of {width:.0f} x {height:.0f} mm, expected {_FIELD_OF_VIEW:g} at most"
    if not _SLICES[0] <= z <= _SLICES[1]:
        return f"expected slices {_SLICES[0]:g} to {_SLICES[1]:g} mm apart"
    return None


def _text(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.6g}" for value in spacing)


def _hu_faults(volume: VolumeSums):
    pixels = volume.pixels
    if pixels is None or pixels.low == pixels.high:
        return  # already logged for its slices
    found = f"found values from {pixels.low} to {pixels.high}"
    in_gray = pixels.low >= 0 and pixels.high <= _GRAY_LEVELS
    if in_gray or pixels.high - pixels.low < _MIN_RANGE:
        yield "gray_levels", f"{found}, expected HU: air near -1000, tissue near 0"
    elif pixels.low >= 0 and _is_stored(pixels):
        share = 100 * pixels.offset / pixels.count
        yield (
            "no_offset",
            f"{found}, {share:.0f} % of them from 824 to 1324, expected HU: an offset of 1024 "
            "seems to be missing",
        )
    elif pixels.tissue < _TISSUE_SHARE * pixels.count:
        yield "no_tissue", f"{found}, hardly any above {TISSUE}, expected HU: tissue near 0"
    elif pixels.low > TISSUE:
        yield "no_air", f"{found}, expected air near -1000 HU in a whole slice"


def _is_stored(pixels: Pixels) -> bool:
    return pixels.high <= _STORED_VALUES and pixels.offset >= _OFFSET_SHARE * pixels.count


def check_image_sizes(volumes: list[VolumeSums], log: FaultLog) -> None:
    """Log a fourfold difference between the largest and smallest images of a data set."""
    sizes = [(max(size), size, volume) for volume in volumes for size in volume.sizes]
    if not sizes:
        return
    small = min(sizes, key=lambda one: (one[0], one[2].number))
    large = max(sizes, key=lambda one: (one[0], -one[2].number))
    if large[0] >= 4 * small[0]:
        (small_h, small_w), (large_h, large_w) = small[1], large[1]
        log.add(
            "image_sizes",
            f"found {small_w} x {small_h} pixels in {small[2].name} and {large_w} x {large_h} in "
            f"{large[2].name}, expected images of about one size",
        )


def check_upside_down(volumes: list[VolumeSums], log: FaultLog) -> None:
    """Log volumes whose bones lie far above the center of the body.

    The threshold is lower if most volumes of a data set have this, as the rows are then flipped.
    """
    heights = {
        volume.number: volume.pixels.bone_height / volume.pixels.bones
        for volume in volumes
        if volume.pixels is not None and volume.pixels.bones >= _MIN_BONES
    }
    if not heights:
        return
    are_flipped = np.median(list(heights.values())) < _MEDIAN_UPSIDE_DOWN
    limit = _MEDIAN_UPSIDE_DOWN if are_flipped else _UPSIDE_DOWN
    for volume in volumes:
        if (height := heights.get(volume.number, 0.0)) < limit:
            text = (
                f"found bone {-100 * height:.0f} % of the body's height above its center, expected "
                "the spine below"
            )
            log.add("upside_down", f"{volume.name}: {text}", volume.number)
