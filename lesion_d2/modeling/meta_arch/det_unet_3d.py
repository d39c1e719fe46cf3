"""DetU-Net for volumes."""

import numpy as np
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from ...structures import Boxes3D
from ..segmentation import resize_probabilities
from .det_unet import DetUNet
from .volumetric import VolumetricDetector, volume_shapes

_NEIGHBORS = np.ones((3, 3, 3), dtype=bool)  # with diagonals


@META_ARCH_REGISTRY.register()
class DetUNet3D(VolumetricDetector, DetUNet):
    """DetU-Net for volumes (Jaeger et al., section 4.1): detections are components in 3-D.

    As :class:`DetUNet`, with a :class:`UNetFPN3D`; voxels that touch at a corner are connected. The
    paper keeps the 15 largest components of a volume (MODEL.DET_UNET.MAX_COMPONENTS); here this
    applies to each tile. INPUT.BOX_MARGIN applies to x and y only: annotated boxes have
    no margin along z.
    """

    boxes_type = Boxes3D

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``DetUNet3D(cfg)``."""
        arguments = super().from_config(cfg)
        volume_shapes(arguments["backbone"], ["p2"])
        return arguments

    def postprocess(
        self, probabilities: Tensor, image_size: tuple[int, int, int], input_dict: dict
    ) -> Instances:
        """Find the detections of one volume, in its voxels.

        Args:
            probabilities: (K + 1, D, H, W) for the padded volume.
            image_size: depth, height and width without padding.
            input_dict: input dict of the volume.
        """
        return self.find_components(resize_probabilities(probabilities, image_size, image_size))

    def label_components(self, mask: np.ndarray) -> list[tuple]:
        """As :meth:`DetUNet.label_components`, for a mask (D, H, W)."""
        from scipy import ndimage  # slow to import, and only used by this model

        labels, count = ndimage.label(mask, structure=_NEIGHBORS)
        sizes = np.bincount(labels.ravel(), minlength=count + 1).tolist()
        return [
            (sizes[label], extent, labels, label)
            for label, extent in enumerate(ndimage.find_objects(labels), 1)
        ]

    def box_margins(self) -> tuple[float, ...]:
        """Margins of boxes around components, for x, y and z."""
        return (*super().box_margins(), 0.0)
