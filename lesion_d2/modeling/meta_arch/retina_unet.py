import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ..backbone import UNetFPN
from ..calibration import calibrate_scores, mask_agreement
from ..losses import IGNORE, focal_segmentation_loss, segmentation_loss

_PRIOR = 0.01  # of a foreground pixel, as RETINANET.PRIOR_PROB of a foreground anchor


@META_ARCH_REGISTRY.register()
class RetinaUNet(RetinaNet):
    """Retina U-Net (Jaeger et al., section 3.1): a RetinaNet on a U-FPN with a segmentation loss.

    The detection subnets work on ``head_in_features``; the segmentation logits of the K classes and
    the background are a 1x1 convolution of P0. At inference P0 is only computed for masks and for
    the calibration of scores. With a VGG, the focal loss and calibration it is the improved
    RetinaNet of Zlocha et al.

    Args:
        seg_loss_weight: weight of the segmentation loss beside RetinaNet's two; 0 switches it off.
            Both papers leave the weight open; 1 weighs all losses alike.
        seg_loss: maps logits (N, K + 1, H, W) and labels (N, H, W) to a scalar, as
            :func:`segmentation_loss`.
        predict_masks: whether predictions carry ``pred_masks``.
        calibration: strength of :func:`calibrate_scores`, in [0, 1]; 0 switches it off.
        box_margin: pixels of the slice, before it was resized, by which boxes are drawn around
            lesions; calibration expects them.
        kwargs: see :class:`RetinaNet`. The backbone is a :class:`UNetFPN`.

    Raises:
        ValueError: ``calibration`` lies outside [0, 1], or there is no U-FPN for the segmentation.
    """

    @configurable
    def __init__(
        self,
        *,
        seg_loss_weight: float = 1.0,
        seg_loss: Callable[[Tensor, Tensor], Tensor] = segmentation_loss,
        predict_masks: bool = False,
        calibration: float = 0.0,
        box_margin: float = 5.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= calibration <= 1:
            raise ValueError(f"MODEL.RETINA_UNET.CALIBRATION: found {calibration}, expected 0 to 1")
        self.seg_loss_weight = seg_loss_weight
        self.seg_loss = seg_loss
        self.predict_masks = predict_masks
        self.calibration = calibration
        self.box_margin = box_margin
        self.seg_predictor = None
        if seg_loss_weight > 0 or predict_masks or calibration > 0:
            if not isinstance(self.backbone, UNetFPN):
                found = type(self.backbone).__name__
                raise ValueError(
                    f"MODEL.BACKBONE.NAME: found a {found}, expected a U-FPN for the segmentation, "
                    "such as build_vgg_unet_fpn_backbone"
                )
            channels = self.backbone.decoder_shape.channels
            self.seg_predictor = nn.Conv2d(channels, self.num_classes + 1, kernel_size=1)
            # As RetinaNet's own prior: nearly all pixels are background, and say so from the start.
            nn.init.zeros_(self.seg_predictor.bias)
            nn.init.constant_(self.seg_predictor.bias[:1], math.log((1 - _PRIOR) / _PRIOR))

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {
            **super().from_config(cfg),
            "seg_loss_weight": cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT,
            "seg_loss": build_segmentation_loss(cfg),
            "predict_masks": cfg.MODEL.RETINA_UNET.PREDICT_MASKS,
            "calibration": cfg.MODEL.RETINA_UNET.CALIBRATION,
            "box_margin": cfg.MODEL.RETINA_UNET.BOX_MARGIN,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Detectron2's model interface: losses in training, ``[{"instances": ...}]`` otherwise.

        Args:
            batched_inputs: dicts with ``image`` (C, H, W) on the 0..255 scale; in training also
                ``instances`` with ``gt_boxes``, ``gt_classes`` and, where the segmentation loss is
                on, ``gt_masks`` (BitMasks); at inference optional ``height`` and ``width`` of the
                output.

        Returns:
            In training ``loss_cls``, ``loss_box_reg`` and ``loss_seg``. At inference
            ``pred_boxes``, ``scores``, ``pred_classes`` and, if ``predict_masks``, ``pred_masks``
            (n, height, width) bool.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        levels = [features[f] for f in self.head_in_features]
        predictions = self.head(levels)
        if self.training:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            losses = self.forward_training(images, levels, predictions, gt_instances)
            if self.seg_loss_weight > 0:
                losses["loss_seg"] = self.seg_loss_weight * self.seg_loss(
                    self.predict_segmentation(images.tensor, features),
                    semantic_labels(gt_instances, images),
                )
            return losses
        results = self.forward_inference(images, levels, predictions)
        probabilities = [None] * len(results)
        calibrates = self.calibration > 0 and any(map(len, results))
        if self.predict_masks or calibrates:
            probabilities = self.predict_segmentation(images.tensor, features).softmax(dim=1)
        if calibrates:
            results = list(map(self.calibrate, results, probabilities, batched_inputs))
        if not self.predict_masks:
            probabilities = [None] * len(results)
        return [
            {"instances": _postprocess(*each)}
            for each in zip(results, probabilities, batched_inputs, strict=True)
        ]

    def predict_segmentation(self, images: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Map images (N, C, H, W) and their backbone features to logits (N, K + 1, H, W)."""
        return self.seg_predictor(self.backbone.decode(images, features))

    def calibrate(self, result: Instances, probabilities: Tensor, input_dict: dict) -> Instances:
        """Calibrate the scores of one image's detections, and put them in falling order again.

        Args:
            result: ``pred_boxes``, ``scores`` and ``pred_classes``, after NMS: calibration changes
                the order of detections, not which boxes suppress each other.
            probabilities: (K + 1, H, W) of the padded image.
            input_dict: its ``height`` is that of the slice, of which the margin is so many pixels.
        """
        height, width = result.image_size
        margin = self.box_margin * height / input_dict.get("height", height)
        agreement = mask_agreement(
            result.pred_boxes.tensor,
            result.pred_classes,
            probabilities[1:, :height, :width] > 0.5,
            margin=margin,
        )
        result.scores = calibrate_scores(result.scores, agreement, self.calibration)
        return result[result.scores.argsort(descending=True, stable=True)]


def build_segmentation_loss(cfg) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that MODEL.RETINA_UNET.SEG_LOSS names.

    Raises:
        ValueError: the name is unknown.
    """
    options = cfg.MODEL.RETINA_UNET
    if options.SEG_LOSS == "ce_dice":
        return segmentation_loss
    if options.SEG_LOSS == "focal":
        return partial(
            focal_segmentation_loss, alpha=options.SEG_FOCAL_ALPHA, gamma=options.SEG_FOCAL_GAMMA
        )
    raise ValueError(
        f"MODEL.RETINA_UNET.SEG_LOSS: found {options.SEG_LOSS!r}, expected 'ce_dice' or 'focal'"
    )


def semantic_labels(gt_instances: list[Instances], images: ImageList) -> Tensor:
    """Paint the instances' masks into one label map an image.

    Returns:
        (N, H, W) int64: 0 for background, class + 1 inside a mask (the later instance wins where
        two overlap), ``IGNORE`` in the padding of the batch.
    """
    height, width = images.tensor.shape[-2:]
    labels = torch.full(
        (len(gt_instances), height, width), IGNORE, dtype=torch.int64, device=images.tensor.device
    )
    for label, instances, (h, w) in zip(labels, gt_instances, images.image_sizes, strict=True):
        label[:h, :w] = 0
        if len(instances) == 0:
            continue
        for mask, category in zip(
            instances.gt_masks.tensor, instances.gt_classes.tolist(), strict=True
        ):
            label[:h, :w][mask] = category + 1
    return labels


def _postprocess(result: Instances, probabilities: Tensor | None, input_dict: dict) -> Instances:
    """Bring boxes, and masks where there are class probabilities (K + 1, H, W), to output size."""
    size = (
        input_dict.get("height", result.image_size[0]),
        input_dict.get("width", result.image_size[1]),
    )
    image_height, image_width = result.image_size
    # The data set's whole numbers are pixel centers, and Detectron2 scales about pixel corners.
    result.pred_boxes.tensor += 0.5
    result = detector_postprocess(result, *size)
    result.pred_boxes.tensor -= 0.5
    if probabilities is not None:
        probabilities = F.interpolate(
            probabilities[None, 1:, :image_height, :image_width],
            size=size,
            mode="bilinear",
            align_corners=False,
        )[0]
        result.pred_masks = masks_in_boxes(
            probabilities > 0.5, result.pred_boxes.tensor, result.pred_classes
        )
    return result


def masks_in_boxes(class_masks: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """Cut each detection's mask out of its class's semantic mask.

    Args:
        class_masks: (K, H, W) bool.
        boxes: (n, 4) XYXY in pixels, in the data set's coordinates: pixel i has its center at i.
        classes: (n,) int.

    Returns:
        (n, H, W) bool: the class's pixels whose center lies inside the box.
    """
    height, width = class_masks.shape[-2:]
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    inside_x = (x >= x1) & (x <= x2)
    inside_y = (y >= y1) & (y <= y2)
    return class_masks[classes] & inside_y[:, :, None] & inside_x[:, None, :]
