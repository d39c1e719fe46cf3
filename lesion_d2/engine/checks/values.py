"""Keys of a config whose values can be told to be wrong by themselves."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode

from ..input_errors import InputError, value_of

#: A key, whether a value of it can be used, and what is expected.
Check = tuple[str, Callable[[Any], bool], str]


def at_least(least: float) -> Callable[[float], bool]:
    """Whether a number is finite and not below another one."""
    return lambda value: least <= value < math.inf


def check_values(cfg: CfgNode, checks: Iterable[Check]) -> None:
    """Check values of keys.

    Raises:
        InputError: names the first key whose value cannot be used.
    """
    for key, is_usable, expected in checks:
        value = value_of(cfg, key)
        if not is_usable(value):
            raise InputError(f"{key}: found {value!r}, expected {expected}")
