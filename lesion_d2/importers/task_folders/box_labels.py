"""Boxes without masks in a case's JSON file, an extension of nnDetection's format."""

import numpy as np

from ...data.formats.problems import short_repr
from ...data.volume_set.form import Lesion, Volume
from ...scans.volume_file import VolumeFile

#: Key of a box's corners -> factors that convert them to LPS; None for voxels.
_COORDINATES = {"voxels": None, "lps_mm": (1.0, 1.0, 1.0), "ras_mm": (-1.0, -1.0, 1.0)}
# Tolerance in slices: matrices in files have float32 precision.
_ON_SLICE = 1e-3
_EXPECTED = "two opposite corners of three finite numbers as 'voxels', 'ras_mm' or 'lps_mm'"


def box_lesions(
    entries: list[dict],
    image: VolumeFile,
    volume: Volume,
    *,
    first_id: int,
    source: str,
) -> list[Lesion]:
    """Convert the ``boxes`` of a JSON file to lesions.

    A box has one of two forms:

    - ``{"class": 0, "voxels": [[i, j, k], [i, j, k]]}``: its first and last voxel, as indices into
      the file's array, from 0; ``[i, j]`` is enough if the image is a single slice.
    - ``{"class": 0, "ras_mm": [[x, y, z], [x, y, z]]}``: two opposite corners in patient
      coordinates, with the axes of NIfTI; or ``lps_mm``, with those of DICOM and ITK. Its sides are
      parallel to the image's axes. It is on the slices whose centers it contains, or else on the
      nearest slice.

    Boxes are clipped to the image.

    Args:
        entries: boxes, as checked by :func:`check_box`.
        image, volume: image and volume of the case.
        first_id: id of the first lesion.
        source: path of the JSON file, for messages.

    Raises:
        ValueError: a box lies outside of the image, or is in mm although the image has no position.
    """
    lesions = []
    for number, entry in enumerate(entries):
        key = next(key for key in _COORDINATES if key in entry)
        try:
            box = _voxel_box(entry[key], image) if key == "voxels" else _mm_box(entry, key, volume)
            box = _cut(box, image.shape)
        except ValueError as error:
            raise ValueError(f"{source}: boxes, {number}: {error}") from None
        lesions.append(Lesion(first_id + number, entry["class"], box))
    return lesions


def check_box(entry: object, num_classes: int) -> None:
    """Check that :func:`box_lesions` can read an entry.

    Raises:
        ValueError: its keys, class or corners are invalid.
    """
    keys = entry.keys() if isinstance(entry, dict) else ()
    if len(keys) != 2 or "class" not in keys or len(keys & _COORDINATES.keys()) != 1:
        raise ValueError(f"found {short_repr(entry)}, expected a 'class' and {_EXPECTED}")
    category = entry["class"]
    if type(category) is not int or not 0 <= category < num_classes:
        raise ValueError(f"found the class {short_repr(category)}, expected 0 to {num_classes - 1}")
    key = next(iter(keys - {"class"}))
    corners, lengths = entry[key], (2, 3) if key == "voxels" else (3,)
    are_points = isinstance(corners, list) and len(corners) == 2 and all(map(_is_point, corners))
    if not are_points or len(corners[0]) not in lengths or len(corners[1]) != len(corners[0]):
        raise ValueError(f"found {key} {short_repr(corners)}, expected {_EXPECTED}")
    if key == "voxels" and not all(type(n) is int for corner in corners for n in corner):
        raise ValueError(f"found voxels {short_repr(corners)}, expected integers")


def _is_point(point: object) -> bool:
    return isinstance(point, list) and all(type(n) in (int, float) and abs(n) < 1e9 for n in point)


def _voxel_box(corners: list[list[int]], image: VolumeFile) -> tuple[float, ...]:
    if len(corners[0]) == 2:
        if image.shape[0] != 1:
            raise ValueError(
                f"found voxels {short_repr(corners)}, expected three numbers per corner, as the "
                f"image has {image.shape[0]} slices"
            )
        corners = [[*corner, 0] for corner in corners]
    turn, points = image.grid.turn, np.array(corners, float)[:, list(image.grid.turn.axes)]
    points = np.where(turn.flips, np.subtract(image.shape, 1) - points, points)
    (z1, y1, x1), (z2, y2, x2) = points.min(0), points.max(0)
    return x1 - 0.5, y1 - 0.5, z1, x2 + 0.5, y2 + 0.5, z2


def _mm_box(entry: dict, key: str, volume: Volume) -> tuple[float, ...]:
    if volume.origin is None:
        raise ValueError(f"found {key} for an image without a position in mm, expected voxels")
    points = volume.from_patient(np.array(entry[key], float) * _COORDINATES[key])
    (x1, y1, z1), (x2, y2, z2) = points.min(0), points.max(0)
    if x1 == x2 or y1 == y2:
        raise ValueError(
            f"found {key} {short_repr(entry[key])}, expected a box with an area above 0"
        )
    first, last = np.ceil(z1 - _ON_SLICE), np.floor(z2 + _ON_SLICE)
    if first > last:  # between two slices
        first = last = np.rint((z1 + z2) / 2)
    return x1, y1, first, x2, y2, last


def _cut(box: tuple[float, ...], shape: tuple[int, int, int]) -> tuple[float, ...]:
    depth, height, width = shape
    low = np.maximum(box[:3], (-0.5, -0.5, 0))
    high = np.minimum(box[3:], (width - 0.5, height - 0.5, depth - 1))
    if (low[:2] >= high[:2]).any() or low[2] > high[2]:
        found = ", ".join(f"{n:g}" for n in box)
        raise ValueError(
            f"found a box outside of the image (x1, y1, z1, x2, y2, z2 in voxels: {found}), "
            f"expected one within {depth} slices of {width} x {height} pixels"
        )
    return (*low.tolist(), *high.tolist())
