"""ROI heads in 3-D."""

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import build_box_head, build_mask_head

from ..roi_heads import LesionROIHeads
from .box_head import FastRCNNOutputLayers3D
from .poolers import ROIPooler3D
from .shape import VolumeShape


@ROI_HEADS_REGISTRY.register()
class LesionROIHeads3D(LesionROIHeads):
    """:class:`LesionROIHeads` for volumes: the same code with poolers and heads in 3-D.

    Regions are pooled to POOLER_RESOLUTION in-plane and to MODEL.VOLUMETRIC.BOX_POOLER_DEPTH and
    MASK_POOLER_DEPTH slices (Jaeger et al., section 4.1: 7 x 7 x 3 and 14 x 14 x 5), from the level
    of their in-plane size (CANONICAL_SIZE).
    """

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Arguments of ``LesionROIHeads3D(cfg, input_shape)``."""
        if cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES: found True, expected False for models for "
                "volumes"
            )
        return super().from_config(cfg, input_shape)

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        options = cfg.MODEL.ROI_BOX_HEAD
        pooler, shape = _pooler(cfg, options, cfg.MODEL.VOLUMETRIC.BOX_POOLER_DEPTH, input_shape)
        box_head = build_box_head(cfg, shape)
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers3D(cfg, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg, input_shape) -> dict:
        if not cfg.MODEL.MASK_ON:
            return {}
        options = cfg.MODEL.ROI_MASK_HEAD
        pooler, shape = _pooler(cfg, options, cfg.MODEL.VOLUMETRIC.MASK_POOLER_DEPTH, input_shape)
        return {
            "mask_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "mask_pooler": pooler,
            "mask_head": build_mask_head(cfg, shape),
        }


def _pooler(
    cfg, options, depth: int, input_shape: dict[str, VolumeShape]
) -> tuple[ROIPooler3D, VolumeShape]:
    """Build the pooler of a head from its config node; returns it and the shape of its output."""
    levels = [input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    channels = {level.channels for level in levels}
    if len(channels) > 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES: found levels of {sorted(channels)} channels, expected "
            "the same number on all levels"
        )
    size = (depth, options.POOLER_RESOLUTION, options.POOLER_RESOLUTION)
    pooler = ROIPooler3D(
        size,
        [level.strides for level in levels],
        sampling_ratio=options.POOLER_SAMPLING_RATIO,
        canonical_box_size=cfg.MODEL.VOLUMETRIC.CANONICAL_SIZE,
    )
    shape = VolumeShape(channels=levels[0].channels, height=size[1], width=size[2], depth=size[0])
    return pooler, shape
