"""Volume files: NIfTI, MetaImage, NRRD."""

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..structures.slice_geometry import EXPECTED_SPACING, is_spacing
from .limits import check_size
from .names import safe_name
from .orientation import canonical_turn, turned_geometry
from .scan import Grid, Scan, SliceSource

_INT16 = np.iinfo(np.int16)
_FAT = -50  # HU; complete slices have air, which is lower


class VolumeFile:
    """A volume whose header has been read, but not its voxels.

    Args:
        file: its path.
        format: see :class:`~lesion_d2.scans.Scan`.
        shape: shape of its array, three dimensions and any number of ones.
        affine: 4 x 4, from the array's first three indices to LPS in mm.
        slabs: yields all voxels in order, in slabs along the third axis. It raises ValueError for
            damaged files.
        messages: messages for the user, one line each.
        files: files with the header and the voxels; by default only ``file``.

    Raises:
        ValueError: the size, the spacing or the matrix is implausible.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        format: str,
        shape: tuple[int, ...],
        affine: np.ndarray,
        slabs: Callable[[], Iterator[np.ndarray]],
        messages: tuple[str, ...] = (),
        files: Sequence[str | os.PathLike] = (),
    ):
        self.file, self.format, self.messages = os.fspath(file), format, messages
        self.files = tuple(files) or (file,)
        self.name = safe_name(stem_of(file))
        try:
            turn = canonical_turn(affine)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        self.grid = Grid(tuple(shape), affine, turn)
        #: (Z, H, W) shape of the scan.
        self.shape: tuple[int, int, int] = tuple(shape[axis] for axis in turn.axes)
        check_size(file, self.shape)
        #: See :class:`~lesion_d2.scans.Scan`.
        self.spacing, self.origin, self.direction = turned_geometry(affine, shape[:3], turn)
        if not all(map(is_spacing, self.spacing)):
            raise ValueError(
                f"{file}: found the spacing {self.spacing}, expected for x, y and z "
                f"{EXPECTED_SPACING}"
            )
        #: Yields all voxels in the file's order, in slabs along its third axis.
        self.slabs = slabs

    @property
    def num_slices(self) -> int:
        """Slices of the volume."""
        return self.shape[0]

    def read(self) -> Scan:
        """Read the voxels.

        Raises:
            ValueError: see :meth:`read_volume`.
        """
        volume, highest_air = self.read_volume()
        messages = self.messages
        if highest_air > _FAT:
            messages += (f"found {highest_air:g} as the lowest value, expected HU, -1000 in air",)
        frames = range(self.num_slices)
        if self.grid.turn.flips[0]:
            frames = reversed(frames)
        return Scan(
            name=self.name,
            volume=volume,
            spacing=self.spacing,
            origin=self.origin,
            direction=self.direction,
            sources=tuple(SliceSource(self.file, index) for index in frames),
            format=self.format,
            grid=self.grid,
            messages=messages,
        )

    def read_volume(self, volume: np.ndarray | None = None) -> tuple[np.ndarray, float]:
        """Read only the voxels.

        Args:
            volume: (Z, H, W) int16 array to fill; None for a new one.

        Returns:
            (Z, H, W) int16, HU, rounded and clipped to int16; and the lowest value.

        Raises:
            ValueError: the file is damaged, has numbers that are not finite, or no value below 0
                (HU of complete slices include air).
        """
        if volume is None:
            volume = np.empty(self.shape, np.int16)
        target = self.grid.turn.undo(volume)
        low, high, start = np.inf, -np.inf, 0
        for slab in self.slabs():
            slab = slab.reshape(*slab.shape[:2], -1)
            if slab.dtype.kind == "f" and not np.isfinite(slab).all():
                raise ValueError(
                    f"{self.file}: found values that are no finite numbers, expected HU"
                )
            low, high = min(low, slab.min()), max(high, slab.max())
            if slab.dtype != np.int16:
                slab = np.rint(np.clip(slab, _INT16.min, _INT16.max))
            target[:, :, start : start + slab.shape[2]] = slab
            start += slab.shape[2]
        if low >= 0:
            raise ValueError(
                f"{self.file}: found values from {low:g} to {high:g}, expected HU, which are below "
                "0 in air; DeepLesion's PNG files, for one, hold HU + 32768: subtract it"
            )
        return volume, float(low)


def stem_of(file: str | os.PathLike) -> str:
    """A file's name without its extension; ``.nii.gz`` counts as one extension."""
    stem = os.path.splitext(os.path.basename(file))[0]
    return stem.removesuffix(".nii")


def check_numbers(file: str | os.PathLike, kind: str, shape: tuple[int, ...], components: int):
    """Check that a file is a volume of numbers.

    Args:
        file: beginning of the message.
        kind: type of its values, NumPy's name or another.
        shape: shape of its array.
        components: numbers per voxel, such as 3 for colors.

    Raises:
        ValueError: the number of dimensions longer than one is not three, or values are not real
            numbers.
    """
    is_number = components == 1 and kind.startswith(("int", "uint", "float"))
    if len(shape) < 3 or max(shape[3:], default=1) > 1 or not is_number:
        kind = f"{components} numbers a voxel ({kind})" if components > 1 else kind
        raise ValueError(
            f"{file}: found {kind} of shape {shape}, expected numbers in three dimensions (a "
            "fourth may have one entry)"
        )
