"""Attention gates, and contextual and spatial attention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OPEN = 2.0  # initial bias of the map before the sigmoid, which is 0.88 there


class AttentionGate(nn.Module):
    """The additive attention gate of Schlemper et al., as Zlocha et al. use it (section 2.3).

    The map is ``sigmoid(psi(relu(theta(skip) + phi(coarser))))``, with 1x1 convolutions only, and
    the output is map x skip. The gating signal is the upsampled coarser level. As ``phi`` is 1x1
    and upsampling repeats pixels, ``phi`` is applied before upsampling, at a quarter of the cost.

    Zlocha et al. do not specify the initialization: ours passes most of the skip connection, so
    that training starts close to the network without gates.

    Args:
        skip_channels: channels of the skip connection.
        coarser_channels: channels of the next coarser level.
        inner_channels: channels of the sum; by default half of the skip connection's.
    """

    def __init__(
        self, skip_channels: int, coarser_channels: int, inner_channels: int | None = None
    ):
        super().__init__()
        inner_channels = inner_channels or max(1, skip_channels // 2)
        self.theta = nn.Conv2d(skip_channels, inner_channels, kernel_size=1, bias=False)
        self.phi = nn.Conv2d(coarser_channels, inner_channels, kernel_size=1)
        self.psi = nn.Sequential(nn.Conv2d(inner_channels, 1, kernel_size=1), nn.Sigmoid())
        for conv in (self.theta, self.phi, self.psi[0]):
            weight_init.c2_xavier_fill(conv)
        nn.init.constant_(self.psi[0].bias, _OPEN)

    def forward(self, skip: Tensor, coarser: Tensor) -> Tensor:
        """Gate a skip connection (N, C, H, W) by the next coarser level (N, C', H/2, W/2)."""
        gating = F.interpolate(self.phi(coarser), scale_factor=2.0, mode="nearest")
        return self.psi(F.relu_(gating.add_(self.theta(skip)))) * skip


class MaxNormalizedAttention(nn.Module):
    """Attention by a softmax divided by its maximum (Tao et al., section 2).

    The scores are a convolution of the features, one score per channel, and the largest weight is
    1. The division cancels the sum of the softmax: the result, ``exp((score - largest) / T)``, is
    stable in half precision for 64 x 64 positions as for three images, where the softmax itself
    would underflow.

    The paper does not specify the convolution and its initialization. Ours is 1x1 without bias,
    which would cancel out. It is initialized to zero, so that all weights are 1 and training starts
    with the detector without attention.

    Args:
        channels: D, the number of feature channels.
        temperature: T, divides the scores; higher values give more uniform weights.
        axes: axes of (N, M, D, H, W) of the softmax.

    Raises:
        ValueError: the temperature is not positive.
    """

    def __init__(self, channels: int, temperature: float, axes: tuple[int, ...]):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: found {temperature}, expected a number above 0")
        self.temperature = temperature
        self.axes = axes
        self.scores = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.scores.weight)

    def weights(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Compute the weights of features, in [0, 1].

        Args:
            features: (N, M, D, H, W).
            sizes: height and width of each of the N stacks' features without padding, which gets
                weights of 0; None for H and W.

        Returns:
            (N, M, D, H, W).
        """
        scores = self.scores(features.flatten(0, 1)).view_as(features)
        if sizes is not None:
            scores.masked_fill_(_padding(scores, sizes), -torch.inf)
        largest = _largest(scores, self.axes).clamp(min=torch.finfo(scores.dtype).min)
        return (scores - largest).div_(self.temperature).exp_()

    def forward(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Return the features times their weights, see :meth:`weights`."""
        return self.weights(features, sizes) * features


class ContextualAttention(MaxNormalizedAttention):
    """Weighs the M images of each position and channel (Tao et al., equations (1) to (4)).

    Args:
        channels: D, the number of feature channels.
        temperature: 2 in the paper (section 3).
    """

    def __init__(self, channels: int, temperature: float = 2.0):
        super().__init__(channels, temperature, axes=(1,))


class SpatialAttention(MaxNormalizedAttention):
    """Weighs the positions of each image and channel (Tao et al., equations (5) to (8)).

    Its input is the output of the contextual attention, as in the text and Fig. 1; equation (5)
    uses the features before it.

    Args:
        channels: D, the number of feature channels.
        temperature: 3 in the paper (section 3).
    """

    def __init__(self, channels: int, temperature: float = 3.0):
        super().__init__(channels, temperature, axes=(3, 4))


def _largest(scores: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``scores.amax(axes, keepdim=True)`` of (N, M, D, H, W), in the memory format of the scores.

    The result of amax is contiguous, and with channels last (D here) all subsequent results would
    change their memory format.
    """
    if scores.stride(2) != 1:
        return scores.amax(axes, keepdim=True)
    last = scores.movedim(2, -1)
    return last.amax([axis - (axis > 2) for axis in axes], keepdim=True).movedim(-1, 2)


def _padding(features: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Positions of (N, M, D, H, W) outside N heights and widths, (N, 1, 1, H, W) bool."""
    height, width = features.shape[-2:]
    y, x = (torch.arange(side, device=features.device) for side in (height, width))
    # With Python numbers: copying them to a GPU as a tensor would synchronize.
    outside_y, outside_x = (
        torch.stack([axis >= limit for limit in limits])
        for axis, limits in zip((y, x), zip(*sizes, strict=True), strict=True)
    )
    return (outside_y[:, :, None] | outside_x[:, None, :])[:, None, None]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Context manager that records the maps of a model's attention gates.

    >>> with record_attention(model) as maps:
    ...     model(batched_inputs)
    >>> maps["p2"]  # also "p4", "p3" and, if masks are computed, "p1" and "p0"

    Returns:
        A dict that is updated by each forward pass: output level of a gate -> map (N, 1, H, W) in
            [0, 1] at the level's resolution, for the padded batch. Maps of gates that a pass does
            not use are not changed.
    """
    maps: dict[str, Tensor] = {}

    def record(level: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Store the map of a gate."""
        maps[level] = output.detach()

    handles = [
        gate.psi.register_forward_hook(partial(record, name.rpartition(".")[2]))
        for name, gate in model.named_modules()
        if isinstance(gate, AttentionGate)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
