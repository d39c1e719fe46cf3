"""The shape of features in 3-D."""

from dataclasses import dataclass

from detectron2.layers import ShapeSpec


@dataclass
class VolumeShape(ShapeSpec):
    """Shape of a feature map (N, C, D, H, W) of a backbone for volumes.

    Attributes:
        channels: C.
        stride: in-plane stride, as in Detectron2's :class:`ShapeSpec`.
        strides: strides along depth, height and width, in voxels of the image.
        depth, height, width: size of a pooled region; None for a feature map.
    """

    strides: tuple[int, int, int] = (1, 1, 1)
    depth: int | None = None

    @classmethod
    def of_map(cls, channels: int, strides: tuple[int, int, int]) -> "VolumeShape":
        """Make the shape of a feature map with equal in-plane strides."""
        return cls(channels=channels, stride=strides[-1], strides=strides)
