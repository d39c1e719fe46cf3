"""Masks in 3-D."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..layers.roi_align import bin_points, cells_of, points_per_bin
from .boxes3d import Boxes3D

# Voxels converted to float at once, which limits memory to 128 MB.
_VALUES = 2**25


class BitMasks3D:
    """Masks of objects in a volume, with the interface of Detectron2's :class:`BitMasks`.

    Args:
        tensor: (n, D, H, W), bool or convertible to it.

    Raises:
        ValueError: the tensor does not have four axes.
    """

    def __init__(self, tensor: Tensor | np.ndarray):
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.dim() != 4:
            raise ValueError(f"masks: found shape {tuple(tensor.shape)}, expected (n, D, H, W)")
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    def to(self, *args, **kwargs) -> "BitMasks3D":
        """The masks on another device, see :meth:`torch.Tensor.to`."""
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """The device of the masks."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> "BitMasks3D":
        """Index by integer, slice, mask or indices; the result may share memory."""
        if isinstance(item, int):
            return type(self)(self.tensor[item][None])
        return type(self)(self.tensor[item])

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks3D(num_instances={len(self)})"

    @classmethod
    def cat(cls, masks: Sequence["BitMasks3D"]) -> "BitMasks3D":
        """Concatenate one or more :class:`BitMasks3D` of volumes of the same size."""
        return cls(torch.cat([some.tensor for some in masks]))

    def nonempty(self) -> Tensor:
        """(n,) bool, whether each mask is non-empty."""
        return self.tensor.flatten(1).any(dim=1)

    def get_bounding_boxes(self) -> Boxes3D:
        """Tight boxes, from the first voxel - 0.5 to the last + 0.5; zeros for empty masks.

        It does not synchronize with a GPU.
        """
        # The maximum of bytes is several times as fast as any() of bools.
        voxels = self.tensor.view(torch.uint8)
        rows = voxels.amax(dim=3)
        lows, highs = [], []
        for hit in (voxels.amax(dim=1).amax(dim=1), rows.amax(dim=1), rows.amax(dim=2)):  # x, y, z
            positions = torch.arange(hit.shape[1], dtype=torch.float32, device=self.device)
            lows.append(positions.where(hit > 0, torch.inf).amin(dim=1) - 0.5)
            highs.append(positions.where(hit > 0, -torch.inf).amax(dim=1) + 0.5)
        boxes = torch.stack(lows + highs, dim=1)
        return Boxes3D(boxes.where(torch.isfinite(boxes), 0.0))

    def crop_and_resize(self, boxes: Tensor, mask_size: tuple[int, int, int]) -> Tensor:
        """Crop each mask to its box and resize it: the targets of Mask R-CNN.

        A bin averages trilinear samples, one per voxel of the bin along each axis, rounded up
        (:func:`lesion_d2.layers.roi_align_3d`), and is True from a mean of 0.5 on.

        Args:
            boxes: (n, 6) XYZXYZ, one per mask.
            mask_size: number of bins along depth, height and width.

        Returns:
            (n, d, h, w) bool.
        """
        if len(boxes) != len(self):
            raise ValueError(f"boxes: found {len(boxes)}, expected {len(self)}, one per mask")
        low, high = cells_of(boxes.to(self.device), (1.0, 1.0, 1.0))
        counts = points_per_bin(high - low, mask_size, sampling_ratio=0)
        most = counts.amax(dim=0).int().tolist() if len(boxes) > 0 else (1, 1, 1)
        z, y, x = (
            _bin_weights(
                bin_points(low[:, i], high[:, i], mask_size[i], counts[:, i], most[i], size),
                counts[:, i],
                size,
            )
            for i, size in enumerate(self.image_size)
        )
        # In chunks: as float, masks take four times the memory.
        rows = max(1, _VALUES // math.prod(self.image_size))
        resized = [
            _weigh(self.tensor[i : i + rows], z[i : i + rows], y[i : i + rows], x[i : i + rows])
            for i in range(0, max(len(self), 1), rows)
        ]
        # Rounding errors of a mean of zeros and ones are smaller than this.
        return torch.cat(resized) >= 0.5 - 1e-5


def _weigh(masks: Tensor, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(n, d, h, w) means of (n, D, H, W) masks with (n, bins, size) weights per axis."""
    means = masks.float() @ x.mT[:, None]  # (n, D, H, w)
    means = y[:, None] @ means  # (n, D, h, w)
    return (z @ means.flatten(2)).unflatten(2, means.shape[2:])


def _bin_weights(points: Tensor, counts: Tensor, size: int) -> Tensor:
    """(n, bins, size) weight of each voxel of an axis in each bin.

    Args:
        points: (n, bins, most), see :func:`bin_points`.
        counts: (n,) points per bin of each mask.
        size: length of the axis.
    """
    voxels = torch.arange(size, dtype=points.dtype, device=points.device)
    near = (1 - (points[..., None] - voxels).abs()).relu()  # linear interpolation
    return near.sum(dim=2) / counts[:, None, None]
