"""The shape of features in 3-D."""

from dataclasses import dataclass

from detectron2.layers import ShapeSpec


@dataclass
class VolumeShape(ShapeSpec):
    """Shape of a feature map (N, C, D, H, W), as backbones of volumes return it.

    Attributes:
        channels: C.
        stride: in-plane, what Detectron2's :class:`ShapeSpec` knows.
        strides: voxels of the image between two positions along depth, height and width.
        depth, height, width: of a region that was pooled; None of a feature map.
    """

    strides: tuple[int, int, int] = (1, 1, 1)
    depth: int | None = None

    @classmethod
    def of_map(cls, channels: int, strides: tuple[int, int, int]) -> "VolumeShape":
        """The shape of a feature map, of which in-plane strides are the same."""
        return cls(channels=channels, stride=strides[-1], strides=strides)
