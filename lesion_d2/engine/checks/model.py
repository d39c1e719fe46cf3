"""Checks of the model in a config."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import nn

from ...modeling import (
    AttentionGate,
    ContextualAttention,
    DetUNet,
    LesionRCNN,
    LesionRetinaNet,
    LesionROIHeads,
    LesionRPN,
    RetinaUNet,
    SpatialAttention,
    ULDorROIHeads,
)
from ...utils.files import one_line
from ..input_errors import InputError, has_uldor_heads, is_a, value_of
from .values import Check, check_values

logger = logging.getLogger(__name__)

_MODEL_CHECKS: tuple[Check, ...] = (
    ("MODEL.RETINA_UNET.SEG_LOSS_WEIGHT", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.SEG_HEAD.FOCAL_ALPHA", lambda v: 0 <= v <= 1, "0 to 1"),
    ("MODEL.SEG_HEAD.FOCAL_GAMMA", lambda v: v >= 0, "0 or more"),
    ("INPUT.BOX_MARGIN", lambda v: v >= 0, "0 or more pixels"),
    ("MODEL.RETINA_UNET.SHEM_POOL", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.RETINANET.ATSS_CANDIDATES", lambda v: v >= 0, "0 (off) or more positions"),
    ("MODEL.RETINA_UNET.SHEM_NEGATIVES", lambda v: v >= 0, "0 (as positives) or more a positive"),
    ("MODEL.RETINA_UNET.SHEM_POSITIVES", lambda v: v >= 0, "0 (all) or more anchors"),
    ("MODEL.LESION_RCNN.SEG_LOSS_WEIGHT", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.LESION_RCNN.SHEM_POOL", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.UNET_FPN.C0_CHANNELS", lambda v: v >= 0, "0 (no C0) or more channels"),
    ("MODEL.DET_UNET.MAX_COMPONENTS", lambda v: v >= 1, "1 or more"),
    ("MODEL.RFCN_3DCE.CONTEXTUAL_TEMPERATURE", lambda v: v > 0, "above 0"),
    ("MODEL.RFCN_3DCE.SPATIAL_TEMPERATURE", lambda v: v > 0, "above 0"),
    ("MODEL.RFCN_3DCE.NUM_SCORE_MAPS", lambda v: v >= 1, "1 or more"),
    ("MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE", lambda v: v >= 0, "0 (none) or more images"),
)
ULDOR_HEADS = ULDorROIHeads.__name__
# Exceptions of Detectron2 and torch for invalid values.
_BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    TypeError,
    ValueError,
)
# A key, the part that it enables, and the backbones that have it.
_ATTENTIONS: tuple[tuple[str, type, str], ...] = (
    ("MODEL.UNET_FPN.ATTENTION", AttentionGate, "a U-FPN"),
    *(
        (f"MODEL.RFCN_3DCE.{name}_ATTENTION", kind, "build_slice_images_backbone")
        for name, kind in (("CONTEXTUAL", ContextualAttention), ("SPATIAL", SpatialAttention))
    ),
)


def check_model(cfg: CfgNode) -> nn.Module:
    """Build the model on the meta device, which checks its config keys.

    Returns:
        The model on the meta device, or an empty module if it cannot be built there.

    Raises:
        InputError: it cannot be built, or lacks a part that a key enables.
    """
    check_values(cfg, _MODEL_CHECKS)
    found, strength = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINA_UNET.CALIBRATION
    if strength > 0 and not is_a(cfg, RetinaUNet):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected 'RetinaUNet' for the calibration "
            f"(MODEL.RETINA_UNET.CALIBRATION is {strength})"
        )
    if not cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES and not is_a(cfg, LesionRetinaNet):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected a LesionRetinaNet or RetinaUNet "
            "(MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES is False)"
        )
    _check_one_stage(cfg)
    seg_loss_weight = cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT
    if seg_loss_weight > 0 and not is_a(cfg, LesionRCNN):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected 'LesionRCNN' for its segmentation "
            f"loss (MODEL.LESION_RCNN.SEG_LOSS_WEIGHT is {seg_loss_weight})"
        )
    if cfg.INPUT.CT.CROP_TO_BODY and not is_a(cfg, DetUNet, LesionRCNN, RetinaUNet):
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected a DetUNet, LesionRCNN or "
            "RetinaUNet, which bring boxes back to the slice (INPUT.CT.CROP_TO_BODY is True)"
        )
    try:
        with torch.device("meta"):
            model = META_ARCH_REGISTRY.get(found)(cfg)
    except _BUILD_ERRORS as error:
        # Detectron2 raises a KeyError with only the name if it is not registered.
        text = one_line(error)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise InputError(
            f"MODEL: found {found} on {cfg.MODEL.BACKBONE.NAME} not to be built: {kind}{text}"
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        # Some backbones cannot be built on the meta device; they are checked when the run builds
        # them.
        logger.info(f"{found} on {cfg.MODEL.BACKBONE.NAME} was not checked beforehand: {error}")
        return nn.Identity()
    for key, kind, expected in _ATTENTIONS:
        if value_of(cfg, key) and not any(isinstance(m, kind) for m in model.modules()):
            raise InputError(
                f"MODEL.BACKBONE.NAME: found {cfg.MODEL.BACKBONE.NAME}, expected {expected} for "
                f"{key} True"
            )
    _check_shem(cfg, model)
    if cfg.MODEL.ULDOR.COUNT_FALSE_POSITIVES and not has_uldor_heads(cfg):
        raise InputError(
            f"{found_heads(cfg)}, expected {ULDOR_HEADS!r} for "
            "MODEL.ULDOR.COUNT_FALSE_POSITIVES True"
        )
    return model


def _check_one_stage(cfg: CfgNode) -> None:
    """Check that keys for one-stage models are only set with these."""
    found, shem, retinanet = (
        cfg.MODEL.META_ARCHITECTURE,
        cfg.MODEL.RETINA_UNET,
        cfg.MODEL.RETINANET,
    )
    for key, kind, expected in (
        ("MODEL.RETINANET.ATSS_CANDIDATES", LesionRetinaNet, "a LesionRetinaNet or RetinaUNet"),
        ("MODEL.RETINA_UNET.SHEM_NEGATIVES", RetinaUNet, "a RetinaUNet"),
    ):
        value = value_of(cfg, key)
        if value > 0 and not is_a(cfg, kind):
            raise InputError(
                f"MODEL.META_ARCHITECTURE: found {found!r}, expected {expected}, in 2-D or 3-D, "
                f"for {key} {value}"
            )
    if shem.SHEM_NEGATIVES > 0 and shem.SHEM_POOL == 0:
        raise InputError(
            f"MODEL.RETINA_UNET.SHEM_NEGATIVES: found {shem.SHEM_NEGATIVES}, expected 0, or a pool "
            "that negatives are drawn from (MODEL.RETINA_UNET.SHEM_POOL is 0)"
        )
    if retinanet.ATSS_CENTER_INSIDE and retinanet.ATSS_CANDIDATES == 0:
        raise InputError(
            "MODEL.RETINANET.ATSS_CENTER_INSIDE: found True, expected False, or candidates that it "
            "is asked of (MODEL.RETINANET.ATSS_CANDIDATES is 0)"
        )


def _check_shem(cfg: CfgNode, model: nn.Module) -> None:
    pool = cfg.MODEL.LESION_RCNN.SHEM_POOL
    if pool == 0 or not isinstance(model, GeneralizedRCNN):
        return
    for key, part, kind in (
        ("MODEL.PROPOSAL_GENERATOR.NAME", model.proposal_generator, LesionRPN),
        ("MODEL.ROI_HEADS.NAME", model.roi_heads, LesionROIHeads),
    ):
        if not isinstance(part, kind):
            raise InputError(
                f"{key}: found {value_of(cfg, key)!r}, expected {kind.__name__!r} for hard example "
                f"mining (MODEL.LESION_RCNN.SHEM_POOL is {pool})"
            )


def found_heads(cfg: CfgNode) -> str:
    """Start of the message for a model that needs other heads."""
    if is_a(cfg, GeneralizedRCNN):
        return f"MODEL.ROI_HEADS.NAME: found {cfg.MODEL.ROI_HEADS.NAME!r}"
    found = cfg.MODEL.META_ARCHITECTURE
    return f"MODEL.META_ARCHITECTURE: found {found!r}, which has no MODEL.ROI_HEADS"
