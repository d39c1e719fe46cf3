"""Epochs as iterations, and learning rates of layers."""

import logging
import math
from collections.abc import Callable
from fractions import Fraction

from detectron2.config import CfgNode
from torch import nn

logger = logging.getLogger(__name__)

# Where the key of epochs is set, it replaces the key of iterations.
_EPOCH_KEYS = (
    ("SOLVER", "MAX_EPOCHS", "MAX_ITER"),
    ("SOLVER", "CHECKPOINT_EPOCHS", "CHECKPOINT_PERIOD"),
    ("TEST", "EVAL_EPOCHS", "EVAL_PERIOD"),
    ("TEST", "LOSS_EPOCHS", "LOSS_PERIOD"),
    ("HARD_NEGATIVES", "EPOCHS", "PERIOD"),
    ("HARD_NEGATIVES", "START_EPOCHS", "START_ITER"),
)
_STEP_KEYS = ("SOLVER", "STEP_EPOCHS", "STEPS")


def epochs_to_iterations(epochs: float, num_images: int, batch_size: int) -> int:
    """Iterations that show every image ``epochs`` times.

    ``ceil(epochs * num_images / batch_size)``, exact in the decimals that the config shows:

    >>> epochs_to_iterations(1.1, num_images=100, batch_size=10)
    11
    """
    # In floats 1.1 * 100 / 10 is more than 11.
    return math.ceil(Fraction(str(epochs)) * num_images / batch_size)


def check_epochs(cfg: CfgNode) -> None:
    """Check every key of epochs.

    Raises:
        ValueError: a number of epochs is negative or infinite.
    """
    for section, source, _ in (*_EPOCH_KEYS, _STEP_KEYS):
        epochs = cfg[section][source]
        for value in epochs if isinstance(epochs, tuple | list) else (epochs,):
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"{section}.{source}: found {value}, expected 0 (not set) or a number above"
                )


def resolve_epochs(cfg: CfgNode, num_images: int) -> None:
    """Write what the config says in epochs into the keys of iterations, and log it.

    SOLVER.MAX_EPOCHS replaces SOLVER.MAX_ITER, SOLVER.STEP_EPOCHS replaces SOLVER.STEPS,
    SOLVER.CHECKPOINT_EPOCHS replaces SOLVER.CHECKPOINT_PERIOD, TEST.EVAL_EPOCHS replaces
    TEST.EVAL_PERIOD, TEST.LOSS_EPOCHS replaces TEST.LOSS_PERIOD, HARD_NEGATIVES.EPOCHS replaces
    HARD_NEGATIVES.PERIOD and HARD_NEGATIVES.START_EPOCHS replaces HARD_NEGATIVES.START_ITER, each
    where it is set. Steps that do not lie before the last iteration are left out, because
    Detectron2's schedule takes none there.

    Args:
        cfg: changed in place, so not frozen.
        num_images: images of one epoch, those that the training loader leaves out not counted.

    Raises:
        ValueError: a number of epochs is negative.
    """
    check_epochs(cfg)
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    replaced = {}
    for section, source, target in _EPOCH_KEYS:
        epochs = cfg[section][source]
        if epochs > 0:
            cfg[section][target] = epochs_to_iterations(epochs, num_images, batch_size)
            replaced[f"{section}.{target}"] = cfg[section][target]
    if len(cfg.SOLVER.STEP_EPOCHS) > 0:
        cfg.SOLVER.STEPS = tuple(
            epochs_to_iterations(e, num_images, batch_size) for e in cfg.SOLVER.STEP_EPOCHS
        )
        replaced["SOLVER.STEPS"] = cfg.SOLVER.STEPS
    if replaced:
        found = ", ".join(f"{key} = {value}" for key, value in replaced.items())
        logger.info(f"Epochs of {num_images} images in batches of {batch_size}: {found}")
    _drop_late_steps(cfg)


def _drop_late_steps(cfg: CfgNode) -> None:
    steps = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    if len(steps) < len(cfg.SOLVER.STEPS):
        logger.info(
            f"SOLVER.STEPS = {tuple(cfg.SOLVER.STEPS)} becomes {steps}: the others do not lie "
            f"before SOLVER.MAX_ITER = {cfg.SOLVER.MAX_ITER}"
        )
        cfg.SOLVER.STEPS = steps


def check_learning_rate_factors(cfg: CfgNode) -> None:
    """Check the form of SOLVER.LR_FACTORS.

    Raises:
        ValueError: it is no list of layers and positive numbers.
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
    """The factor of the learning rate of a model's parameters, by their names.

    Args:
        cfg: with SOLVER.LR_FACTORS, whose layers are named as in the model, from the left or from
            anywhere after a dot. A later entry goes before an earlier one.
        model: with the layers.

    Raises:
        ValueError: SOLVER.LR_FACTORS names a layer that the model has not, or is of another form.
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
        """That of the last layer of the list that the parameter is of."""
        return next((f for layer, f in reversed(cfg.SOLVER.LR_FACTORS) if _is_of(name, layer)), 1.0)

    return factor


def _is_of(name: str, layer: str) -> bool:
    return f".{layer}." in f".{name}."
