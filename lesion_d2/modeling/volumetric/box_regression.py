"""Deltas between boxes in 3-D."""

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import _DEFAULT_SCALE_CLAMP
from torch import Tensor


class Box2BoxTransform3D:
    """Detectron2's :class:`Box2BoxTransform` in 3-D.

    The deltas are dx, dy, dz, dw, dh, dd: shifts of the center relative to the source box's sides,
    and log ratios of the sides, each times its weight.

    Args:
        weights: six weights of the deltas (10, 10, 10, 5, 5, 5 in the published code of Jaeger et
            al.).
        scale_clamp: upper limit of the log ratios when deltas are applied.

    Raises:
        ValueError: the number of weights is not six.
    """

    def __init__(self, weights: Sequence[float], scale_clamp: float = _DEFAULT_SCALE_CLAMP):
        if len(weights) != 6:
            raise ValueError(
                f"weights: found {tuple(weights)}, expected six for dx, dy, dz, dw, dh, dd"
            )
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Compute the deltas from source boxes to their targets.

        Args:
            src_boxes: (n, 6), anchors or proposals with positive sides.
            target_boxes: (n, 6), one per source box.

        Returns:
            (n, 6).
        """
        src_sides = src_boxes[:, 3:] - src_boxes[:, :3]
        target_sides = target_boxes[:, 3:] - target_boxes[:, :3]
        shifts = target_boxes[:, :3] - src_boxes[:, :3] + 0.5 * (target_sides - src_sides)
        deltas = torch.cat([shifts / src_sides, torch.log(target_sides / src_sides)], dim=1)
        return deltas * self._weights_at(deltas.device)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas to boxes.

        Args:
            deltas: (n, 6 k), k >= 1: k transformations per box, for example one per class.
            boxes: (n, 6).

        Returns:
            (n, 6 k) float32.
        """
        deltas = deltas.float()  # as in Detectron2: boxes need its precision
        boxes = boxes.to(deltas.dtype)
        scaled = deltas.unflatten(1, (-1, 6)) / self._weights_at(deltas.device)
        sides = boxes[:, None, 3:] - boxes[:, None, :3]
        centers = boxes[:, None, :3] + 0.5 * sides + scaled[..., :3] * sides
        half = 0.5 * sides * torch.exp(scaled[..., 3:].clamp(max=self.scale_clamp))
        return torch.cat([centers - half, centers + half], dim=2).reshape(deltas.shape)

    def _weights_at(self, device: torch.device) -> Tensor:
        # Cached per device, to avoid a GPU synchronization on every call.
        if self.weights.device != device:
            self.weights = self.weights.to(device)
        return self.weights
