import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor


class ULDorOutputLayers(FastRCNNOutputLayers):
    """Fast R-CNN's outputs where the last class is that of mined false positives.

    Of K classes the first K - 1 are lesions. In training nothing differs. At inference (Tang et
    al., section 3.2) detections of the last class are dropped ("HNEM"), before the NMS and the
    limit on detections an image, or counted as lesions ("HNEM + FP"). The paper considers "more and
    more FPs" and its two curves are the same up to the false positive rate at which the first one
    ends: so we rank them below all lesions, their probability times the score threshold. They
    become the most probable class of lesions, and only one of both remains by the NMS where a
    lesion was detected too.

    Args:
        input_shape: shape of the box head's output.
        count_false_positives: whether detections of the last class are counted.
        kwargs: see Detectron2's FastRCNNOutputLayers.

    Raises:
        ValueError: there is no class beside that of false positives, or none can rank below the
            lesions because the score threshold is 0.
    """

    @configurable
    def __init__(self, input_shape, *, count_false_positives: bool = False, **kwargs):
        super().__init__(input_shape, **kwargs)
        if self.num_classes < 2:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES: found {self.num_classes}, expected 2 or more: "
                "lesions and, the last one, false positives (ULDorROIHeads)"
            )
        if count_false_positives and self.test_score_thresh <= 0:
            raise ValueError(
                f"MODEL.ROI_HEADS.SCORE_THRESH_TEST: found {self.test_score_thresh}, expected more "
                "than 0 for MODEL.ULDOR.COUNT_FALSE_POSITIVES True"
            )
        self.count_false_positives = count_false_positives

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "count_false_positives": cfg.MODEL.ULDOR.COUNT_FALSE_POSITIVES,
        }

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As in Detectron2; ``pred_classes`` are classes of lesions only."""
        boxes = self.predict_boxes(predictions, proposals)
        probabilities = self.predict_probs(predictions, proposals)
        threshold = self.test_score_thresh
        rows = list(map(self._lesion_rows, boxes, probabilities))
        if self.count_false_positives:
            rows = [
                _joined(lesions, self._false_positive_rows(*image), threshold)
                for lesions, *image in zip(rows, boxes, probabilities, strict=True)
            ]
            threshold = threshold**2
        results, kept = fast_rcnn_inference(
            [boxes for boxes, _ in rows],
            [scores for _, scores in rows],
            [proposal.image_size for proposal in proposals],
            threshold,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )
        return results, [k % max(len(p), 1) for k, p in zip(kept, proposals, strict=True)]

    def _lesion_rows(self, boxes: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (R, 4 or 4 L) and scores (R, L + 1) of the L classes of lesions."""
        num_lesions = self.num_classes - 1
        is_agnostic = boxes.shape[1] == 4
        scores = torch.cat([probabilities[:, :num_lesions], probabilities[:, -1:]], dim=1)
        return boxes if is_agnostic else boxes[:, : 4 * num_lesions], scores

    def _false_positive_rows(self, boxes: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`_lesion_rows`, with the false positives as the most probable lesions."""
        num_lesions = self.num_classes - 1
        scores = torch.zeros_like(probabilities[:, :-1])
        likely = probabilities[:, :num_lesions].argmax(dim=1, keepdim=True)
        scores.scatter_(1, likely, probabilities[:, num_lesions, None])
        is_agnostic = boxes.shape[1] == 4
        return boxes if is_agnostic else boxes[:, -4:].repeat(1, num_lesions), scores


def _joined(
    lesions: tuple[Tensor, Tensor], false_positives: tuple[Tensor, Tensor], threshold: float
) -> tuple[Tensor, Tensor]:
    """Put both below each other; scores over the squared threshold are those over it before."""
    boxes = torch.cat([lesions[0], false_positives[0]])
    lesion_scores = lesions[1].where(lesions[1] > threshold, 0)
    scores = torch.cat([lesion_scores, false_positives[1] * threshold])
    return boxes, scores


@ROI_HEADS_REGISTRY.register()
class ULDorROIHeads(StandardROIHeads):
    """StandardROIHeads whose last class is that of mined false positives (Tang et al., 2.2)."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        parts["box_predictor"] = ULDorOutputLayers(cfg, parts["box_head"].output_shape)
        return parts
