"""Epochs as iterations, and learning rates of layers."""

import logging
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ...config.epochs import EPOCH_KEYS, is_set

logger = logging.getLogger(__name__)


def epochs_to_iterations(epochs: float, num_images: int, batch_size: int) -> int:
    """Return the number of iterations for a number of epochs.

    ``ceil(epochs * num_images / batch_size)``, in exact decimal arithmetic:

    >>> epochs_to_iterations(1.1, num_images=100, batch_size=10)
    11
    """
    # In floating point, 1.1 * 100 / 10 is more than 11.
    return math.ceil(Fraction(str(epochs)) * num_images / batch_size)


def _to_iterations(epochs: Any, num_images: int, batch_size: int) -> Any:
    """:func:`epochs_to_iterations` of a number, or of each in a list."""
    if isinstance(epochs, tuple | list):
        return tuple(epochs_to_iterations(each, num_images, batch_size) for each in epochs)
    return epochs_to_iterations(epochs, num_images, batch_size)


def check_epochs(cfg: CfgNode) -> None:
    """Check all keys in epochs.

    Raises:
        ValueError: a number of epochs is negative or infinite.
    """
    for section, source, *_ in EPOCH_KEYS:
        epochs = cfg[section][source]
        for value in epochs if isinstance(epochs, tuple | list) else (epochs,):
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"{section}.{source}: found {value}, expected 0 (not set) or a positive number"
                )


def resolve_epochs(cfg: CfgNode, num_images: int) -> None:
    """Convert keys in epochs to keys in iterations, and log the result.

    SOLVER.MAX_EPOCHS replaces SOLVER.MAX_ITER, SOLVER.STEP_EPOCHS replaces SOLVER.STEPS,
    SOLVER.CHECKPOINT_EPOCHS replaces SOLVER.CHECKPOINT_PERIOD, TEST.EVAL_EPOCHS replaces
    TEST.EVAL_PERIOD, TEST.LOSS_EPOCHS replaces TEST.LOSS_PERIOD, HARD_NEGATIVES.EPOCHS replaces
    HARD_NEGATIVES.PERIOD and HARD_NEGATIVES.START_EPOCHS replaces HARD_NEGATIVES.START_ITER, if
    set. Steps at or after the last iteration are removed, because Detectron2's schedule does not
    accept them.

    Args:
        cfg: modified in place, so it must not be frozen.
        num_images: number of images per epoch, without those that the training loader skips.

    Raises:
        ValueError: a number of epochs is negative.
    """
    check_epochs(cfg)
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    replaced = {}
    for section, source, target, _ in EPOCH_KEYS:
        epochs = cfg[section][source]
        if is_set(epochs):
            cfg[section][target] = _to_iterations(epochs, num_images, batch_size)
            replaced[f"{section}.{target}"] = cfg[section][target]
    if replaced:
        found = ", ".join(f"{key} = {value}" for key, value in replaced.items())
        logger.info(f"Epochs of {num_images} images in batches of {batch_size}: {found}")
    _drop_late_steps(cfg)


def _drop_late_steps(cfg: CfgNode) -> None:
    steps = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    if len(steps) < len(cfg.SOLVER.STEPS):
        logger.info(
            f"SOLVER.STEPS = {tuple(cfg.SOLVER.STEPS)} is reduced to {steps}: the others are not "
            f"before SOLVER.MAX_ITER = {cfg.SOLVER.MAX_ITER}"
        )
        cfg.SOLVER.STEPS = steps


def check_learning_rate_factors(cfg: CfgNode) -> None:
    """Check the format of SOLVER.LR_FACTORS.

    Raises:
        ValueError: it is not a list of layers and positive numbers.
    """
    for entry in cfg.SOLVER.LR_FACTORS:
        is_pair = isinstance(entry, (list, tuple)) and len(entry) == 2
        if not (is_pair and isinstance(entry[0], str) and _is_positive(entry[1])):
            raise ValueError(
                f"SOLVER.LR_FACTORS: found {entry!r}, expected a layer and a positive number, such "
                'as ["box_head.fc1", 2.0]'
            )


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def learning_rate_factor(cfg: CfgNode, model: nn.Module) -> Callable[[str], float]:
    """Return a function from parameter names to factors of the learning rate.

    Args:
        cfg: config with SOLVER.LR_FACTORS. Layers are named as in the model, from the start or from
            any dot. Later entries take precedence.
        model: the model with these layers.

    Raises:
        ValueError: SOLVER.LR_FACTORS names a layer that the model does not have, or has another
            format.
    """
    check_learning_rate_factors(cfg)
    names = [name for name, _ in model.named_parameters()]
    for layer, _ in cfg.SOLVER.LR_FACTORS:
        if not any(_is_of(name, layer) for name in names):
            raise ValueError(
                f"SOLVER.LR_FACTORS: found {layer!r}, expected a layer of {type(model).__name__}, "
                f"such as {names[-1].rpartition('.')[0]!r}"
            )

    def factor(name: str) -> float:
        """The factor of the last entry that contains the parameter."""
        return next((f for layer, f in reversed(cfg.SOLVER.LR_FACTORS) if _is_of(name, layer)), 1.0)

    return factor


def _is_of(name: str, layer: str) -> bool:
    return f".{layer}." in f".{name}."
