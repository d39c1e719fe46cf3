"""DetU-Net on volumes."""

import numpy as np
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from ...structures import Boxes3D
from ..segmentation import resize_probabilities
from .det_unet import DetUNet
from .volumetric import VolumetricDetector, volume_shapes

_NEIGHBORS = np.ones((3, 3, 3), dtype=bool)  # diagonal ones, too


@META_ARCH_REGISTRY.register()
class DetUNet3D(VolumetricDetector, DetUNet):
    """DetU-Net on volumes (Jaeger et al., section 4.1): detections are components in 3-D.

    As :class:`DetUNet`, with a :class:`UNetFPN3D`; voxels that touch at a corner are one component.
    The paper keeps the 15 largest of a volume (MODEL.DET_UNET.MAX_COMPONENTS); here they are those
    of a tile. MODEL.RETINA_UNET.BOX_MARGIN is along x and y: annotations give the slices that show
    a lesion as they are.
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
            probabilities: (K + 1, D, H, W) of the padded volume.
            image_size: depth, height and width without the padding.
            input_dict: of the volume.
        """
        return self.find_components(resize_probabilities(probabilities, image_size, image_size))

    def label_components(self, mask: np.ndarray) -> list[tuple]:
        """As :meth:`DetUNet.label_components`, of a mask (D, H, W)."""
        from scipy import ndimage  # takes long to import, and is for this model alone

        labels, count = ndimage.label(mask, structure=_NEIGHBORS)
        sizes = np.bincount(labels.ravel(), minlength=count + 1).tolist()
        return [
            (sizes[label], extent, labels, label)
            for label, extent in enumerate(ndimage.find_objects(labels), 1)
        ]

    def box_margins(self) -> tuple[float, ...]:
        """By which boxes surround components, for x, y and z."""
        return (*super().box_margins(), 0.0)
