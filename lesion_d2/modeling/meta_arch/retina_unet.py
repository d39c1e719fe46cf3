"""Retina U-Net (Jaeger et al., section 3.1)."""

import math

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ...structures.cropping import crop_size, paste_to_slice
from ..backbone import UNetFPN
from ..box_losses import box_regression_loss
from ..calibration import calibrate_scores, mask_agreement
from ..losses import anchor_focal_loss, anchor_sigmoid_focal_loss, segmentation_loss
from ..segmentation import (
    SegmentationLoss,
    build_segmentation_loss,
    build_segmentation_predictor,
    resize_probabilities,
    segmented_as,
    semantic_labels,
)
from ..shem import (
    batch_shem_loss,
    box_loss_per_image,
    count_anchors,
    draw_positives,
    shem_loss,
)
from ..waiting import put_scalar
from .retinanet import LesionRetinaNet


@META_ARCH_REGISTRY.register()
class RetinaUNet(LesionRetinaNet):
    """Retina U-Net (Jaeger et al., section 3.1): a RetinaNet on a U-FPN with a segmentation loss.

    The detection subnets use ``head_in_features``; the segmentation logits of the background and
    the K classes, or of all lesions as one foreground class, are a 1x1 convolution of P0. At
    inference P0, and P2 if no head uses it, are only computed for masks and for the calibration of
    scores. With a VGG, the focal loss and calibration it is the improved RetinaNet of Zlocha et al.

    Args:
        seg_loss_weight: weight of the segmentation loss, added to RetinaNet's two losses; 0 to
            disable it. Neither paper gives the weight; with 1 all losses have equal weight.
        seg_loss: maps logits (N, K + 1, H, W) and labels (N, H, W) to a scalar, as
            :func:`segmentation_loss`; with ``seg_class_agnostic`` K is 1.
        seg_class_agnostic: segment lesions against background, as in the published code.
            Calibration and predicted masks then use the mask of all classes.
        predict_masks: whether predictions have ``pred_masks``.
        calibration: strength of :func:`calibrate_scores`, in [0, 1]; 0 to disable it.
        box_margin: margin of annotated boxes around lesions, in pixels of the original slice; used
            by calibration.
        softmax: use a softmax over classes (section 3.1): the head then predicts K + 1 logits per
            anchor, the last one for the background.
        shem_pool: negatives of the classification loss are sampled from a pool of the hardest, this
            many times their number (section 4.2, see :func:`shem_loss`); 0 for the focal loss. With
            SHEM the box regression loss is :func:`box_loss_per_image`.
        shem_positives: maximum number of positive anchors per image in both losses, sampled at
            random, as in the published code (not in the paper); 0 for all.
        shem_negatives: number of negatives per positive in the batch, with plain means
            (:func:`batch_shem_loss`); 0 for the means per image of Jaeger et al.
        kwargs: see :class:`LesionRetinaNet`. The backbone is a :class:`UNetFPN`.

    Raises:
        ValueError: ``calibration`` is outside [0, 1], or there is no U-FPN for the segmentation.
    """

    head_type: type[nn.Module] = RetinaNetHead

    @configurable
    def __init__(
        self,
        *,
        seg_loss_weight: float = 1.0,
        seg_loss: SegmentationLoss = segmentation_loss,
        seg_class_agnostic: bool = False,
        predict_masks: bool = False,
        calibration: float = 0.0,
        box_margin: float = 5.0,
        softmax: bool = False,
        shem_pool: int = 0,
        shem_positives: int = 0,
        shem_negatives: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= calibration <= 1:
            raise ValueError(f"MODEL.RETINA_UNET.CALIBRATION: found {calibration}, expected 0 to 1")
        self.seg_loss_weight = seg_loss_weight
        self.seg_loss = seg_loss
        self.seg_class_agnostic = seg_class_agnostic
        self.predict_masks = predict_masks
        self.calibration = calibration
        self.box_margin = box_margin
        self.softmax = softmax
        self.shem_pool = shem_pool
        self.shem_positives = shem_positives
        self.shem_negatives = shem_negatives
        self.seg_predictor = None
        if seg_loss_weight > 0 or predict_masks or calibration > 0:
            self.seg_predictor = build_segmentation_predictor(
                self.backbone, self.num_classes, class_agnostic=seg_class_agnostic
            )
        if isinstance(self.backbone, UNetFPN) and "p2" not in self.head_in_features:
            self.backbone.leave_out_p2()

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``RetinaUNet(cfg)``."""
        arguments = {
            **super().from_config(cfg),
            "seg_loss_weight": cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT,
            "seg_loss": build_segmentation_loss(cfg),
            "seg_class_agnostic": cfg.MODEL.SEG_HEAD.CLASS_AGNOSTIC,
            "predict_masks": cfg.MODEL.SEG_HEAD.PREDICT_MASKS,
            "calibration": cfg.MODEL.RETINA_UNET.CALIBRATION,
            "box_margin": cfg.INPUT.BOX_MARGIN,
            "softmax": cfg.MODEL.RETINA_UNET.SOFTMAX,
            "shem_pool": cfg.MODEL.RETINA_UNET.SHEM_POOL,
            "shem_positives": cfg.MODEL.RETINA_UNET.SHEM_POSITIVES,
            "shem_negatives": cfg.MODEL.RETINA_UNET.SHEM_NEGATIVES,
        }
        if arguments["softmax"]:
            arguments["head"] = _build_softmax_head(cfg, arguments["backbone"], cls.head_type)
        return arguments

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Detectron2's model interface: losses in training, ``[{"instances": ...}]`` otherwise.

        Args:
            batched_inputs: dicts with ``image`` (C, H, W) on the 0..255 scale; in training also
                ``instances`` with ``gt_boxes``, ``gt_classes`` and, if the segmentation loss is
                enabled, ``gt_masks`` (BitMasks); at inference optionally ``height`` and ``width``
                of the output, and ``crop``, the part of it in ``image``.

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
                    semantic_labels(gt_instances, images, class_agnostic=self.seg_class_agnostic),
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
            {"instances": self.postprocess(*each)}
            for each in zip(results, probabilities, batched_inputs, strict=True)
        ]

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """As in RetinaNet; a softmax changes ``loss_cls``, and SHEM both losses."""
        labels, logits = torch.stack(gt_labels), cat(pred_logits, dim=1)
        is_positive = (labels >= 0) & (labels != self.num_classes)
        counts = count_anchors(labels, self.num_classes) if self.shem_pool > 0 else None
        if counts is not None and self.shem_positives > 0:
            labels, counts = draw_positives(
                labels, counts, self.shem_positives, num_classes=self.num_classes
            )
            is_positive &= labels >= 0
        num_positive = is_positive.sum().double()
        put_scalar("num_pos_anchors", num_positive / len(labels))
        boxes = (anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, is_positive)
        options = {
            "box_reg_loss_type": self.box_reg_loss_type,
            "smooth_l1_beta": self.smooth_l1_beta,
        }
        shem = {"pool": self.shem_pool, "softmax": self.softmax, "counts": counts}
        if self.shem_pool > 0 and self.shem_negatives > 0:
            loss_cls = batch_shem_loss(logits, labels, negatives=self.shem_negatives, **shem)
            number = sum(counts.positive)
            loss_box_reg = box_regression_loss(*boxes, **options, at_most=number) / max(number, 1)
            return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}
        if self.shem_pool > 0:
            loss_box_reg = box_loss_per_image(*boxes, **options, counts=counts)
            loss_cls = shem_loss(logits, labels, **shem)
            return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}
        focal_loss = anchor_focal_loss if self.softmax else anchor_sigmoid_focal_loss
        loss_cls = focal_loss(
            logits, labels, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        loss_box_reg = box_regression_loss(*boxes, **options)
        normalizer = self._ema_update("loss_normalizer", num_positive.clamp(min=1), 100)
        normalizer = torch.as_tensor(normalizer, dtype=loss_cls.dtype, device=loss_cls.device)
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """As in RetinaNet; with a softmax, scores are its probabilities."""
        if not self.softmax:
            return super().forward_inference(images, features, predictions)
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        scores = [level.softmax(dim=-1)[..., :-1] for level in logits]
        return [
            self.inference_single_image(anchors, [x[i] for x in scores], [x[i] for x in deltas], s)
            for i, s in enumerate(images.image_sizes)
        ]

    def _transpose_dense_predictions(
        self, predictions: list[list[Tensor]], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        # Detectron2 expects K logits per anchor.
        num_logits, *others = dims_per_anchor
        return super()._transpose_dense_predictions(
            predictions, [num_logits + self.softmax, *others]
        )

    def predict_segmentation(self, images: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Map images (N, C, H, W) and their backbone features to logits (N, K + 1, H, W).

        K is 1 for a class-agnostic segmentation.
        """
        return self.seg_predictor(self.backbone.decode(images, features))

    @staticmethod
    def postprocess(result: Instances, probabilities: Tensor | None, input_dict: dict) -> Instances:
        """Transform boxes, and masks if there are class probabilities, to the slice.

        Args:
            result: detections of one image.
            probabilities: (K + 1, H, W) for the padded image, or class-agnostic (2, H, W).
            input_dict: input dict of the image.
        """
        image_size, size = result.image_size, crop_size(input_dict, result.image_size)
        # In the data set integers are pixel centers; Detectron2 scales pixel corners.
        result.pred_boxes.tensor += 0.5
        result = detector_postprocess(result, *size)
        result.pred_boxes.tensor -= 0.5
        if probabilities is not None:
            foreground = resize_probabilities(probabilities[1:], image_size, size)
            result.pred_masks = masks_in_boxes(
                foreground > 0.5,
                result.pred_boxes.tensor,
                segmented_as(result.pred_classes, len(foreground)),
            )
        return paste_to_slice(result, input_dict)

    def calibrate(self, result: Instances, probabilities: Tensor, input_dict: dict) -> Instances:
        """Calibrate the scores of one image's detections, and sort them again.

        Args:
            result: ``pred_boxes``, ``scores`` and ``pred_classes``, after NMS: calibration changes
                the order of detections, not which boxes suppress each other.
            probabilities: (K + 1, H, W) for the padded image, or class-agnostic (2, H, W).
            input_dict: contains the size of the slice, whose pixels are the unit of the margin.
        """
        height, width = result.image_size
        margin = self.box_margin * height / crop_size(input_dict, result.image_size)[0]
        agreement = mask_agreement(
            result.pred_boxes.tensor,
            segmented_as(result.pred_classes, len(probabilities) - 1),
            probabilities[1:, :height, :width] > 0.5,
            margin=margin,
        )
        result.scores = calibrate_scores(result.scores, agreement, self.calibration)
        return result[result.scores.argsort(descending=True, stable=True)]


def _build_softmax_head(cfg, backbone: nn.Module, head_type: type[nn.Module]) -> nn.Module:
    """RetinaNet's head with an additional logit per anchor for the background."""
    shapes, options = backbone.output_shape(), cfg.MODEL.RETINANET
    levels = [shapes[level] for level in options.IN_FEATURES]
    num_classes = options.NUM_CLASSES
    head = head_type(cfg, levels, num_classes=num_classes + 1)
    prior = options.PRIOR_PROB
    if not num_classes * prior < 1:
        raise ValueError(
            f"MODEL.RETINANET.PRIOR_PROB: found {prior}, expected less than 1 / {num_classes} for "
            f"a softmax over {num_classes} classes"
        )
    # Each class is initialized to the prior, as with a sigmoid.
    background = math.log((1 - num_classes * prior) / prior)
    bias = torch.zeros(head.cls_score.out_channels // (num_classes + 1), num_classes + 1)
    bias[:, -1] = background
    with torch.no_grad():
        head.cls_score.bias.copy_(bias.flatten())
    return head


def masks_in_boxes(class_masks: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """Crop each detection's mask from its class's semantic mask.

    Args:
        class_masks: (K, H, W) bool, or (K, D, H, W).
        boxes: (n, 4) XYXY in pixels, or (n, 6) XYZXYZ in voxels, in the data set's coordinates:
            integers are pixel centers.
        classes: (n,) int.

    Returns:
        (n, H, W) or (n, D, H, W) bool: the class's pixels with their center inside the box.
    """
    masks, num_axes = class_masks[classes], class_masks.dim() - 1
    for axis, size in enumerate(class_masks.shape[:0:-1]):  # x first
        center = torch.arange(size, device=boxes.device)
        low, high = boxes[:, axis, None], boxes[:, axis + num_axes, None]
        inside = (center >= low) & (center <= high)
        shape = [1] * (num_axes - 1)
        shape.insert(num_axes - 1 - axis, size)
        masks &= inside.reshape(len(boxes), *shape)
    return masks
