"""Faster and Mask R-CNN for volumes."""

from detectron2.config import configurable
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances

from ...layers import paste_masks_3d
from ..volumetric import (
    AnchorGenerator3D,
    FastRCNNConvFCHead3D,
    LesionROIHeads3D,
    LesionRPN3D,
    MaskRCNNConvUpsampleHead3D,
    StandardRPNHead3D,
)
from .lesion_rcnn import LesionRCNN
from .volumetric import VolumetricDetector

# Parts of a config that must be 3-D: registry, and required base class.
_PARTS = {
    "MODEL.ANCHOR_GENERATOR.NAME": (ANCHOR_GENERATOR_REGISTRY, AnchorGenerator3D),
    "MODEL.PROPOSAL_GENERATOR.NAME": (PROPOSAL_GENERATOR_REGISTRY, LesionRPN3D),
    "MODEL.RPN.HEAD_NAME": (RPN_HEAD_REGISTRY, StandardRPNHead3D),
    "MODEL.ROI_HEADS.NAME": (ROI_HEADS_REGISTRY, LesionROIHeads3D),
    "MODEL.ROI_BOX_HEAD.NAME": (ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead3D),
    "MODEL.ROI_MASK_HEAD.NAME": (ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead3D),
}


@META_ARCH_REGISTRY.register()
class LesionRCNN3D(VolumetricDetector, LesionRCNN):
    """The two-stage detectors for volumes (Jaeger et al., section 4.1).

    Mask R-CNN with MODEL.MASK_ON, Faster R-CNN+ without, and U-Faster R-CNN+ on a
    :class:`UNetFPN3D` with MODEL.LESION_RCNN.SEG_LOSS_WEIGHT. It is :class:`LesionRCNN` with
    backbone, anchors, RPN, poolers and heads in 3-D. Inputs and results are for patches (1, D, H,
    W); :mod:`lesion_d2.inference` tiles and mirrors volumes, and combines the results.

    Args:
        kwargs: see :class:`LesionRCNN`.

    Raises:
        ValueError: a part of the config is for slices, or VIS_PERIOD is set, which is only
            supported for slices.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.vis_period > 0:
            raise ValueError(
                f"VIS_PERIOD: found {self.vis_period}, expected 0 for a {type(self).__name__}: "
                "training pictures are only supported for slices"
            )

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``LesionRCNN3D(cfg)``."""
        for key, (registry, kind) in _PARTS.items():
            if key == "MODEL.ROI_MASK_HEAD.NAME" and not cfg.MODEL.MASK_ON:
                continue
            node = cfg
            for name in key.split("."):
                node = node[name]
            if not (node in registry and issubclass(registry.get(node), kind)):
                raise ValueError(
                    f"{key}: found {node!r}, expected {kind.__name__!r} for a {cls.__name__}"
                )
        return super().from_config(cfg)

    @staticmethod
    def postprocess(result: Instances, input_dict: dict) -> Instances:
        """Clip boxes to the patch, and paste the masks into it.

        Args:
            result: detections of one image, with boxes in its voxels and, with masks,
                ``pred_masks`` (n, 1, d, h, w), probabilities inside the boxes. Detections outside
                the image are dropped.
            input_dict: ignored; patches are not resized.

        Returns:
            With ``pred_masks`` (n, D, H, W) bool.
        """
        result.pred_boxes.clip(result.image_size)
        result = result[result.pred_boxes.nonempty()]
        if result.has("pred_masks"):
            result.pred_masks = paste_masks_3d(
                result.pred_masks[:, 0], result.pred_boxes.tensor, result.image_size
            )
        return result
