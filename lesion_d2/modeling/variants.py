"""Detectors that compute less than they could, because nobody wants the rest."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

# Attributes by which ROI heads and one-stage detectors say whether they predict masks.
_MASKS = ("mask_on", "predict_masks")


def variant_of(model: nn.Module, changes: Callable[[nn.Module], Mapping[str, Any]]) -> nn.Module:
    """A model that differs in attributes of its modules, and shares all weights with another.

    The other one stays as it is. Only modules with a change in them or below them are copied, and
    copies share parameters, buffers and hooks with what they were copied from.

    Args:
        model: not changed.
        changes: maps one of its modules to the attributes that it has in the variant; empty for
            none.

    Returns:
        ``model`` itself where nothing differs.
    """
    return _variant(model, changes, {})


def _variant(
    module: nn.Module,
    changes: Callable[[nn.Module], Mapping[str, Any]],
    known: dict[nn.Module, nn.Module],
) -> nn.Module:
    if module in known:  # a part of two others stays one part
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
    """A variant of a model that predicts no masks; its boxes and scores are the same.

    Args:
        model: a detector, or what holds some, such as an ensemble.
    """
    return variant_of(model, _no_masks)


def _no_masks(module: nn.Module) -> dict[str, Any]:
    return {name: False for name in _MASKS if getattr(module, name, False)}


def without_low_scores(model: nn.Module, threshold: float) -> nn.Module:
    """A variant of a detector that leaves out detections with scores below a threshold.

    NMS keeps the same of the others, which only higher scores suppress. Calibration changes scores
    after NMS, so a calibrated detector keeps its own threshold.

    Args:
        model: a detector.
        threshold: detections of this score are kept.
    """
    below = threshold * (1 - 1e-6)  # detectors ask for more than their threshold

    def raised(module: nn.Module) -> dict[str, Any]:
        keeps = getattr(module, "calibration", 0) > 0
        if keeps or getattr(module, "test_score_thresh", below) >= below:
            return {}
        return {"test_score_thresh": below}

    return variant_of(model, raised)
