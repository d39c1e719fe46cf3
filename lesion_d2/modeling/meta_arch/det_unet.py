import cv2
import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...cropping import put_back, shown_size
from ..losses import segmentation_loss
from ..segmentation import (
    SegmentationLoss,
    build_segmentation_loss,
    build_segmentation_predictor,
    resize_probabilities,
    semantic_labels,
)


@META_ARCH_REGISTRY.register()
class DetUNet(DenseDetector):
    """DetU-Net (Jaeger et al., section 4.1): detections are components of a segmentation.

    A softmax over background and K classes at P0 of a U-FPN; pixels belong to their most probable
    class. Each connected component of a class (with diagonal neighbors) is a detection whose score
    is the highest probability of that class in it. Of an image, the largest components count.

    Args:
        backbone: a :class:`UNetFPN`; of its outputs only P2 is kept.
        num_classes: K.
        pixel_mean, pixel_std: C values each.
        seg_loss: maps logits (N, K + 1, H, W) and labels (N, H, W) to a scalar.
        max_components: of an image, over all classes.
        box_margin: pixels of the slice by which boxes surround their components.
        predict_masks: whether predictions carry ``pred_masks``, the components.

    Raises:
        ValueError: the backbone is no U-FPN.
    """

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
        num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
        if cfg.MODEL.RETINA_UNET.SEG_CLASS_AGNOSTIC and num_classes > 1:
            raise ValueError(
                "MODEL.RETINA_UNET.SEG_CLASS_AGNOSTIC: found True, expected False for the "
                f"{num_classes} classes of DetUNet, which knows them from its segmentation alone"
            )
        return {
            "backbone": build_backbone(cfg),
            "num_classes": num_classes,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "seg_loss": build_segmentation_loss(cfg),
            "max_components": cfg.MODEL.DET_UNET.MAX_COMPONENTS,
            "box_margin": cfg.MODEL.RETINA_UNET.BOX_MARGIN,
            "predict_masks": cfg.MODEL.RETINA_UNET.PREDICT_MASKS,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Detectron2's model interface, see :class:`RetinaUNet`; in training only ``loss_seg``."""
        images = self.preprocess_image(batched_inputs)
        logits = self.head(self.backbone.decode(images.tensor, self.backbone(images.tensor)))
        if self.training:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            return {"loss_seg": self.seg_loss(logits, semantic_labels(gt_instances, images))}
        outputs = []
        for probabilities, size, x in zip(
            logits.softmax(dim=1), images.image_sizes, batched_inputs, strict=True
        ):
            probabilities = resize_probabilities(probabilities, size, shown_size(x, size))
            outputs.append({"instances": put_back(self.find_components(probabilities), x)})
        return outputs

    def find_components(self, probabilities: Tensor) -> Instances:
        """Turn class probabilities into detections.

        Args:
            probabilities: (K + 1, H, W), channel 0 the background.

        Returns:
            At most ``max_components`` instances by falling score.
        """
        best = probabilities.argmax(dim=0).to("cpu", torch.uint8).numpy()
        found = []
        for category in range(self.num_classes):
            count, labels, stats, _ = cv2.connectedComponentsWithStats(
                np.equal(best, category + 1).astype(np.uint8), connectivity=8
            )
            found += [(stats[i], category, labels, i) for i in range(1, count)]
        found.sort(key=lambda component: -component[0][cv2.CC_STAT_AREA])
        return self._to_instances(found[: self.max_components], probabilities)

    def _to_instances(self, found: list[tuple], probabilities: Tensor) -> Instances:
        """Of components: their statistics, class, label map, and label in it."""
        height, width = probabilities.shape[1:]
        device = probabilities.device
        corners = np.array([stats[:4] for stats, *_ in found], dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        margin = np.float32(self.box_margin)
        boxes = np.concatenate([corners[:, :2] - margin, corners[:, 2:] + margin], axis=1)
        boxes = boxes.clip(0, [width, height] * 2) - np.float32(0.5)  # pixel centers are whole
        classes = torch.tensor([c for _, c, *_ in found], dtype=torch.int64, device=device)
        masks = np.array([labels == i for *_, labels, i in found], dtype=bool)
        masks = torch.from_numpy(masks.reshape(-1, height, width)).to(device)
        result = Instances((height, width))
        result.pred_boxes = Boxes(torch.from_numpy(boxes.astype(np.float32)).to(device))
        result.scores = (probabilities[classes + 1] * masks).amax(dim=(1, 2))
        result.pred_classes = classes
        if self.predict_masks:
            result.pred_masks = masks
        return result[result.scores.argsort(descending=True, stable=True)]
