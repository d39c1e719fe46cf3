"""Retina U-Net and RetinaNet for volumes."""

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
    """Retina U-Net for volumes (Jaeger et al., sections 3.1 and 4.1).

    It is :class:`RetinaUNet`, with the same losses, hard example mining and softmax, and with
    backbone, head, anchors, box transform and NMS in 3-D. Inputs and results are for patches (1, D,
    H, W); :mod:`lesion_d2.inference` tiles and mirrors volumes, and combines the results.

    Args:
        kwargs: see :class:`RetinaUNet`. The backbone is a :class:`UNetFPN3D`, or an :class:`FPN3D`
            without segmentation.

    Raises:
        ValueError: calibration of scores is enabled, which is only supported for slices.
    """

    head_type = RetinaNetHead3D

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.calibration > 0:
            raise ValueError(
                f"MODEL.RETINA_UNET.CALIBRATION: found {self.calibration}, expected 0 for a "
                f"{type(self).__name__}: calibration is only supported for slices"
            )

    @staticmethod
    def postprocess(result: Instances, probabilities: Tensor | None, input_dict: dict) -> Instances:
        """Clip boxes to the patch, and add masks if there are class probabilities.

        Args:
            result: detections of one image; boxes outside the image are dropped.
            probabilities: (K + 1, D, H, W) for the padded image, or class-agnostic (2, D, H, W).
            input_dict: ignored; patches are not resized.
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
    """RetinaNet for volumes (Jaeger et al., section 4.1): RetinaUNet3D without segmentation.

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
