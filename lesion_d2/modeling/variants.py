"""Variants of detectors that skip unneeded outputs."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

# Attributes of ROI heads and one-stage detectors that enable masks.
_MASKS = ("mask_on", "predict_masks")


def variant_of(model: nn.Module, changes: Callable[[nn.Module], Mapping[str, Any]]) -> nn.Module:
    """Make a variant of a model that differs in attributes of modules and shares all weights.

    The model is not modified. Only modules with a change in them or below them are copied; copies
    share parameters, buffers and hooks with the original.

    Args:
        model: the original; not modified.
        changes: returns the attributes of a module to change in the variant; empty for none.

    Returns:
        The variant; ``model`` itself if nothing differs.
    """
    return _variant(model, changes, {})


def _variant(
    module: nn.Module,
    changes: Callable[[nn.Module], Mapping[str, Any]],
    known: dict[nn.Module, nn.Module],
) -> nn.Module:
    if module in known:  # shared modules stay shared
        return known[module]
    values = changes(module)
    children = {
        name: child if child is None else _variant(child, changes, known)
        for name, child in module._modules.items()
    }
    known[module] = module
    if values or any(child is not module._modules[name] for name, child in children.items()):
        known[module] = copy.copy(module)
        known[module]._modules = children
        for name, value in values.items():
            setattr(known[module], name, value)
    return known[module]


def without_masks(model: nn.Module) -> nn.Module:
    """Make a variant of a model without masks; its boxes and scores are the same.

    Args:
        model: a detector, or a module that contains detectors, such as an ensemble.
    """
    return variant_of(model, _no_masks)


def _no_masks(module: nn.Module) -> dict[str, Any]:
    return {name: False for name in _MASKS if getattr(module, name, False)}


def without_low_scores(model: nn.Module, threshold: float) -> nn.Module:
    """Make a variant of a detector without detections below a score threshold.

    NMS of the others is not affected, as only higher scores suppress them. Calibration changes
    scores after NMS, so a calibrated detector keeps its own threshold.

    Args:
        model: a detector.
        threshold: detections with this score or more are kept.
    """
    below = threshold * (1 - 1e-6)  # detectors keep scores above their threshold

    def raised(module: nn.Module) -> dict[str, Any]:
        keeps = getattr(module, "calibration", 0) > 0
        if keeps or getattr(module, "test_score_thresh", below) >= below:
            return {}
        return {"test_score_thresh": below}

    return variant_of(model, raised)
