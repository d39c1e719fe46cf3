"""Retina U-Net and RetinaNet on volumes."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

from ..segmentation import segmented_as
from ..volumetric import RetinaNetHead3D
from .retina_unet import RetinaUNet, masks_in_boxes
from .volumetric import VolumetricRetinaNet


@META_ARCH_REGISTRY.register()
class RetinaUNet3D(RetinaUNet, VolumetricRetinaNet):
    """Retina U-Net on volumes (Jaeger et al., sections 3.1 and 4.1).

    It is :class:`RetinaUNet`, its losses, hard example mining and softmax, with backbone, head,
    anchors, box coding and NMS in 3-D. Images are patches (1, D, H, W), and results are theirs:
    volumes are cut, mirrored and joined by :mod:`lesion_d2.inference`.

    Args:
        kwargs: see :class:`RetinaUNet`. The backbone is one of volumes: a :class:`UNetFPN3D`, or an
            :class:`FPN3D` where there is no segmentation.

    Raises:
        ValueError: scores shall be calibrated, which is only there for slices.
    """

    head_type = RetinaNetHead3D

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.calibration > 0:
            raise ValueError(
                f"MODEL.RETINA_UNET.CALIBRATION: found {self.calibration}, expected 0 for a "
                f"{type(self).__name__}: scores are calibrated on slices alone"
            )

    def postprocess(
        self, result: Instances, probabilities: Tensor | None, input_dict: dict
    ) -> Instances:
        """Cut boxes to the patch, and give them masks where there are class probabilities.

        Args:
            result: of one image; a box that lies outside of it is left out.
            probabilities: (K + 1, D, H, W) of the padded image, or (2, D, H, W) of any class.
            input_dict: not looked at; patches are not resized.
        """
        result.pred_boxes.clip(result.image_size)
        result = result[result.pred_boxes.nonempty()]
        if probabilities is not None:
            depth, height, width = result.image_size
            foreground = probabilities[1:, :depth, :height, :width]
            result.pred_masks = masks_in_boxes(
                foreground > 0.5,
                result.pred_boxes.tensor,
                segmented_as(result.pred_classes, len(foreground)),
            )
        return result


@META_ARCH_REGISTRY.register()
class RetinaNet3D(RetinaUNet3D):
    """RetinaNet on volumes (Jaeger et al., section 4.1): :class:`RetinaUNet3D`, no segmentation.

    Args:
        kwargs: see :class:`RetinaUNet`; the weight of the segmentation loss is 0.
    """

    @configurable
    def __init__(self, *, seg_loss_weight: float = 0.0, **kwargs):
        super().__init__(seg_loss_weight=seg_loss_weight, **kwargs)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``RetinaNet3D(cfg)``."""
        return {**super().from_config(cfg), "seg_loss_weight": 0.0, "predict_masks": False}
