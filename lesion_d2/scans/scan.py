"""A CT scan, whatever file it came from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .orientation import AS_STORED, Turn

if TYPE_CHECKING:
    import pydicom


@dataclass(frozen=True)
class SliceSource:
    """Where a slice came from.

    Args:
        file: its path; of a zip, ``<archive>.zip/<member>``.
        frame: of a file with several slices, which one, from 0; else None.
        sop_instance_uid: of DICOM; else None.
    """

    file: str
    frame: int | None = None
    sop_instance_uid: str | None = None


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a file that holds a whole volume, as the file has them.

    Args:
        shape: of the file's array, in nibabel's order: the first index runs fastest. A fourth
            axis has one entry.
        affine: 4 x 4, from the array's first three indices to LPS, mm.
        turn: from the file's axes to the scan's (Z, H, W).
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    turn: Turn

    @property
    def ras_affine(self) -> np.ndarray:
        """``affine`` as NIfTI has it: to RAS, mm."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Turn (Z, H, W), such as a label map of the scan, to ``shape``; a view."""
        return self.turn.undo(array).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT volume in DeepLesion's orientation, with its place in the patient.

    Columns lead to the patient's Left, rows to Posterior, slices to Inferior, as nearly as the
    file's axes allow: nothing is resampled but slices that are unevenly spaced, and ``messages``
    says so.

    Args:
        name: a name that can be a folder's.
        volume: (Z, H, W) int16, HU.
        spacing: x, y, z in mm: from a voxel to the next one along columns, rows and slices.
        origin: (3,) LPS in mm, the center of voxel (0, 0, 0).
        direction: (3, 3), its columns the unit vectors along x, y and z in LPS. They are
            orthogonal but for a scan with a tilted gantry, whose slices are sheared.
        sources: one a slice. Where slices were resampled, the nearest one's.
        format: ``dicom``, ``nifti``, ``metaimage``, ``nrrd`` or ``png``.
        headers: of DICOM, the dataset of each slice without its pixels; of a multi-frame file the
            same one for each. None of other formats.
        grid: of NIfTI, MetaImage and NRRD, the file's own. None of others.
        slice_turn: of DICOM, from the rows and columns of a stored frame to those of a slice.
        messages: what was measured and has to be told, a line each.
    """

    name: str
    volume: np.ndarray
    spacing: tuple[float, float, float]
    origin: np.ndarray
    direction: np.ndarray
    sources: tuple[SliceSource, ...]
    format: str
    headers: "tuple[pydicom.Dataset, ...] | None" = None
    grid: Grid | None = None
    slice_turn: Turn = AS_STORED
    messages: tuple[str, ...] = ()

    @property
    def voxel_volume(self) -> float:
        """In mm3; of a tilted gantry's scan, that of the sheared voxel."""
        return float(np.prod(self.spacing) * abs(np.linalg.det(self.direction)))

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """Map points in voxels to the patient.

        Args:
            points: (N, 3) x, y, z in voxels; centers are whole numbers, from 0.

        Returns:
            (N, 3) LPS in mm.
        """
        return self.origin + np.asarray(points, float) * self.spacing @ self.direction.T

    def from_patient(self, points: np.ndarray) -> np.ndarray:
        """Map points in the patient, (N, 3) LPS in mm, to x, y, z in voxels: (N, 3)."""
        offsets = np.asarray(points, float) - self.origin
        return np.linalg.solve(self.direction, offsets.T).T / self.spacing

    def to_source_slice(self, array: np.ndarray) -> np.ndarray:
        """Turn (H, W), such as a mask on a slice, to the rows and columns of its stored frame.

        Returns:
            A view, rows x columns of the frames in ``sources``.
        """
        return self.slice_turn.undo(array)

    def to_source_points(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 2) x, y in a slice's pixels to column and row in its stored frame, from 0."""
        points = np.asarray(points, float)[:, ::-1]
        last = np.subtract(self.volume.shape[1:], 1)
        points = np.where(self.slice_turn.flips, last - points, points)
        return points[:, np.argsort(self.slice_turn.axes)][:, ::-1]
