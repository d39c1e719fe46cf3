from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import fvcore.nn.weight_init as weight_init
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
