"""A narrow backbone of volumes."""

import lesion_d2

from detectron2.config import get_cfg

LEVELS = ["res2", "res3", "res4", "res5"]


def volumetric_config(*opts):
    """A narrow ResNet; of depth 18 unless said otherwise."""
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = LEVELS
    cfg.MODEL.FPN.IN_FEATURES = LEVELS
    cfg.MODEL.FPN.OUT_CHANNELS = 6
    cfg.MODEL.UNET_FPN.DECODER_CHANNELS = (5, 3)
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.merge_from_list(list(opts))
    return cfg
