"""Adapts weights of first convolutions from three channels to C slices."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_RGB = 3
# Detectron2 matches names by suffix; Caffe2's ResNets have a different name.
_CAFFE2_NAMES = {"conv1_w": "stem.conv1.weight"}


def adapt_slices(weights: dict[str, Any], model_weights: Mapping[str, Tensor]) -> None:
    """Adapt first convolutions for three-channel images to a model's C channels, and log it.

    In any backbone, these are convolutions with three input channels where the model has C and the
    rest of the shape is the same. Each of the C channels gets the mean over the three, times 3 / C,
    so that an image with equal channels gives the same activations as before. Nothing changes for C
    = 3.

    Args:
        weights: names to tensors or arrays of a detector or backbone, with the model's names,
            suffixes of them, or Caffe2's names; modified in place.
        model_weights: state dict of the model.
    """
    for name, value in weights.items():
        shape = tuple(value.shape)
        others = _other_channels(name, shape, model_weights)
        if len(others) != 1 or shape[1] != _RGB:
            continue
        [channels] = others
        mean = torch.as_tensor(value).mean(dim=1, keepdim=True)
        repeats = (1, channels, *[1] * (len(shape) - 2))
        weights[name] = mean.repeat(repeats) * (_RGB / channels)
        logger.info(f"Adapted {name} from {_RGB} to {channels} input channels")


def check_slices(weights: Mapping[str, Any], model: nn.Module) -> None:
    """Check that weights match a model's number of slices.

    Detectron2 would keep the random initialization of a first convolution with another number.

    Args:
        weights: names to tensors or arrays, see :func:`adapt_slices`, which is called before if
            they may be adapted.
        model: the model; a detector has ``pixel_mean`` with one value per slice.

    Raises:
        ValueError: a first convolution has another number of input channels.
    """
    looks_at_images = {_RGB, len(getattr(model, "pixel_mean", ()))}
    model_weights = model.state_dict()
    for name, value in weights.items():
        shape = tuple(value.shape)
        expected = looks_at_images & _other_channels(name, shape, model_weights)
        if expected:
            raise ValueError(
                f"found weights for images of {shape[1]} slices ({name}), expected "
                f"{min(expected)} (INPUT.CT.NUM_SLICES)"
            )


def _other_channels(
    name: str, shape: tuple[int, ...], model_weights: Mapping[str, Tensor]
) -> set[int]:
    """Input channels of the model's weight, if the shapes differ only in them."""
    if len(shape) < 4:  # not a convolution
        return set()
    shapes = {tuple(model_weights[known].shape) for known in _named(name, model_weights)}
    if shape in shapes:
        return set()
    return {
        s[1] for s in shapes if len(s) == len(shape) and (s[0], *s[2:]) == (shape[0], *shape[2:])
    }


def _named(name: str, known: Iterable[str]) -> list[str]:
    """The possible names in the model of a weight of a file."""
    name = _CAFFE2_NAMES.get(name, name).removeprefix("module.")
    return [name] if name in known else [k for k in known if k.endswith(f".{name}")]
