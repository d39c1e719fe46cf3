"""The configs of the measured models."""

from pathlib import Path

from lesion_d2.config import LesionConfig, get_lesion_config
from lesion_d2.tools.common.checkout import find_in_checkout

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

CONFIGS = find_in_checkout("configs")
CPU_CONFIG = CONFIGS / "quickstart" / "retina_unet_phantom.yaml"
GPU_CONFIG = CONFIGS / "retina_unet" / "retina_unet_R_50_deeplesion.yaml"
ZLOCHA_CPU_CONFIG = CONFIGS / "improved_retinanet" / "attention_phantom.yaml"
ZLOCHA_GPU_CONFIG = CONFIGS / "improved_retinanet" / "attention.yaml"
ULDOR_CPU_CONFIG = CONFIGS / "uldor" / "uldor_phantom.yaml"
ULDOR_GPU_CONFIG = CONFIGS / "uldor" / "uldor.yaml"
TAO_CONFIG = CONFIGS / "3dce_attention" / "rfcn.yaml"
TAO_STACK_CONFIG = CONFIGS / "3dce_attention" / "3dce_9.yaml"
TAO_ATTENTION_CONFIG = CONFIGS / "3dce_attention" / "3dce_9_cs.yaml"
TAO_VOLUMES_CONFIG = CONFIGS / "3dce_attention" / "3dce_15_cs_phantom.yaml"
BAI_CPU_CONFIG = CONFIGS / "mean_teacher" / "add_phantom.yaml"
BAI_GPU_CONFIG = CONFIGS / "mean_teacher" / "add.yaml"
_VOLUMES = CONFIGS / "retina_unet"
VOLUMES_CPU_CONFIGS = tuple(
    _VOLUMES / "small" / "3d" / f"{name}.yaml" for name in ("retinanet", "retina_unet")
)
VOLUMES_GPU_CONFIGS = tuple(_VOLUMES / f"{name}_3d.yaml" for name in ("retinanet", "retina_unet"))


def name_of(file: Path) -> str:
    """The name of a config in notes: its path in the folder of configs, without the suffix."""
    return file.relative_to(CONFIGS).with_suffix("").as_posix()


def load_config(file: Path, device: str) -> LesionConfig:
    """The config of a file, without pretrained weights."""
    cfg = get_lesion_config()
    cfg.merge_from_file(str(file))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    return cfg


def as_retinanet(cfg: CfgNode) -> CfgNode:
    """Detectron2's RetinaNet on its own FPN, with the same bottom-up network, levels and heads.

    Raises:
        ValueError: MODEL.BACKBONE.NAME is not a U-FPN with a corresponding FPN.
    """
    name = cfg.MODEL.BACKBONE.NAME
    fpn = name.replace("_unet_fpn_", "_fpn_")
    if fpn == name or fpn not in BACKBONE_REGISTRY:
        raise ValueError(
            f"MODEL.BACKBONE.NAME: found {name!r}, expected a U-FPN such as "
            "'build_resnet_unet_fpn_backbone', which has a corresponding FPN"
        )
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = fpn
    return cfg


def as_mask_rcnn(cfg: CfgNode) -> CfgNode:
    """Detectron2's Mask R-CNN with the same network, without ULDor's class of false positives."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES -= 1
    return cfg


def with_output(cfg: CfgNode, *, masks: bool = False, calibration: float = 0.0) -> CfgNode:
    """The same RetinaUNet, with or without segmentation output and calibrated scores."""
    cfg = cfg.clone()
    cfg.MODEL.SEG_HEAD.PREDICT_MASKS = masks
    cfg.MODEL.RETINA_UNET.CALIBRATION = calibration
    return cfg


def with_all_candidates(cfg: CfgNode) -> CfgNode:
    """The same detector without a score threshold.

    Scores of an untrained detector are close to the prior, so the number above a threshold near it
    is random. Without a threshold, RETINANET.TOPK_CANDIDATES_TEST boxes per level (or all of them)
    reach the NMS, and TEST.DETECTIONS_PER_IMAGE are kept: the maximum of a trained detector.
    """
    cfg = cfg.clone()
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    return cfg


def with_all_proposals(cfg: CfgNode) -> CfgNode:
    """The same R-CNN, in which every proposal becomes a detection.

    TEST.DETECTIONS_PER_IMAGE are kept, the maximum of a trained detector.
    """
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    return cfg


def with_most_negatives(cfg: CfgNode) -> CfgNode:
    """The same mining, in which no detection is a hit and any may be a hard negative.

    Every image then has HARD_NEGATIVES.MAX_PER_IMAGE of them, whose masks have to be encoded.
    """
    cfg = cfg.clone()
    cfg.HARD_NEGATIVES.POSITIVE_IOU_THRESH = 1.0
    cfg.HARD_NEGATIVES.MIN_SCORE = 0.0
    return cfg
