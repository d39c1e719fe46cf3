"""Normalizations of feature maps (N, C, D, H, W), by Detectron2's names."""

from collections.abc import Callable

from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d
from torch import Tensor, nn

_GROUPS = 32  # as in Detectron2's GN


class FrozenBatchNorm3d(FrozenBatchNorm2d):
    """Detectron2's batch norm with fixed statistics and weights, for volumes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, D, H, W)."""
        if not x.requires_grad:
            return super().forward(x)
        # As in Detectron2: batch_norm would also compute gradients of the weights.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        shape = (1, -1, 1, 1, 1)
        return x * scale.reshape(shape).to(x.dtype) + bias.reshape(shape).to(x.dtype)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm3d(num_features={self.num_features}, eps={self.eps})"


class CycleBatchNormList3D(CycleBatchNormList):
    """Detectron2's :class:`CycleBatchNormList` for volumes: separate statistics per level.

    Args:
        length: number of levels, which are passed in turn.
        num_features: C.
    """

    def __init__(self, length: int, num_features: int, bn_class: type[nn.Module] = nn.BatchNorm3d):
        super().__init__(length, bn_class, num_features=num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, D, H, W), the features of the next level in turn."""
        x = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        shape = (1, -1, 1, 1, 1)
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


def _group_norm(channels: int) -> nn.GroupNorm:
    if channels % _GROUPS != 0:
        raise ValueError(
            f"normalization 'GN': found {channels} channels, expected a multiple of {_GROUPS}"
        )
    return nn.GroupNorm(_GROUPS, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm3d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm3d,
    "GN": _group_norm,
    "IN": lambda channels: nn.InstanceNorm3d(channels, affine=True),
}


def get_norm_3d(norm: str, channels: int) -> nn.Module | None:
    """Build a normalization for volumes, as Detectron2's :func:`get_norm` for images.

    Args:
        norm: "BN", "SyncBN", "FrozenBN", "GN", "IN" (instance norm with weights), or "" for none.
        channels: C.

    Raises:
        ValueError: the name is unknown, or GN's groups do not divide the channels.
    """
    if norm == "":
        return None
    if norm not in _NORMS:
        raise ValueError(
            f"normalization for volumes: found {norm!r}, expected one of {list(_NORMS)} or ''"
        )
    return _NORMS[norm](channels)


def freeze_norms(module: nn.Module) -> None:
    """Replace the batch norms of a module by :class:`FrozenBatchNorm3d`, in place.

    Detectron2's conversion ignores BatchNorm3d.
    """
    for name, child in module.named_children():
        if not isinstance(child, (nn.BatchNorm3d, nn.SyncBatchNorm)):
            freeze_norms(child)
            continue
        frozen = FrozenBatchNorm3d(child.num_features, child.eps)
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(frozen, key).copy_(getattr(child, key).detach())
        setattr(module, name, frozen.to(child.weight.device))
