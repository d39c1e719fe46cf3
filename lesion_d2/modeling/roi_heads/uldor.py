"""ROI heads with a class of mined false positives (Tang et al., section 2.2)."""

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor

from .regions import RegionROIHeads


class ULDorOutputLayers(FastRCNNOutputLayers):
    """Fast R-CNN's output layers with mined false positives as the last class.

    Of K classes the first K - 1 are lesions. Training does not change; the loss in evaluation mode
    treats false positives as background, because they are not annotated on held-out images. At
    inference, a region is a false positive if that class is more probable than any lesion class.
    Such regions are dropped ("HNEM"), before NMS and the limit on detections per image, or counted
    as lesions ("HNEM + FP"; Tang et al., section 3.2). The paper considers "more and more FPs from
    the FP class", and its two curves are equal up to the false positive rate at which the first one
    ends. So they rank below all lesions: as the most probable lesion class, with their probability
    times the score threshold.

    Args:
        input_shape: shape of the box head's output.
        count_false_positives: whether to count detections of the last class.
        kwargs: see Detectron2's FastRCNNOutputLayers.

    Raises:
        ValueError: there is no class except that of false positives, or the score threshold is 0,
            so that none can rank below the lesions.
    """

    @configurable
    def __init__(self, input_shape, *, count_false_positives: bool = False, **kwargs):
        super().__init__(input_shape, **kwargs)
        if self.num_classes < 2:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES: found {self.num_classes}, expected 2 or more: "
                "the lesion classes and, last, the class of false positives (ULDorROIHeads)"
            )
        if count_false_positives and self.test_score_thresh <= 0:
            raise ValueError(
                f"MODEL.ROI_HEADS.SCORE_THRESH_TEST: found {self.test_score_thresh}, expected more "
                "than 0 for MODEL.ULDOR.COUNT_FALSE_POSITIVES True"
            )
        self.count_false_positives = count_false_positives

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Arguments of ``ULDorOutputLayers(cfg, input_shape)``."""
        return {
            **super().from_config(cfg, input_shape),
            "count_false_positives": cfg.MODEL.ULDOR.COUNT_FALSE_POSITIVES,
        }

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """As in Detectron2."""
        scores, deltas = predictions
        if not self.training:
            background = scores[:, -2:].logsumexp(dim=1, keepdim=True)
            nothing = torch.full_like(background, -torch.inf)
            scores = torch.cat([scores[:, :-2], nothing, background], dim=1)
        return super().losses((scores, deltas), proposals)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As in Detectron2; ``pred_classes`` are lesion classes only."""
        boxes = self.predict_boxes(predictions, proposals)
        probabilities = self.predict_probs(predictions, proposals)
        regions = list(map(self._as_lesions, boxes, probabilities))
        threshold = self.test_score_thresh
        return fast_rcnn_inference(
            [boxes for boxes, _ in regions],
            [scores for _, scores in regions],
            [proposal.image_size for proposal in proposals],
            threshold**2 if self.count_false_positives else threshold,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def _as_lesions(self, boxes: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Remove the last class of an image's R regions.

        Args:
            boxes: (R, 4 K), or (R, 4) for class-agnostic boxes.
            probabilities: (R, K + 1); the last column is the background.

        Returns:
            Boxes (R, 4 (K - 1)), or (R, 4), and scores (R, K), which are 0 for dropped regions.
        """
        lesions, false_positive = probabilities[:, :-2], probabilities[:, -2:-1]
        highest, most_probable = lesions.max(dim=1, keepdim=True)
        is_false = false_positive > highest
        scores = lesions.where(~is_false, 0)
        is_agnostic = boxes.shape[1] == 4
        false_boxes = boxes if is_agnostic else boxes[:, -4:].repeat(1, lesions.shape[1])
        boxes = boxes if is_agnostic else boxes[:, :-4]
        if self.count_false_positives:
            # Scores that were above the threshold are then above its square.
            scores = scores.where(scores > self.test_score_thresh, 0)
            counted = torch.zeros_like(scores)
            counted.scatter_(1, most_probable, false_positive * self.test_score_thresh)
            scores = counted.where(is_false, scores)
            boxes = false_boxes.where(is_false, boxes)
        return boxes, torch.cat([scores, probabilities[:, -1:]], dim=1)


@ROI_HEADS_REGISTRY.register()
class ULDorROIHeads(RegionROIHeads):
    """StandardROIHeads with mined false positives as the last class (Tang et al., 2.2)."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = ULDorOutputLayers(cfg, parts["box_head"].output_shape)
        return parts
