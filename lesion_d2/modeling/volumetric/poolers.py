"""Pooling of regions from a pyramid in 3-D."""

import math
from collections.abc import Sequence

import torch
from detectron2.modeling.poolers import assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...layers import roi_align_3d
from ...structures import Boxes3D


class ROIPooler3D(nn.Module):
    """Pools regions of volumes from the levels of a pyramid, as Detectron2's :class:`ROIPooler`.

    A region's level depends on its in-plane size (Lin et al., 2017, equation 1), because slice
    spacings vary more than lesions do.

    Args:
        output_size: number of bins along depth, height and width.
        strides: strides of each level along depth, height and width; in-plane, consecutive powers
            of 2.
        sampling_ratio: see :func:`lesion_d2.layers.roi_align_3d`.
        canonical_box_size: in-plane side, in voxels, of regions on the canonical level.
        canonical_level: base-2 logarithm of its in-plane stride.

    Raises:
        ValueError: the strides are different, or the canonical size is not positive.
    """

    def __init__(
        self,
        output_size: tuple[int, int, int],
        strides: Sequence[tuple[int, int, int]],
        sampling_ratio: int = 0,
        canonical_box_size: float = 224,
        canonical_level: int = 4,
    ):
        super().__init__()
        self.output_size = tuple(output_size)
        self.scales = [tuple(1 / side for side in stride) for stride in strides]
        self.sampling_ratio = sampling_ratio
        self.min_level = round(math.log2(strides[0][2]))
        self.max_level = self.min_level + len(strides) - 1
        for level, stride in enumerate(strides, self.min_level):
            if stride[1:] != (2**level, 2**level):
                raise ValueError(
                    f"strides: found {tuple(stride)} for level {level}, expected {2**level} "
                    "in-plane: powers of 2, each twice the previous one"
                )
        if not canonical_box_size > 0:
            raise ValueError(
                f"MODEL.VOLUMETRIC.CANONICAL_SIZE: found {canonical_box_size}, expected voxels "
                "above 0"
            )
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def forward(self, x: list[Tensor], box_lists: list[Boxes3D]) -> Tensor:
        """Pool regions; synchronizes a GPU once, and once more per level if the ratio is 0.

        Args:
            x: (N, C, D, H, W), one per level.
            box_lists: regions of the N volumes, in voxels.

        Returns:
            (M, C, d, h, w) for the M regions of all volumes in order.
        """
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            return self._pool(x[0], rois, 0)
        levels = self.assign_levels(box_lists)
        order = levels.argsort(stable=True)
        every = torch.arange(len(x), device=levels.device)
        numbers = (levels[:, None] == every).sum(dim=0).tolist()
        parts = order.split(numbers)
        pooled = [self._pool(x[level], rois[part], level) for level, part in enumerate(parts)]
        return torch.cat(pooled)[order.argsort()]

    def assign_levels(self, box_lists: list[Boxes3D]) -> Tensor:
        """Return the level index of each of the M regions, (M,)."""
        in_plane = [Boxes(boxes.tensor[:, [0, 1, 3, 4]]) for boxes in box_lists]
        return assign_boxes_to_levels(
            in_plane, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )

    def _pool(self, features: Tensor, rois: Tensor, level: int) -> Tensor:
        scale, ratio = self.scales[level], self.sampling_ratio
        return roi_align_3d(features, rois, self.output_size, scale, ratio)
