"""Attention gates, and contextual and spatial attention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OPEN = 2.0  # the bias of the map before the sigmoid, which is 0.88 there


class AttentionGate(nn.Module):
    """The additive attention gate of Schlemper et al., as Zlocha et al. use it (section 2.3).

    The map is ``sigmoid(psi(relu(theta(skip) + phi(coarser))))``, with 1x1 convolutions only, and
    the output is map x skip. The gating signal is the coarser level, upsampled; as ``phi`` is 1x1
    and the upsampling repeats pixels, it is applied before, at a quarter of the cost.

    Zlocha et al. leave open how the gate starts: ours lets most of the skip connection pass, so
    that training begins close to the network without gates.

    Args:
        skip_channels: channels of the skip connection.
        coarser_channels: channels of the next coarser level.
        inner_channels: channels of the sum; half of the skip connection's by default.
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
    """Attention by a softmax that is divided by its largest value (Tao et al., section 2).

    The scores are a convolution of the features, a score a channel, and the largest weight is 1.
    Dividing by it cancels the sum of the softmax: what is left, ``exp((score - largest) / T)``, is
    as safe in half precision over 64 x 64 positions as over three images, where the softmax itself
    would underflow.

    The paper leaves the convolution and its start open. Ours is 1x1 and without a bias, which would
    cancel as well. It starts from zero, where all weights are 1: training begins with the detector
    without attention.

    Args:
        channels: D of the features.
        temperature: T, by which the scores are divided; the higher, the more even the weights.
        axes: of (N, M, D, H, W), over which a softmax goes.

    Raises:
        ValueError: the temperature is not positive.
    """

    def __init__(self, channels: int, temperature: float, axes: tuple[int, ...]):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature of an attention: found {temperature}, expected above 0")
        self.temperature = temperature
        self.axes = axes
        self.scores = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.scores.weight)

    def weights(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """The weights of features, in [0, 1].

        Args:
            features: (N, M, D, H, W).
            sizes: N heights and widths, the part of each stack's features that is no padding, which
                gets weights of 0; None for H and W.

        Returns:
            (N, M, D, H, W).
        """
        scores = self.scores(features.flatten(0, 1)).view_as(features)
        if sizes is not None:
            scores.masked_fill_(_padding(scores, sizes), -torch.inf)
        largest = _largest(scores, self.axes).clamp(min=torch.finfo(scores.dtype).min)
        return (scores - largest).div_(self.temperature).exp_()

    def forward(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Features times their weights, see :meth:`weights`."""
        return self.weights(features, sizes) * features


class ContextualAttention(MaxNormalizedAttention):
    """Weighs the M images of each position and channel (Tao et al., equations (1) to (4)).

    Args:
        channels: D of the features.
        temperature: 2 in the paper (section 3).
    """

    def __init__(self, channels: int, temperature: float = 2.0):
        super().__init__(channels, temperature, axes=(1,))


class SpatialAttention(MaxNormalizedAttention):
    """Weighs the positions of each image and channel (Tao et al., equations (5) to (8)).

    It looks at what the contextual attention let through, as the text and Fig. 1 have it; equation
    (5) has the features from before.

    Args:
        channels: D of the features.
        temperature: 3 in the paper (section 3).
    """

    def __init__(self, channels: int, temperature: float = 3.0):
        super().__init__(channels, temperature, axes=(3, 4))


def _largest(scores: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``scores.amax(axes, keepdim=True)`` of (N, M, D, H, W), in the layout of the scores.

    amax orders its result in memory as its axes, and with channels last (D here) all that is
    computed with it would change its layout.
    """
    if scores.stride(2) != 1:
        return scores.amax(axes, keepdim=True)
    last = scores.movedim(2, -1)
    return last.amax([axis - (axis > 2) for axis in axes], keepdim=True).movedim(-1, 2)


def _padding(features: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Which positions of (N, M, D, H, W) lie outside of N heights and widths; (N, 1, 1, H, W)."""
    height, width = features.shape[-2:]
    y, x = (torch.arange(side, device=features.device) for side in (height, width))
    # By numbers of the host: to bring a tensor of them to a GPU waits for it.
    outside_y, outside_x = (
        torch.stack([axis >= limit for limit in limits])
        for axis, limits in zip((y, x), zip(*sizes, strict=True), strict=True)
    )
    return (outside_y[:, :, None] | outside_x[:, None, :])[:, None, None]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the maps of a model's attention gates while the context lasts.

    >>> with record_attention(model) as maps:
    ...     model(batched_inputs)
    >>> maps["p2"]  # as are "p4", "p3" and, where masks are computed, "p1" and "p0"

    Returns:
        A dict that holds after each forward pass, by the level that a gate leads to, its map
        (N, 1, H, W) in [0, 1] at the level's resolution, for the padded batch. Gates that the pass
        did not come through keep what they had.
    """
    maps: dict[str, Tensor] = {}

    def record(level: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep the map that a gate computed."""
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
