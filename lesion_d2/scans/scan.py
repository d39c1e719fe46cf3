"""A CT scan from any format."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .orientation import AS_STORED, Turn

if TYPE_CHECKING:
    import pydicom


@dataclass(frozen=True)
class SliceSource:
    """The source of a slice.

    Args:
        file: its path; in a zip, ``<archive>.zip/<member>``.
        frame: index of the slice in a file with several, from 0; else None.
        sop_instance_uid: UID of the DICOM object, else None.
    """

    file: str
    frame: int | None = None
    sop_instance_uid: str | None = None


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a volume file.

    Args:
        shape: shape of the file's array in nibabel's order (the first index varies fastest). A
            fourth axis has one entry.
        affine: 4 x 4, from the array's first three indices to LPS in mm.
        turn: from the file's axes to the scan's (Z, H, W).
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    turn: Turn

    @property
    def ras_affine(self) -> np.ndarray:
        """``affine`` for NIfTI: to RAS in mm."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine

    def restore(self, array: np.ndarray) -> np.ndarray:
        """A view of an array (Z, H, W), such as a label map of the scan, with shape ``shape``."""
        return self.turn.undo(array).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT volume in DeepLesion's orientation, with its position in the patient.

    Columns run to the patient's Left, rows to Posterior and slices to Inferior, as closely as the
    file's axes allow. Only unevenly spaced slices are resampled, with an entry in ``messages``.

    Args:
        name: a name that is safe as a folder name.
        volume: (Z, H, W) int16, HU.
        spacing: voxel spacing along x, y, z in mm.
        origin: (3,) LPS in mm, the center of voxel (0, 0, 0).
        direction: (3, 3), columns are the unit vectors along x, y and z in LPS. They are orthogonal
            unless the gantry is tilted, which shears the volume.
        sources: one per slice; of the nearest slice if slices were resampled.
        format: ``dicom``, ``nifti``, ``metaimage``, ``nrrd`` or ``png``.
        headers: for DICOM, the dataset of each slice without pixels (for a multi-frame file the
            same one for all slices); None for other formats.
        grid: for NIfTI, MetaImage and NRRD, the grid of the file; None for other formats.
        slice_turn: for DICOM, from rows and columns of a stored frame to those of a slice.
        messages: messages for the user, one line each.
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
        """Volume of a voxel in mm3 (of the sheared voxel if the gantry is tilted)."""
        return float(np.prod(self.spacing) * abs(np.linalg.det(self.direction)))

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """Map points in voxels to the patient.

        Args:
            points: (N, 3) x, y, z in voxels; integers are voxel centers, from 0.

        Returns:
            (N, 3) LPS in mm.
        """
        return self.origin + np.asarray(points, float) * self.spacing @ self.direction.T

    def from_patient(self, points: np.ndarray) -> np.ndarray:
        """Map points in the patient, (N, 3) LPS in mm, to x, y, z in voxels: (N, 3)."""
        offsets = np.asarray(points, float) - self.origin
        return np.linalg.solve(self.direction, offsets.T).T / self.spacing

    def to_source_slice(self, array: np.ndarray) -> np.ndarray:
        """Reorient an array (H, W), such as a mask of a slice, to its stored frame.

        Returns:
            A view, rows x columns of the stored frame.
        """
        return self.slice_turn.undo(array)

    def to_source_points(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 2) x, y in pixels of a slice to column, row in its stored frame, from 0."""
        points = np.asarray(points, float)[:, ::-1]
        last = np.subtract(self.volume.shape[1:], 1)
        points = np.where(self.slice_turn.flips, last - points, points)
        return points[:, np.argsort(self.slice_turn.axes)][:, ::-1]
