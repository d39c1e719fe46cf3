"""Error messages for invalid inputs of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN

from ..modeling import ULDorROIHeads
from ..utils.errors import InputError
from ..utils.files import one_line


@contextmanager
def as_input_error(prefix: str) -> Iterator[None]:
    """Turn exceptions of config and file readers into an InputError with a prefix."""
    # yacs raises KeyError and AssertionError for invalid configs.
    try:
        yield
    except (AssertionError, KeyError, OSError, ValueError) as error:
        text = one_line(error.args[0] if isinstance(error, KeyError) else error)
        source, separator, rest = text.partition(": ")
        if separator and prefix.endswith(f" {source}: "):  # do not name a file twice
            text = rest
        raise InputError(prefix + text) from error


def is_a(cfg: CfgNode, *classes: type) -> bool:
    """Whether MODEL.META_ARCHITECTURE is one of these classes or a subclass."""
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(architecture, type) and issubclass(architecture, classes)


def has_uldor_heads(cfg: CfgNode) -> bool:
    """Whether the model is two-stage with ULDorROIHeads or a subclass."""
    name = cfg.MODEL.ROI_HEADS.NAME
    return (
        is_a(cfg, GeneralizedRCNN)
        and name in ROI_HEADS_REGISTRY
        and issubclass(ROI_HEADS_REGISTRY.get(name), ULDorROIHeads)
    )


def switched_on(cfg: CfgNode, prefix: str) -> str:
    """Describe which of ``<prefix>EPOCHS`` and ``<prefix>PERIOD`` is above 0; "" if none is."""
    for key in (f"{prefix}EPOCHS", f"{prefix}PERIOD"):
        value = value_of(cfg, key)
        if value > 0:
            return f"{key} is {value}"
    return ""


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a key such as ``"MODEL.WEIGHTS"``."""
    return reduce(getitem, key.split("."), cfg)
