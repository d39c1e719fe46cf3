"""Keys in epochs, which replace keys in iterations if set.

Later values take precedence: iterations on a command line or in a file unset the epochs of the
config that they are merged into.
"""

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..utils.errors import short_repr

logger = logging.getLogger(__name__)

#: A section, its key in epochs, its key in iterations, and the value for "not set".
EPOCH_KEYS: tuple[tuple[str, str, str, Any], ...] = (
    ("SOLVER", "MAX_EPOCHS", "MAX_ITER", 0.0),
    ("SOLVER", "CHECKPOINT_EPOCHS", "CHECKPOINT_PERIOD", 0.0),
    ("TEST", "EVAL_EPOCHS", "EVAL_PERIOD", 0.0),
    ("TEST", "LOSS_EPOCHS", "LOSS_PERIOD", 0.0),
    ("HARD_NEGATIVES", "EPOCHS", "PERIOD", 0.0),
    ("HARD_NEGATIVES", "START_EPOCHS", "START_ITER", 0.0),
    ("SOLVER", "STEP_EPOCHS", "STEPS", ()),
)


def check_one_of_each(place: str, given: Mapping[str, Any]) -> None:
    """Check that epochs and iterations are not both set in one place.

    Args:
        place: prefix of messages.
        given: sections of keys, from YAML or a command line.

    Raises:
        ValueError: both a key in epochs and its key in iterations are set.
    """
    for section, epochs, iterations, _ in EPOCH_KEYS:
        keys = _section(given, section)
        if is_set(keys.get(iterations)) and is_set(keys.get(epochs)):
            raise ValueError(
                f"{place}{section}.{iterations}: found {short_repr(keys[iterations])} and "
                f"{section}.{epochs} {short_repr(keys[epochs])}, expected only one of them"
            )


def unset_epochs(
    place: str, given: Mapping[str, Any], before: Mapping[str, Any], level: int = logging.INFO
) -> dict[str, dict[str, Any]]:
    """Return "not set" for keys in epochs that later iterations replace, and log each.

    Args:
        place: prefix of log lines.
        given: sections of keys that are merged into ``before``.
        before: sections of a config, or of the bases of a file.
        level: log level.

    Returns:
        Sections of keys to merge in addition.
    """
    unset: dict[str, dict[str, Any]] = {}
    for section, epochs, iterations, not_set in EPOCH_KEYS:
        keys, known = _section(given, section), _section(before, section)
        if iterations in keys and epochs not in keys and is_set(known.get(epochs)):
            if comm.is_main_process():  # each process of a run reads the same
                logger.log(
                    level,
                    f"{place}{section}.{iterations}: {short_repr(keys[iterations])} replaces "
                    f"{section}.{epochs} {short_repr(known[epochs])}",
                )
            unset.setdefault(section, {})[epochs] = not_set
    return unset


def is_set(value: Any) -> bool:
    """Return whether a number of epochs or iterations, or a list of them, is set.

    Args:
        value: value of the key, or its text in a file or on a command line.
    """
    try:
        value = CfgNode._decode_cfg_value(value) if isinstance(value, str) else value
    except (MemoryError, RecursionError):  # from Python's parser; merging it is an error
        return True
    return value not in (None, 0, (), [])


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}
