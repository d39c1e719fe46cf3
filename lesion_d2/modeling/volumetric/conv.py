"""Convolutions in 3-D."""

from collections.abc import Callable, Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norms import get_norm_3d


class Conv3d(nn.Conv3d):
    """A convolution with normalization and activation, as Detectron2's :class:`Conv2d`.

    Args:
        norm: applied to the output, before the activation.
        activation: applied last.
        args, kwargs: see :class:`torch.nn.Conv3d`.
    """

    def __init__(
        self,
        *args,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, D, H, W) to (N, out_channels, D', H', W')."""
        x = self._convolve(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if max(self.kernel_size) == 1 and self.groups == 1 and not any(self.padding):
            return self._multiply(x)
        is_float = x.dtype == self.weight.dtype == torch.float32
        if torch.is_grad_enabled() or not is_float or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        # PyTorch does not use oneDNN for a small map of a single volume, and is three times slower.
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )

    def _multiply(self, x: Tensor) -> Tensor:
        """A 1x1x1 convolution as a matrix product, which is faster with channels last."""
        if any(step > 1 for step in self.stride):
            depth, height, width = self.stride
            x = x[:, :, ::depth, ::height, ::width]
        x = F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias)
        return x.movedim(-1, 1)


def conv3d(
    in_channels: int,
    channels: int,
    kernel: int,
    *,
    norm: str = "",
    activation: nn.Module | None = None,
    stride: tuple[int, int, int] = (1, 1, 1),
    init: Callable[[nn.Module], None] = weight_init.c2_xavier_fill,
) -> Conv3d:
    """Build and initialize a padded convolution, with a bias if there is no norm.

    Args:
        kernel: kernel size, odd.
        norm: see :func:`get_norm_3d`.
        stride: stride along depth, height and width.
        init: initializes the weights.
    """
    conv = Conv3d(
        in_channels,
        channels,
        kernel_size=kernel,
        stride=stride,
        padding=kernel // 2,
        bias=norm == "",
        norm=get_norm_3d(norm, channels),
        activation=activation,
    )
    init(conv)
    return conv


def add_hidden_convs(
    module: nn.Module, name: str, channels: int, conv_dims: Sequence[int], norm: str
) -> int:
    """Add a head's 3x3x3 convolutions with ReLU, initialized as in Detectron2's heads.

    Args:
        module: the convolutions are added to it as ``<name>1`` and so on.
        name: name of the submodules.
        channels: input channels.
        conv_dims: output channels of each convolution.
        norm: see :func:`get_norm_3d`.

    Returns:
        The number of output channels.
    """
    for number, conv_dim in enumerate(conv_dims, start=1):
        activation, init = nn.ReLU(inplace=True), weight_init.c2_msra_fill
        conv = conv3d(channels, conv_dim, 3, norm=norm, activation=activation, init=init)
        module.add_module(f"{name}{number}", conv)
        channels = conv_dim
    return channels
