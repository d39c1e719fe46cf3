"""DetU-Net (Jaeger et al., section 4.1)."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...structures.cropping import crop_size, paste_to_slice
from ..losses import segmentation_loss
from ..segmentation import (
    SegmentationLoss,
    build_segmentation_loss,
    build_segmentation_predictor,
    resize_probabilities,
    semantic_labels,
)


class Component(NamedTuple):
    """Connected pixels of one class: ``pixels`` is the mask inside ``extent``."""

    category: int
    extent: tuple[slice, ...]
    pixels: np.ndarray


@META_ARCH_REGISTRY.register()
class DetUNet(DenseDetector):
    """DetU-Net (Jaeger et al., section 4.1): detections are components of a segmentation.

    A softmax over background and K classes is computed from P0 of a U-FPN; pixels belong to their
    most probable class. Each connected component of a class (with diagonal neighbors) is a
    detection; its score is the highest probability of the class in it. Only the largest components
    of an image are kept.

    Args:
        backbone: a :class:`UNetFPN`; only its output P2 is kept.
        num_classes: K.
        pixel_mean, pixel_std: C values each.
        seg_loss: maps logits (N, K + 1, H, W) and labels (N, H, W) to a scalar.
        max_components: maximum number of components per image, for all classes together.
        box_margin: margin of boxes around their components, in pixels of the slice.
        predict_masks: whether predictions have ``pred_masks``, the components.

    Raises:
        ValueError: the backbone is not a U-FPN.
    """

    #: Class of the predicted boxes.
    boxes_type = Boxes

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        seg_loss: SegmentationLoss = segmentation_loss,
        max_components: int = 5,
        box_margin: float = 5.0,
        predict_masks: bool = False,
    ):
        head = build_segmentation_predictor(backbone, num_classes)
        super().__init__(backbone, head, ["p2"], pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.seg_loss = seg_loss
        self.seg_loss_weight = 1.0  # the only loss
        self.max_components = max_components
        self.box_margin = box_margin
        self.predict_masks = predict_masks
        backbone.drop_outputs(keep=["p2"])

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``DetUNet(cfg)``."""
        num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
        if cfg.MODEL.SEG_HEAD.CLASS_AGNOSTIC and num_classes > 1:
            raise ValueError(
                "MODEL.SEG_HEAD.CLASS_AGNOSTIC: found True, expected False, because the "
                f"segmentation of DetUNet predicts the {num_classes} classes of its detections"
            )
        return {
            "backbone": build_backbone(cfg),
            "num_classes": num_classes,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "seg_loss": build_segmentation_loss(cfg),
            "max_components": cfg.MODEL.DET_UNET.MAX_COMPONENTS,
            "box_margin": cfg.INPUT.BOX_MARGIN,
            "predict_masks": cfg.MODEL.SEG_HEAD.PREDICT_MASKS,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Detectron2's model interface, see :class:`RetinaUNet`; in training only ``loss_seg``."""
        images = self.preprocess_image(batched_inputs)
        logits = self.head(self.backbone.decode(images.tensor, self.backbone(images.tensor)))
        if self.training:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            return {"loss_seg": self.seg_loss(logits, semantic_labels(gt_instances, images))}
        return [
            {"instances": self.postprocess(*each)}
            for each in zip(logits.softmax(dim=1), images.image_sizes, batched_inputs, strict=True)
        ]

    def postprocess(
        self, probabilities: Tensor, image_size: tuple[int, int], input_dict: dict
    ) -> Instances:
        """Find the detections of one image, in pixels of the slice.

        Args:
            probabilities: (K + 1, H, W) for the padded image.
            image_size: height and width without padding.
            input_dict: input dict of the image.
        """
        size = crop_size(input_dict, image_size)
        probabilities = resize_probabilities(probabilities, image_size, size)
        return paste_to_slice(self.find_components(probabilities), input_dict)

    def find_components(self, probabilities: Tensor) -> Instances:
        """Turn class probabilities into detections.

        Args:
            probabilities: (K + 1, H, W); channel 0 is the background.

        Returns:
            At most ``max_components`` instances by descending score.
        """
        best = probabilities.argmax(dim=0).to("cpu", torch.uint8).numpy()
        found = []
        for category in range(self.num_classes):
            components = self.label_components(np.equal(best, category + 1).astype(np.uint8))
            found += [(category, *component) for component in components]
        found.sort(key=lambda component: -component[1])
        found = [
            Component(category, extent, np.equal(labels[extent], label))
            for category, _, extent, labels, label in found[: self.max_components]
        ]
        return self._to_instances(found, probabilities)

    def label_components(self, mask: np.ndarray) -> list[tuple]:
        """Find the connected components of a mask, with diagonal neighbors.

        Args:
            mask: (H, W) uint8, 0 or 1.

        Returns:
            For each component: number of pixels, extent, label map (H, W), and its label.
        """
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        found = []
        for label, (x, y, width, height, pixels) in enumerate(stats.tolist()[1:count], 1):
            extent = (slice(y, y + height), slice(x, x + width))
            found.append((pixels, extent, labels, label))
        return found

    def _to_instances(self, found: list[Component], probabilities: Tensor) -> Instances:
        size, device = probabilities.shape[1:], probabilities.device
        result = Instances(tuple(size))
        boxes = extents_to_boxes([c.extent for c in found], size, self.box_margins())
        result.pred_boxes = self.boxes_type(torch.from_numpy(boxes).to(device, non_blocking=True))
        scores = probabilities.new_zeros(len(found))
        for i, (category, extent, pixels) in enumerate(found):
            of_class = probabilities[(category + 1, *extent)]
            scores[i] = (of_class * torch.from_numpy(pixels).to(device, non_blocking=True)).amax()
        result.scores = scores
        classes = [component.category for component in found]
        result.pred_classes = torch.tensor(classes).long().to(device, non_blocking=True)
        if self.predict_masks:
            masks = np.zeros((len(found), *size), dtype=bool)
            for mask, component in zip(masks, found, strict=True):
                mask[component.extent] = component.pixels
            result.pred_masks = torch.from_numpy(masks).to(device, non_blocking=True)
        return result[result.scores.argsort(descending=True, stable=True)]

    def box_margins(self) -> tuple[float, ...]:
        """Margins of boxes around components, for x and y."""
        return (self.box_margin, self.box_margin)


def extents_to_boxes(
    extents: list[tuple[slice, ...]], size: tuple[int, ...], margins: tuple[float, ...]
) -> np.ndarray:
    """Convert extents of components to boxes, clipped to the image.

    Args:
        extents: slices of each component along the image's axes, as in ``image[extent]``.
        size: height and width, or depth, height and width, of the image.
        margins: for x and y, or x, y and z, in pixels.

    Returns:
        (n, 4) XYXY or (n, 6) XYZXYZ, float32; integers are pixel centers.
    """
    sides = [[(s.start, s.stop) for s in extent[::-1]] for extent in extents]  # x first
    edges = np.array(sides, dtype=np.float32).reshape(-1, len(size), 2)
    edges[..., 0] -= np.array(margins, dtype=np.float32)
    edges[..., 1] += np.array(margins, dtype=np.float32)
    edges = edges.clip(0, np.array(size[::-1], dtype=np.float32)[:, None]) - np.float32(0.5)
    return edges.transpose(0, 2, 1).reshape(-1, 2 * len(size))
