"""How the axes of a file's array lead to those of a scan: Inferior, Posterior, Left."""

from dataclasses import dataclass

import numpy as np

# Where slices, rows and columns of DeepLesion's arrays lead to, as its own conversion script
# (DL_save_nifti.py) writes them.
_DIRECTIONS = ("I", "P", "L")
_DIGITS = 6  # of spacings in mm
_MAX_ANGLE = 40  # degrees
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from LPS, and back


@dataclass(frozen=True)
class Turn:
    """Axes exchanged, then some of them flipped; nothing is copied.

    Args:
        axes: which axis of the file's array is the scan's first, second, ...
        flips: for each axis of the scan, whether it runs against the file's.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """A view of an array of the file, as the scan has it."""
        return self._flip(array.transpose(self.axes))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """A view of an array of the scan, as the file has it."""
        return self._flip(array).transpose(np.argsort(self.axes))

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


#: Of slices that are stored as a scan has them.
AS_STORED = Turn((0, 1), (False, False))


def canonical_turn(affine: np.ndarray) -> Turn:
    """The turn that leads an array to (Z, H, W): Inferior, Posterior, Left, as nearly as it can.

    Args:
        affine: 4 x 4, from the array's indices to LPS, mm.

    Raises:
        ValueError: the matrix has numbers that are not finite, leaves out an axis, or has one that
            lies about halfway between two of the patient's, where digits would decide.
    """
    if not np.isfinite(affine).all():
        raise ValueError("found an affine matrix that is not finite, expected mm")
    from nibabel import orientations  # takes long to import

    found = orientations.io_orientation(_RAS @ affine)
    if not np.isfinite(found).all():
        raise ValueError("found an affine matrix that leaves out an axis")
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
    """Degrees between an axis of an array and the patient's that it is taken for, at most.

    In the plane in which it is largest: at 45 the axis lies halfway between two.
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
    steps = (steps * np.where(turn.flips, -1.0, 1.0))[:, ::-1]  # z, y, x -> x, y, z
    lengths = np.linalg.norm(steps, axis=0)
    # Formats keep different digits, down to float32's: one scan has one spacing in all of them.
    return tuple(np.round(lengths, _DIGITS).tolist()), origin, steps / lengths
