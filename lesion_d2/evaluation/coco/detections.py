"""Detections of an image as an evaluation keeps them, and as COCO's file of results has them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode, Instances

from ...structures.rle import encode_masks


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """N detections of an image, in the order of the model.

    Arrays take a tenth of the memory that COCO's dictionaries take.
    """

    boxes: np.ndarray  # N x 4, x, y, width and height in pixels
    scores: np.ndarray  # N
    categories: np.ndarray  # N, classes of the model from 0, or ids of the data set
    masks: Sequence[dict] | None = None  # N in COCO's RLE; None where there are none or none kept

    @classmethod
    def empty(cls) -> "ImageDetections":
        """No detection."""
        return cls(np.empty((0, 4)), np.empty(0), np.empty(0, dtype=int))

    @classmethod
    def from_instances(cls, instances: Instances, *, masks: bool) -> "ImageDetections":
        """Those of a model, on any device.

        Args:
            instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and perhaps ``pred_masks``.
            masks: whether the masks are kept; else they are not even moved to the CPU.
        """
        kept = None
        if masks and len(instances) and instances.has("pred_masks"):
            kept = encode_masks(instances.pred_masks.cpu().numpy())
        boxes = instances.pred_boxes.tensor.cpu()
        return cls(
            BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).double().numpy(),
            instances.scores.cpu().double().numpy(),
            instances.pred_classes.cpu().numpy(),
            kept,
        )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def xyxy(self) -> np.ndarray:
        """(N, 4) X1Y1X2Y2 in pixels."""
        corners = self.boxes[:, :2]
        return np.concatenate([corners, self.boxes[:, 2:] + corners], axis=1)

    def results(self, image_id: object, offset: float = 0.0) -> list[dict]:
        """Each detection as COCO's file of results has it.

        Args:
            image_id: of the image.
            offset: that is added to x and y.
        """
        boxes = (self.boxes + np.array([offset, offset, 0, 0])).tolist()
        rows = zip(self.categories.tolist(), boxes, self.scores.tolist(), strict=True)
        results = [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in rows
        ]
        for result, mask in zip(results, self.masks or (), strict=self.masks is not None):
            result["segmentation"] = mask
        return results
