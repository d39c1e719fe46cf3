"""Weights of convolutions that look at the image: for three channels, and for C slices."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_RGB = 3
# Detectron2 finds the model's names by their ends; Caffe2's ResNets have one of their own.
_CAFFE2_NAMES = {"conv1_w": "stem.conv1.weight"}


def adapt_slices(weights: dict[str, Any], model_weights: Mapping[str, Tensor]) -> None:
    """Adapt convolutions of three-channel images to a model's C channels, and log it.

    These are, in any backbone, convolutions with three input channels where the model has C and is
    otherwise the same. Each of the C channels gets the mean over the three, times 3 / C: an image
    whose channels are all alike then gives the activations that it gave with three. C = 3 is left
    as it is.

    Args:
        weights: names to tensors or arrays, of a whole detector or of a backbone, with the model's
            names or the ends of them, or Caffe2's; changed in place.
        model_weights: the state of the model that they are for.
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
    """Check that weights are for a model's number of slices.

    Detectron2 would leave a first convolution of another number as it was drawn.

    Args:
        weights: names to tensors or arrays, as for :func:`adapt_slices`, which comes before where
            they may be adapted.
        model: what they are for; a detector has ``pixel_mean``, with a value a slice.

    Raises:
        ValueError: a convolution that looks at the image is for another number of channels.
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
    """Input channels of the model's weights of a name, where they alone are others."""
    if len(shape) < 4:  # no convolution
        return set()
    shapes = {tuple(model_weights[known].shape) for known in _named(name, model_weights)}
    if shape in shapes:
        return set()
    return {
        s[1] for s in shapes if len(s) == len(shape) and (s[0], *s[2:]) == (shape[0], *shape[2:])
    }


def _named(name: str, known: Iterable[str]) -> list[str]:
    """The names that a weight of a file may have in the model."""
    name = _CAFFE2_NAMES.get(name, name).removeprefix("module.")
    return [name] if name in known else [k for k in known if k.endswith(f".{name}")]
