import logging
import math
from fractions import Fraction

from detectron2.config import CfgNode

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
        ValueError: a number of epochs is negative.
    """
    for section, source, _ in (*_EPOCH_KEYS, _STEP_KEYS):
        epochs = cfg[section][source]
        for value in epochs if isinstance(epochs, tuple | list) else (epochs,):
            if value < 0:
                raise ValueError(f"{section}.{source}: found {value}, expected 0 (not set) or more")


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
