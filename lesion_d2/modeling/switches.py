"""What a detector leaves out for a while, because nobody wants it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Attributes by which ROI heads and one-stage detectors say whether they predict masks.
_MASKS = ("mask_on", "predict_masks")

#: A module, the name of its attribute, and the value that it gets.
Change = tuple[nn.Module, str, Any]


@contextmanager
def changed(changes: Iterable[Change]) -> Iterator[None]:
    """Give attributes of modules other values inside the block."""
    changes = list(changes)
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def no_masks(model: nn.Module) -> list[Change]:
    """What lets a model predict no masks; its boxes and scores stay as they are.

    Args:
        model: a detector, or what holds some, such as an ensemble.
    """
    return [
        (module, name, False)
        for module in model.modules()
        for name in _MASKS
        if getattr(module, name, False)
    ]
