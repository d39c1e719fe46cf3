"""Checks of single config values."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode

from ..input_errors import InputError, value_of

#: A key, a check of its value, and a description of valid values.
Check = tuple[str, Callable[[Any], bool], str]


def at_least(least: float) -> Callable[[float], bool]:
    """Return a check that a number is finite and at least ``least``."""
    return lambda value: least <= value < math.inf


def check_values(cfg: CfgNode, checks: Iterable[Check]) -> None:
    """Check the values of keys.

    Raises:
        InputError: a value is invalid; the message names the first such key.
    """
    for key, is_usable, expected in checks:
        value = value_of(cfg, key)
        if not is_usable(value):
            raise InputError(f"{key}: found {value!r}, expected {expected}")
