"""Reorientation of a file's array to a scan's axes: Inferior, Posterior, Left."""

from dataclasses import dataclass

import numpy as np

# Directions of slices, rows and columns of DeepLesion's arrays, as in its script DL_save_nifti.py.
_DIRECTIONS = ("I", "P", "L")
_DIGITS = 6  # significant digits of spacings in mm
_MAX_ANGLE = 40  # degrees
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS, and back


@dataclass(frozen=True)
class Turn:
    """A permutation of axes followed by flips, without copying.

    Args:
        axes: the axis of the file's array for each axis of the scan.
        flips: for each axis of the scan, whether it is reversed.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """A view of a file's array in the scan's orientation."""
        return self._flip(array.transpose(self.axes))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """A view of a scan's array in the file's orientation."""
        return self._flip(array).transpose(np.argsort(self.axes))

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


#: The turn of slices that are stored in the scan's orientation.
AS_STORED = Turn((0, 1), (False, False))


def canonical_turn(affine: np.ndarray) -> Turn:
    """The turn from an array to (Z, H, W): the closest to Inferior, Posterior, Left.

    Args:
        affine: 4 x 4, from the array's indices to LPS in mm.

        Raises:
            ValueError: the matrix has numbers that are not finite, lacks an axis, or has one about
                halfway between two of the patient's axes, so that rounding would decide.
    """
    if not np.isfinite(affine).all():
        raise ValueError("found an affine matrix that is not finite, expected mm")
    from nibabel import orientations  # slow to import

    found = orientations.io_orientation(_RAS @ affine)
    if not np.isfinite(found).all():
        raise ValueError("found an affine matrix that leaves out an axis, expected three")
    angle = _largest_angle(affine, found[:, 0].astype(int))
    if angle > _MAX_ANGLE:
        raise ValueError(
            f"found an axis {angle:.0f} degrees from the patient's nearest one, expected at most "
            f"{_MAX_ANGLE}"
        )
    turn = orientations.ornt_transform(found, orientations.axcodes2ornt(_DIRECTIONS))
    axes = np.argsort(turn[:, 0])
    return Turn(tuple(axes.tolist()), tuple((turn[axes, 1] < 0).tolist()))


def _largest_angle(affine: np.ndarray, axes: np.ndarray) -> float:
    """Largest angle in degrees between an array's axis and the assigned axis of the patient.

    Measured in the plane where it is largest; at 45 degrees the axis is halfway between two.
    """
    parts = np.abs(affine[:3, :3])
    own = parts[axes, range(3)]
    parts[axes, range(3)] = 0
    return float(np.degrees(np.arctan2(parts.max(axis=0), own)).max())


def turned_geometry(
    affine: np.ndarray, shape: tuple[int, ...], turn: Turn
) -> tuple[tuple[float, float, float], np.ndarray, np.ndarray]:
    """Spacing, origin and direction of a :class:`~lesion_d2.scans.Scan`.

    Args:
        affine: 4 x 4, from the array's indices to LPS, mm.
        shape: of the array before its turn.
        turn: :func:`canonical_turn` of the affine matrix.

    Returns:
        (x, y, z) in mm; (3,) LPS mm; (3, 3) with the unit vectors of x, y, z as columns.
    """
    steps = affine[:3, list(turn.axes)]
    last = np.array([shape[axis] - 1 for axis in turn.axes])
    origin = affine[:3, 3] + steps @ np.where(turn.flips, last, 0)
    steps = (steps * np.where(turn.flips, -1.0, 1.0))[:, ::-1]  # z, y, x to x, y, z
    lengths = np.linalg.norm(steps, axis=0)
    # Rounded, as formats differ in precision (down to float32), so that a scan has the same spacing
    # in all.
    return tuple(np.round(lengths, _DIGITS).tolist()), origin, steps / lengths
