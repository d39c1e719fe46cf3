"""Base class of VGG and DenseNet."""

from collections.abc import Collection, Mapping, Sequence

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn


class StagedBackbone(Backbone):
    """A backbone of sequential layers, ``features``, with the outputs of some as features."""

    features: nn.Sequential

    def _set_features(
        self, feature_of: Mapping[str, str], *, channels: Sequence[int], strides: Sequence[int]
    ) -> None:
        """Define the output features.

        Args:
            feature_of: name of a layer of ``features`` -> name of its output feature, in order.
            channels, strides: channels and stride of each feature.
        """
        self._feature_of = dict(feature_of)
        self._out_features = list(feature_of.values())
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))

    def _freeze(self, num_stages: int, *, further_ends: Collection[str] = ()) -> None:
        """Freeze the first stages; their batch normalization becomes a fixed affine map.

        Args:
            num_stages: number of stages to freeze.
            further_ends: names of layers that end a stage without an output feature.
        """
        for name, layer in self.features.named_children():
            if num_stages <= 0:
                return
            layer.requires_grad_(False)
            setattr(self.features, name, FrozenBatchNorm2d.convert_frozen_batchnorm(layer))
            num_stages -= name in self._feature_of or name in further_ends

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to features (N, channels, H / stride, W / stride)."""
        outputs = {}
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in self._feature_of:
                outputs[self._feature_of[name]] = x
        return outputs
