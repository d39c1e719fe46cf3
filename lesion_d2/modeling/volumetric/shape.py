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
