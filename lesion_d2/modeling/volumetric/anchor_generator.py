"""Anchors in 3-D."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
    _broadcast_params,
)
from torch import Tensor

from ...structures import Boxes3D
from .shape import VolumeShape


@ANCHOR_GENERATOR_REGISTRY.register()
class AnchorGenerator3D(DefaultAnchorGenerator):
    """Anchors in volumes (Jaeger et al., section 4.2).

    In-plane they equal those of :class:`DefaultAnchorGenerator`. The i-th size of a level has its
    i-th depth, so a position has sizes x ratios anchors: nine with three ratios as in the paper,
    not 27. They are ordered by size, then by ratio.

    Args:
        sizes: per level, in-plane: square roots of areas in pixels. A list for one level applies to
            all.
        depths: per level, in slices; one for each size.
        aspect_ratios: height / width, per level.
        strides: strides of the levels along depth, height and width.
        offset: offset of the first anchor's center from the first voxel's, in strides.

    Raises:
        ValueError: the number of levels does not match, a level has different numbers of sizes and
            depths, or a depth is not positive.
    """

    box_dim: torch.jit.Final[int] = 6

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence,
        depths: Sequence,
        aspect_ratios: Sequence,
        strides: Sequence[tuple[int, int, int]],
        offset: float = 0.0,
    ):
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=offset)
        if len(depths) not in (1, len(strides)):
            raise ValueError(
                f"MODEL.VOLUMETRIC.ANCHOR_DEPTHS: found {len(depths)} levels, expected 1 for all "
                f"or {len(strides)}, the number of feature maps"
            )
        sizes = _broadcast_params(sizes, len(strides), "sizes")
        depths = _broadcast_params(depths, len(strides), "depths")
        for level, pair in enumerate(zip(sizes, depths, strict=True)):
            if len(pair[0]) != len(pair[1]):
                raise ValueError(
                    f"MODEL.VOLUMETRIC.ANCHOR_DEPTHS, level {level}: found {list(pair[1])}, "
                    f"expected a depth for each of the sizes {list(pair[0])} "
                    "(MODEL.ANCHOR_GENERATOR.SIZES)"
                )
            if not all(depth > 0 for depth in pair[1]):
                raise ValueError(
                    f"MODEL.VOLUMETRIC.ANCHOR_DEPTHS, level {level}: found {list(pair[1])}, "
                    "expected depths above 0"
                )
        self.cell_anchors = BufferList(
            [_with_depths(flat, d) for flat, d in zip(self.cell_anchors, depths, strict=True)]
        )

    @classmethod
    def from_config(cls, cfg, input_shape: list[VolumeShape]) -> dict:
        """Arguments of ``AnchorGenerator3D(cfg, input_shape)``."""
        if not all(isinstance(shape, VolumeShape) for shape in input_shape):
            raise ValueError(
                f"MODEL.BACKBONE.NAME: found {cfg.MODEL.BACKBONE.NAME!r}, expected one for "
                "volumes, such as 'build_resnet_fpn_3d_backbone', for MODEL.ANCHOR_GENERATOR.NAME "
                f"{cls.__name__!r}"
            )
        return {
            **super().from_config(cfg, input_shape),
            "depths": cfg.MODEL.VOLUMETRIC.ANCHOR_DEPTHS,
            "strides": [shape.strides for shape in input_shape],
        }

    def forward(self, features: list[Tensor]) -> list[Boxes3D]:
        """Generate the anchors of feature maps.

        Args:
            features: (N, C, D, H, W) of each level.

        Returns:
            D * H * W * A anchors per level; the anchor index varies fastest, then x, y, z.
        """
        return [
            Boxes3D(self._level(feature.shape[-3:], strides, cell))
            for feature, strides, cell in zip(
                features, self.strides, self.cell_anchors, strict=True
            )
        ]

    def _level(self, grid: tuple[int, ...], strides: tuple[int, ...], cell: Tensor) -> Tensor:
        """(D * H * W * A, 6) anchors of a level, from its (A, 6) cell anchors."""
        z, y, x = (
            (torch.arange(size, dtype=torch.float32, device=cell.device) + self.offset) * stride
            for size, stride in zip(grid, strides, strict=True)
        )
        z, y, x = torch.meshgrid(z, y, x, indexing="ij")
        centers = torch.stack([x, y, z], dim=-1).view(-1, 1, 3)
        return (centers.repeat(1, 1, 2) + cell).view(-1, 6)


def _with_depths(flat: Tensor, depths: Sequence[float]) -> Tensor:
    """(A, 6) cell anchors from (A, 4) ones, ordered by size, then by ratio."""
    half = torch.tensor(depths, dtype=flat.dtype).repeat_interleave(len(flat) // len(depths)) / 2
    return torch.stack([flat[:, 0], flat[:, 1], -half, flat[:, 2], flat[:, 3], half], dim=1)
