"""Checks of the model in a config: it is built without memory."""

import logging
import traceback

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ...modeling import AttentionGate, ContextualAttention, SpatialAttention
from ...utils.files import one_line
from ..input_errors import InputError, value_of

logger = logging.getLogger(__name__)

# Exceptions of Detectron2 and torch for invalid values.
_BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError)
_BUILD_ERRORS += (MemoryError, TypeError, ValueError)
# A key, the part that it enables, and the backbones that have it.
_ATTENTIONS: tuple[tuple[str, type, str], ...] = (
    ("MODEL.UNET_FPN.ATTENTION", AttentionGate, "a U-FPN"),
    ("MODEL.RFCN_3DCE.CONTEXTUAL_ATTENTION", ContextualAttention, "build_slice_images_backbone"),
    ("MODEL.RFCN_3DCE.SPATIAL_ATTENTION", SpatialAttention, "build_slice_images_backbone"),
)


def check_model(cfg: CfgNode) -> nn.Module:
    """Build the model on the meta device, which checks its config keys.

    Returns:
        The model on the meta device, or an empty module if it cannot be built there.

    Raises:
        InputError: it cannot be built, or has no attention although a key enables it.
    """
    name = f"{cfg.MODEL.META_ARCHITECTURE} on {cfg.MODEL.BACKBONE.NAME}"
    try:
        with torch.device("meta"):
            model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    except _BUILD_ERRORS as error:
        # Detectron2 raises a KeyError with only the name if it is not registered, and asserts
        # without a text.
        text = one_line(error) or traceback.extract_tb(error.__traceback__)[-1].line
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise InputError(f"MODEL: found {name} not to be built: {kind}{text}") from error
    except (NotImplementedError, RuntimeError) as error:
        # Some backbones cannot be built on the meta device; the run checks them as it builds them.
        logger.info(f"{name} was not checked beforehand: {error}")
        return nn.Identity()
    for key, kind, expected in _ATTENTIONS:
        if value_of(cfg, key) and not any(isinstance(m, kind) for m in model.modules()):
            raise InputError(
                f"MODEL.BACKBONE.NAME: found {cfg.MODEL.BACKBONE.NAME!r}, expected {expected} "
                f"({key} is True)"
            )
    return model
