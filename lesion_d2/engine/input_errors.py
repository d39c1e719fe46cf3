"""What a run tells its user where its inputs cannot be used."""

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
    """Turn what the readers of configs and files raise into an InputError with a prefix."""
    # yacs reports by KeyError and AssertionError what is wrong in a config.
    try:
        yield
    except (AssertionError, KeyError, OSError, ValueError) as error:
        text = one_line(error.args[0] if isinstance(error, KeyError) else error)
        source, separator, rest = text.partition(": ")
        if separator and prefix.endswith(f" {source}: "):  # a file is named once
            text = rest
        raise InputError(prefix + text) from error


def is_a(cfg: CfgNode, *classes: type) -> bool:
    """Whether MODEL.META_ARCHITECTURE is one of these or of the classes derived from them."""
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(architecture, type) and issubclass(architecture, classes)


def has_uldor_heads(cfg: CfgNode) -> bool:
    """Whether MODEL.ROI_HEADS.NAME is ULDorROIHeads or derived from it, in a two-stage model."""
    name = cfg.MODEL.ROI_HEADS.NAME
    return (
        is_a(cfg, GeneralizedRCNN)
        and name in ROI_HEADS_REGISTRY
        and issubclass(ROI_HEADS_REGISTRY.get(name), ULDorROIHeads)
    )


def switched_on(cfg: CfgNode, prefix: str) -> str:
    """Which of ``<prefix>EPOCHS`` and ``<prefix>PERIOD`` is above 0, in words; "" if none is."""
    for key in (f"{prefix}EPOCHS", f"{prefix}PERIOD"):
        value = value_of(cfg, key)
        if value > 0:
            return f"{key} is {value}"
    return ""


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key such as ``"MODEL.WEIGHTS"``."""
    return reduce(getitem, key.split("."), cfg)
