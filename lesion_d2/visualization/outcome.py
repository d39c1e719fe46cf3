"""What the detections of an image found, and how good that is."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

from ..boxes import xyxy_box
from ..evaluation.excused import boxes_in_regions
from ..evaluation.matching import match_detections
from ..ignore_regions import lesions_of, region_boxes
from ..rle import decode_mask


@dataclass(kw_only=True)
class Outcome:
    """What N detections found of M lesions, of an image or a volume.

    Attributes:
        is_hit: (N,) bool, the detection found a lesion that no better one had found.
        is_false_positive: (N,) bool, the detection reaches no lesion.
        is_repeat: (N,) bool, neither of both: the detection reaches only lesions that a better one
            found, or none and lies in a region to ignore.
        is_found: (M,) bool, the lesion was found.
        quality: see :func:`outcome_quality`.
    """

    is_hit: np.ndarray
    is_false_positive: np.ndarray
    is_repeat: np.ndarray
    is_found: np.ndarray
    quality: float = math.nan

    def summary(self) -> str:
        """Hits, false positives and misses as one line of text."""
        hits, false_positives = int(self.is_found.sum()), int(self.is_false_positive.sum())
        missed = len(self.is_found) - hits
        plural = "" if hits == 1 else "s"
        fp_plural = "" if false_positives == 1 else "s"
        return f"{hits} hit{plural}, {false_positives} false positive{fp_plural}, {missed} missed"


@dataclass(kw_only=True)
class ImageOutcome(Outcome):
    """What the detections of one image found of its lesions.

    Attributes:
        record: the image's Detectron2 dict; its lesions are those of ``record["annotations"]``.
        predictions: the detections at or above the score threshold, by falling score.
    """

    record: dict
    predictions: Instances

    @property
    def scores(self) -> np.ndarray:
        """(N,) of the detections."""
        return self.predictions.scores.numpy()


def truth_boxes(record: dict, key: str = "annotations") -> np.ndarray:
    """The lesions of a Detectron2 dict as an (M, 4) array of XYXY boxes in pixels.

    Regions to ignore are none.

    Args:
        record: the dict.
        key: "hidden_annotations" for the lesions that a training did not get to see.
    """
    boxes = [xyxy_box(annotation) for annotation in lesions_of(record.get(key, []))]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def judge(
    record: dict,
    predictions: Instances,
    *,
    score_threshold: float = 0.0,
    iou_threshold: float = 0.5,
    inclusive: bool = False,
) -> ImageOutcome:
    """Sort an image's detections into hits and false positives, as the FROC curve does.

    Classes are not compared: a lesion counts as found by any detection on it.

    Args:
        record: the image's Detectron2 dict.
        predictions: ``pred_boxes`` and ``scores``; ``pred_masks`` or ``pred_masks_rle`` are kept.
        score_threshold: detections below it are left out.
        iou_threshold: intersection over union from which a detection reaches a lesion.
        inclusive: whether boxes are whole pixels (TEST.INCLUSIVE).
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
    """The measure behind the best and the worst images, 0 (worst) to 1 (best).

    The mean over the image's lesions of the highest IoU x score of any detection on it, divided by
    one plus the number of false positives. An image without lesions has 0 where it has false
    positives, and NaN (neither good nor bad) where it has none.
    """
    gt_boxes = Boxes(torch.as_tensor(truth_boxes(outcome.record), dtype=torch.float32))
    overlaps = pairwise_iou(gt_boxes, outcome.predictions.pred_boxes).numpy()
    return quality_of(overlaps, outcome.scores, int(outcome.is_false_positive.sum()))


def quality_of(overlaps: np.ndarray, scores: np.ndarray, num_false_positives: int) -> float:
    """The measure of :func:`outcome_quality` from its parts.

    Args:
        overlaps: (M, N) IoU of each lesion with each detection.
        scores: (N,).
        num_false_positives: among the detections.
    """
    if len(overlaps) == 0:
        return 0.0 if num_false_positives else math.nan
    if len(scores) == 0:
        return 0.0
    return float((overlaps * scores).max(axis=1).mean()) / (1 + num_false_positives)


def prediction_masks(predictions: Instances) -> list[np.ndarray]:
    """The (H, W) bool masks of some detections; empty where they carry none."""
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
