"""Volumes with lesions, as stored in ``volume_set.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...structures.boxes import mask_extent
from ...structures.rle import encode_mask

#: Names of the splits of a data set and of its folds.
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Lesion:
    """A lesion of a volume, or a region to ignore.

    Coordinates are in pixels of the volume; pixel centers are integers starting at 0, so the first
    pixel spans -0.5 to 0.5. The box of a mask includes the outer edges of its pixels.

    Args:
        id: unique in its data set, from 1.
        category: index in the classes of the data set.
        box: X1Y1Z1X2Y2Z2; z1 and z2 are the numbers of its first and its last slice.
        boxes: slice number -> XYXY; None if the box is ``box`` on every slice from z1 to z2.
        masks: slice number -> counts of COCO's compressed RLE of (H, W).
        recist: slice number -> the end points of its long and short diameter, 8 numbers x, y.
        diameters_mm: long and short diameter, mm.
        ignore: whether the region is neither lesion nor background.
        attributes: additional values, such as ``{"malignancy": 3.5}``.
    """

    id: int
    category: int
    box: tuple[float, float, float, float, float, float]
    boxes: Mapping[int, tuple[float, float, float, float]] | None = None
    masks: Mapping[int, str] | None = None
    recist: Mapping[int, tuple[float, ...]] | None = None
    diameters_mm: tuple[float, float] | None = None
    ignore: bool = False
    attributes: Mapping[str, int | float | str] = field(default_factory=dict)

    @property
    def slices(self) -> list[int]:
        """Numbers of the slices that show it, ascending."""
        if self.boxes is not None:
            return sorted(self.boxes)
        return list(range(int(self.box[2]), int(self.box[5]) + 1))

    def box_on(self, number: int) -> tuple[float, float, float, float]:
        """Return its box XYXY on one of its ``slices``."""
        if self.boxes is not None:
            return self.boxes[number]
        x1, y1, _, x2, y2, _ = self.box
        return x1, y1, x2, y2


@dataclass(frozen=True)
class Volume:
    """A volume in DeepLesion's orientation, see :class:`lesion_d2.scans.Scan`; or one 2-D image.

    Args:
        name: a safe name (see :func:`lesion_d2.scans.names.safe_name`), unique in its data set.
        patient: patient id; no patient is in two splits.
        image: its voxel file, relative to the data set's folder, with ``/``.
        shape: number of slices, height and width.
        spacing: x, y, z in mm; None if unknown.
        origin: center of voxel (0, 0, 0), LPS in mm; None if unknown.
        direction: 9 numbers, row by row; columns are the unit vectors along x, y and z in LPS.
        lesions: in any order.
        window: (low, high) display window in HU, as in DICOM; for pictures and for GrabCut. None:
            see :data:`lesion_d2.data.volume_set.dicts.WINDOW`.
    """

    name: str
    patient: str
    image: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None = None
    origin: tuple[float, float, float] | None = None
    direction: tuple[float, ...] | None = None
    lesions: tuple[Lesion, ...] = ()
    window: tuple[float, float] | None = None

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """Map points in voxels to patient coordinates.

        Args:
            points: (N, 3) x, y, z in voxels; voxel centers are integers starting at 0.

        Returns:
            (N, 3) LPS in mm.

        Raises:
            ValueError: the volume's position is unknown.
        """
        origin, spacing, direction = self._geometry()
        return origin + np.asarray(points, float) * spacing @ direction.T

    def from_patient(self, points: np.ndarray) -> np.ndarray:
        """Map patient coordinates, (N, 3) LPS in mm, to voxels, (N, 3) x, y, z.

        Raises:
            ValueError: the volume's position is unknown.
        """
        origin, spacing, direction = self._geometry()
        return np.linalg.solve(direction, (np.asarray(points, float) - origin).T).T / spacing

    def _geometry(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if None in (self.origin, self.spacing, self.direction):
            raise ValueError(
                f"volume {self.name!r}: found no position in the patient, expected spacing, origin "
                "and direction"
            )
        return (
            np.array(self.origin, float),
            np.array(self.spacing, float),
            np.array(self.direction, float).reshape(3, 3),
        )


@dataclass(frozen=True)
class VolumeSet:
    """A data set of volumes with lesions.

    Args:
        classes: names of the lesions' categories.
        volumes: the volumes, in order.
        source: provenance: source data, tool and options; any JSON value.
        splits: split -> patients; a patient may be in no split.
        folds: folds of a cross-validation, each like ``splits``.
    """

    classes: tuple[str, ...]
    volumes: tuple[Volume, ...]
    source: Mapping = field(default_factory=dict)
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folds: tuple[Mapping[str, tuple[str, ...]], ...] = ()


def lesion_of_mask(
    id: int,
    category: int,
    mask: np.ndarray,
    *,
    offset: Sequence[int] = (0, 0, 0),
    shape: Sequence[int] | None = None,
    **others,
) -> Lesion:
    """Make a lesion from an instance mask: its box, its boxes per slice, and its masks.

    Args:
        id, category: see :class:`Lesion`.
        mask: (Z, H, W) bool, for the volume or a part of it.
        offset: z, y, x of the mask's first voxel in the volume.
        shape: (Z, H, W) of the volume; None for that of the mask.
        others: other fields of the lesion.

    Raises:
        ValueError: the mask is empty, not 3-D, or outside the volume.
    """
    mask = np.asarray(mask, bool)
    shape = mask.shape if shape is None else tuple(shape)
    if mask.ndim != 3 or any(
        not 0 <= first <= size - n for first, size, n in zip(offset, shape, mask.shape, strict=True)
    ):
        raise ValueError(
            f"lesion {id}: found a mask of shape {mask.shape} at {tuple(offset)}, expected one "
            f"within a volume of shape {shape}"
        )
    z0, y0, x0 = map(int, offset)
    boxes, masks = {}, {}
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = mask_extent(mask[z])
        corners = (columns.start + x0, rows.start + y0, columns.stop + x0, rows.stop + y0)
        boxes[z0 + int(z)] = tuple(n - 0.5 for n in corners)
        full = np.zeros(shape[1:], bool)
        full[y0 : y0 + mask.shape[1], x0 : x0 + mask.shape[2]] = mask[z]
        masks[z0 + int(z)] = encode_mask(full)["counts"]
    if not boxes:
        raise ValueError(f"lesion {id}: found an empty mask, expected at least one voxel")
    x1, y1, x2, y2 = zip(*boxes.values(), strict=True)
    box = (min(x1), min(y1), float(min(boxes)), max(x2), max(y2), float(max(boxes)))
    return Lesion(id, category, box, boxes=boxes, masks=masks, **others)
