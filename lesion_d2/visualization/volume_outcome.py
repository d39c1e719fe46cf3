"""How the detections in a volume match its lesions, and their cross-sections on a slice."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from ..evaluation.matching import paired_overlaps
from ..evaluation.volumetric.criteria import Criterion
from ..evaluation.volumetric.runs import join_volume, slices_inside
from ..evaluation.volumetric.volumes import VolumeBoxes, VolumeTruth, match_volumes
from ..structures.ignore_regions import regions_of
from .outcome import ImageOutcome, Outcome, quality_of

_IOU = Criterion("iou", 0.1)  # for the edges of boxes


@dataclass(kw_only=True)
class VolumeOutcome(Outcome):
    """How the detections in a volume match its lesions.

    Attributes:
        name: of the volume.
        lesions: M boxes in 3-D.
        detections: the N at or above the score threshold, by descending score.
        reached: (N,) index of the lesion that a detection matches with most overlap, or -1.
    """

    name: str
    lesions: VolumeBoxes
    detections: VolumeBoxes
    reached: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """(N,) of the detections."""
        return self.detections.scores

    def on_slice(self, record: Mapping) -> ImageOutcome:
        """The lesions and detections on a slice, for ``LesionVisualizer.draw_outcome``.

        Boxes are cross-sections of the 3-D boxes: a lesion has the same box on all of its slices.
        The outcome on every slice is that in 3-D.

        Args:
            record: the slice's Detectron2 dict. Its regions to ignore are kept.
        """
        number, size = record["slice_index"], (record["height"], record["width"])
        lesions, detections = (_on_slice(b, number) for b in (self.lesions, self.detections))
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category}
            for box, category in zip(
                self.lesions.boxes[lesions][:, [0, 1, 3, 4]].tolist(),
                self.lesions.classes[lesions].tolist(),
                strict=True,
            )
        ]
        annotations += regions_of(record.get("annotations", ()))
        found = Instances(size)
        boxes = self.detections.boxes[detections][:, [0, 1, 3, 4]]
        found.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        found.scores = torch.as_tensor(self.scores[detections])
        found.pred_classes = torch.as_tensor(self.detections.classes[detections])
        return ImageOutcome(
            record={**record, "annotations": annotations},
            predictions=found,
            is_hit=self.is_hit[detections],
            is_false_positive=self.is_false_positive[detections],
            is_repeat=self.is_repeat[detections],
            is_found=self.is_found[lesions],
        )


def slice_range(boxes: VolumeBoxes) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the first (N,) and the last slice (N,) of boxes in 3-D."""
    first, last = slices_inside(boxes.boxes_for(_IOU))
    return first.astype(int), last.astype(int)


def _on_slice(boxes: VolumeBoxes, number: int) -> np.ndarray:
    first, last = slice_range(boxes)
    return np.flatnonzero((first <= number) & (number <= last))


def match_volume_outcomes(
    truth: VolumeTruth,
    detections: Mapping[str, VolumeBoxes],
    criterion: Criterion,
    *,
    inclusive: bool = False,
    score_threshold: float = 0.0,
) -> list[VolumeOutcome]:
    """Match the detections in volumes with lesions by the rules of the FROC curve.

    Args:
        truth: the lesions of V volumes.
        detections: volume -> its detections; volumes without detections may be missing.
        criterion: when a detection and a lesion match.
        inclusive: whether the corners of boxes are pixels that belong to them
            (TEST.INCLUSIVE_BOXES).
        score_threshold: detections with a lower score are left out.

    Returns:
        V entries, in the order of ``truth``.

    Raises:
        ValueError: see :func:`~lesion_d2.evaluation.volumetric.volumes.match_volumes`.
    """
    found = [join_volume([detections.get(name, VolumeBoxes.empty())]) for name in truth.names]
    found = [boxes.select(boxes.scores >= score_threshold) for boxes in found]
    matches = match_volumes(truth, found, criterion, inclusive=inclusive)
    is_repeat, is_found = matches.repeats | matches.ignored, np.isfinite(matches.found_scores)
    outcomes = []
    for index, (name, lesions, boxes) in enumerate(
        zip(truth.names, truth.lesions, found, strict=True)
    ):
        here = matches.images == index
        false_positives = matches.false_positives[here]
        outcomes.append(
            VolumeOutcome(
                name=name,
                lesions=lesions,
                detections=boxes,
                reached=matches.lesions[here],
                is_hit=matches.finds[here],
                is_false_positive=false_positives,
                is_repeat=is_repeat[here],
                is_found=is_found[matches.lesion_images == index],
                quality=quality_of(
                    _overlaps(lesions, boxes), boxes.scores, int(false_positives.sum())
                ),
            )
        )
    return outcomes


def _overlaps(lesions: VolumeBoxes, detections: VolumeBoxes) -> np.ndarray:
    """(M, N) IoU in 3-D."""
    rows, columns = lesions.boxes_for(_IOU), detections.boxes_for(_IOU)
    pairs = np.tile(columns, (len(rows), 1)), np.repeat(rows, len(columns), axis=0)
    return paired_overlaps(*pairs).reshape(len(rows), len(columns))
