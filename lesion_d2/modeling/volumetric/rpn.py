"""The RPN and its head in 3-D."""

from collections.abc import Sequence

from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import Tensor, nn

from ..proposal_generator import LesionRPN
from .box_regression import Box2BoxTransform3D


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead3D(StandardRPNHead):
    """Detectron2's :class:`StandardRPNHead` with convolutions in 3-D.

    Args:
        in_channels: channels of the feature maps.
        num_anchors: A, number of anchors per position.
        box_dim: number of deltas per anchor.
        conv_dims: channels of the 3x3x3 convolutions before the two predictors; -1 for the number
            of input channels. Jaeger et al. use 64 in 3-D (section 4.1).
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        box_dim: int = 6,
        conv_dims: Sequence[int] = (-1,),
    ):
        nn.Module.__init__(self)
        layers, channels = [], in_channels
        for conv_dim in conv_dims:
            width = channels if conv_dim == -1 else conv_dim
            if width <= 0:
                raise ValueError(
                    f"MODEL.RPN.CONV_DIMS: found {list(conv_dims)}, expected numbers above 0, or -1"
                )
            layers += [nn.Conv3d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        self.conv = nn.Sequential(*layers)
        self.objectness_logits = nn.Conv3d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv3d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict logits and deltas on each level.

        Args:
            features: (N, C, D_i, H_i, W_i), one per level.

        Returns:
            Logits (N, A, D_i * H_i, W_i) and deltas (N, A * 6, D_i * H_i, W_i), one per level.
            Depth and height are merged into one axis, so that Detectron2's RPN brings them into
            anchor order as for images.
        """
        logits, deltas = super().forward(features)
        return [x.flatten(2, 3) for x in logits], [x.flatten(2, 3) for x in deltas]


@PROPOSAL_GENERATOR_REGISTRY.register()
class LesionRPN3D(LesionRPN):
    """:class:`LesionRPN` for volumes: the same code with boxes of six numbers.

    It uses an :class:`AnchorGenerator3D` and a :class:`StandardRPNHead3D`.
    """

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Arguments of ``LesionRPN3D(cfg, input_shape)``."""
        weights = cfg.MODEL.RPN.BBOX_REG_WEIGHTS
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": Box2BoxTransform3D(weights),
        }
