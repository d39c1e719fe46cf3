"""How the detections of an image match its lesions."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

from ..evaluation.excused import boxes_in_regions
from ..evaluation.matching import match_detections
from ..structures.boxes import annotation_boxes
from ..structures.ignore_regions import lesions_of, region_boxes
from ..structures.rle import decode_mask

#: Of an image or volume that has neither lesions nor detections.
NO_FINDINGS = "no findings"


@dataclass(kw_only=True)
class Outcome:
    """How N detections match the M lesions of an image or volume.

    Attributes:
        is_hit: (N,) bool, the detection is the first, by score, to find some lesion.
        is_false_positive: (N,) bool, the detection matches no lesion.
        is_repeat: (N,) bool, neither: the detection matches only lesions that were found already,
            or it matches none and lies in a region to ignore.
        is_found: (M,) bool, the lesion was found.
        quality: see :func:`outcome_quality`.
    """

    is_hit: np.ndarray
    is_false_positive: np.ndarray
    is_repeat: np.ndarray
    is_found: np.ndarray
    quality: float = math.nan

    def summary(self) -> str:
        """Numbers of hits, false positives and missed lesions as text, or "no findings"."""
        if not len(self.is_found) and not len(self.is_hit):
            return NO_FINDINGS
        hits, false_positives = int(self.is_found.sum()), int(self.is_false_positive.sum())
        missed = len(self.is_found) - hits
        plural = "" if hits == 1 else "s"
        fp_plural = "" if false_positives == 1 else "s"
        return f"{hits} hit{plural}, {false_positives} false positive{fp_plural}, {missed} missed"


@dataclass(kw_only=True)
class ImageOutcome(Outcome):
    """How the detections of an image match its lesions.

    Attributes:
        record: the image's Detectron2 dict, with the lesions in ``record["annotations"]``.
        predictions: the detections at or above the score threshold, by descending score.
    """

    record: dict
    predictions: Instances

    @property
    def scores(self) -> np.ndarray:
        """(N,) of the detections."""
        return self.predictions.scores.numpy()


def truth_boxes(record: dict, key: str = "annotations") -> np.ndarray:
    """The lesions of a Detectron2 dict as an (M, 4) array of XYXY boxes in pixels.

    Regions to ignore are left out.

    Args:
        record: the dict.
        key: "hidden_annotations" for the lesions with simulated missing annotations.
    """
    return annotation_boxes(lesions_of(record.get(key, [])))


def match_outcome(
    record: dict,
    predictions: Instances,
    *,
    score_threshold: float = 0.0,
    iou_threshold: float = 0.5,
    inclusive: bool = False,
) -> ImageOutcome:
    """Match an image's detections with its lesions by the rules of the FROC curve.

    Classes are ignored: a detection of any class can find a lesion.

    Args:
        record: the image's Detectron2 dict.
        predictions: ``pred_boxes`` and ``scores``; ``pred_masks`` or ``pred_masks_rle`` are kept.
        score_threshold: detections with a lower score are left out.
        iou_threshold: minimum intersection over union of a detection and a lesion that match.
        inclusive: whether the corners of boxes are pixels that belong to them
            (TEST.INCLUSIVE_BOXES).
    """
    order = torch.argsort(predictions.scores, descending=True, stable=True)
    order = order[predictions.scores[order] >= score_threshold]
    kept = _select(predictions, order)
    boxes, gt_boxes = kept.pred_boxes.tensor.double().numpy(), truth_boxes(record)
    scores = kept.scores.double().numpy()
    matches = match_detections(
        boxes,
        scores,
        gt_boxes,
        iou_threshold=iou_threshold,
        inclusive=inclusive,
        excused=boxes_in_regions(boxes, region_boxes(record), inclusive=inclusive),
    )
    outcome = ImageOutcome(
        record=record,
        predictions=kept,
        is_hit=matches.finds,
        is_false_positive=matches.false_positives,
        is_repeat=matches.repeats | matches.ignored,
        is_found=np.isfinite(matches.found_scores),
    )
    outcome.quality = outcome_quality(outcome)
    return outcome


def outcome_quality(outcome: ImageOutcome) -> float:
    """The measure that ranks images, from 0 (worst) to 1 (best).

    The highest IoU x score of any detection, averaged over the image's lesions, divided by 1 + the
    number of false positives. An image without lesions has 0 if it has false positives, else NaN:
    it is not ranked.
    """
    gt_boxes = Boxes(torch.as_tensor(truth_boxes(outcome.record), dtype=torch.float32))
    overlaps = pairwise_iou(gt_boxes, outcome.predictions.pred_boxes).numpy()
    return quality_of(overlaps, outcome.scores, int(outcome.is_false_positive.sum()))


def quality_of(overlaps: np.ndarray, scores: np.ndarray, num_false_positives: int) -> float:
    """Compute :func:`outcome_quality` from overlaps and scores.

    Args:
        overlaps: (M, N) IoU of each lesion with each detection.
        scores: (N,) of the detections.
        num_false_positives: number of them among the detections.
    """
    if len(overlaps) == 0:
        return 0.0 if num_false_positives else math.nan
    if len(scores) == 0:
        return 0.0
    return float((overlaps * scores).max(axis=1).mean()) / (1 + num_false_positives)


def prediction_masks(predictions: Instances) -> list[np.ndarray]:
    """The (H, W) bool masks of detections; an empty list if they have none."""
    if predictions.has("pred_masks"):
        masks = predictions.pred_masks
        return list(np.asarray(getattr(masks, "tensor", masks), dtype=bool))
    if predictions.has("pred_masks_rle"):
        return [decode_mask(rle, predictions.image_size) for rle in predictions.pred_masks_rle]
    return []


def _select(predictions: Instances, indices: torch.Tensor) -> Instances:
    """``predictions[indices]``, also where a field is a list."""
    selected = Instances(predictions.image_size)
    for name, value in predictions.get_fields().items():
        selected.set(
            name, [value[i] for i in indices] if isinstance(value, list) else value[indices]
        )
    return selected
