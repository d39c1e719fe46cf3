"""Lesions and detections as 3-D boxes, and their metrics (Jaeger et al., section 4.3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...structures.boxes import xyxy_box
from ...structures.ignore_regions import lesions_of, region_boxes
from ..average_precision import detection_average_precision, ranking_average_precision
from ..excused import tracklets_in_regions
from ..froc import FrocCurve
from ..matching import Matches, match_images
from .criteria import Criterion, sensitivity_names


@dataclass(frozen=True, eq=False)
class VolumeBoxes:
    """3-D boxes of lesions or detections of one volume."""

    boxes: np.ndarray  # N x 6, X1Y1Z1X2Y2Z2; z: first and last slice number
    scores: np.ndarray  # N; 1 for lesions
    classes: np.ndarray  # N int
    # Boxes per slice: for detections, the linked boxes; for lesions, those on key slices, if known.
    slice_boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))  # K x 6, z1 == z2
    tracklets: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))  # K, in 0..N-1

    @classmethod
    def empty(cls) -> "VolumeBoxes":
        """No boxes."""
        return cls(np.zeros((0, 6)), np.zeros(0), np.zeros(0, dtype=int))

    def boxes_for(self, criterion: Criterion, inclusive: bool = False) -> np.ndarray:
        """The boxes to compare: (N, 6), or (K, 6) if only key slices count.

        Unless ``inclusive``, they extend to the slices' edges, z1 - 0.5 and z2 + 0.5, so that a box
        on one slice has a volume.
        """
        if criterion.needs_key_slices:
            return self.slice_boxes
        thickness = 0.0 if inclusive else 1.0
        return self.boxes + thickness * np.array([0, 0, -0.5, 0, 0, 0.5])

    def of_class(self, number: int) -> "VolumeBoxes":
        """The boxes of one class."""
        return self.select(self.classes == number)

    def select(self, kept: np.ndarray) -> "VolumeBoxes":
        """Select boxes.

        Args:
            kept: (N,) bool.
        """
        kept_slices = kept[self.tracklets]
        return VolumeBoxes(
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            classes=self.classes[kept],
            slice_boxes=self.slice_boxes[kept_slices],
            tracklets=(np.cumsum(kept) - 1)[self.tracklets[kept_slices]],
        )


@dataclass(frozen=True, eq=False)
class VolumeTruth:
    """Lesions of a data set of slices as 3-D boxes, in V volumes in the data set's order."""

    names: list[str]  # V
    lesions: list[VolumeBoxes]  # V
    patients: np.ndarray  # V, index of the volume's patient in 0..P-1
    slices: dict[object, tuple[int, int]]  # image_id -> index of its volume, slice number
    # V dicts of slice number -> (m, 4) X1Y1X2Y2, regions to ignore
    regions: list[dict[int, np.ndarray]]

    @classmethod
    def from_dicts(cls, dicts: Sequence[Mapping], name: str = "data set") -> "VolumeTruth":
        """Convert Detectron2 dicts; ``name`` is used in messages.

        A lesion's box encloses its boxes on all slices, from its first to its last slice number,
        including gaps. Its key slice is that of its annotation with ``is_key``. A volume without
        ``patient`` counts as its own patient. Regions to ignore
        (:mod:`lesion_d2.structures.ignore_regions`) need no ``lesion_id``.

        Raises:
            ValueError: no dict, a dict without ``volume`` or ``slice_index``, a duplicate slice, an
                annotation without ``lesion_id``, a lesion with two classes or two key slices, or a
                volume of two patients.
        """
        if len(dicts) == 0:
            raise ValueError(f"{name}: found no images, expected at least one")
        _check_slices(dicts, name)
        names = list(dict.fromkeys(d["volume"] for d in dicts))
        index_of = {volume: i for i, volume in enumerate(names)}
        slices = {d["image_id"]: (index_of[d["volume"]], d["slice_index"]) for d in dicts}
        patients = {d["volume"]: d.get("patient", d["volume"]) for d in dicts}
        numbers = {patient: i for i, patient in enumerate(dict.fromkeys(patients.values()))}
        lesions: list[dict] = [{} for _ in names]
        for d in dicts:
            found = lesions[index_of[d["volume"]]]
            for annotation in lesions_of(d.get("annotations", ())):
                _add_box(found, annotation, d, name)
        return cls(
            names=names,
            lesions=[_joined(found) for found in lesions],
            patients=np.array([numbers[patients[volume]] for volume in names]),
            slices=slices,
            regions=_regions_of_volumes(dicts, index_of),
        )

    @property
    def num_patients(self) -> int:
        """P, number of patients."""
        return int(self.patients.max()) + 1

    @property
    def num_lesions(self) -> int:
        """Number of lesions in all volumes."""
        return sum(len(lesions.boxes) for lesions in self.lesions)

    def check_criterion(self, criterion: Criterion) -> None:
        """Check that lesions have a key slice if a criterion needs it.

        Raises:
            ValueError: a lesion without a key slice.
        """
        if not criterion.needs_key_slices:
            return
        for name, lesions in zip(self.names, self.lesions, strict=True):
            for i in np.setdiff1d(np.arange(len(lesions.boxes)), lesions.tracklets)[:1]:
                first, last = lesions.boxes[i, [2, 5]]
                raise ValueError(
                    f"{name}: found no key slice of the lesion on slices {first:g} to {last:g}, "
                    f"expected an annotation with 'is_key' for {criterion}"
                )


def _regions_of_volumes(
    dicts: Sequence[Mapping], index_of: Mapping[object, int]
) -> list[dict[int, np.ndarray]]:
    regions: list[dict[int, np.ndarray]] = [{} for _ in index_of]
    for d in dicts:
        boxes = region_boxes(d)
        if len(boxes):
            regions[index_of[d["volume"]]][d["slice_index"]] = boxes
    return regions


def volume_froc(
    truth: VolumeTruth,
    detections: Sequence[VolumeBoxes],
    criterion: Criterion,
    *,
    inclusive: bool = False,
) -> FrocCurve:
    """FROC per volume with pooled classes: the curve of :func:`match_volumes`."""
    return FrocCurve.from_matches(match_volumes(truth, detections, criterion, inclusive=inclusive))


def match_volumes(
    truth: VolumeTruth,
    detections: Sequence[VolumeBoxes],
    criterion: Criterion,
    *,
    inclusive: bool = False,
) -> Matches:
    """Match detections and lesions with pooled classes.

    Args:
        truth: of V volumes.
        detections: V entries.
        criterion: when a detection hits.
        inclusive: whether boxes are whole pixels, see :func:`froc_curve`.

    Raises:
        ValueError: a box or a score that is not finite, see :func:`froc_curve`, or see
            :meth:`VolumeTruth.check_criterion`.
    """
    truth.check_criterion(criterion)
    excused = excuse(truth, detections, inclusive=inclusive)
    compared = _compared(detections, truth.lesions, criterion, inclusive)
    return match_images(**compared, excused=excused)


def excuse(
    truth: VolumeTruth, detections: Sequence[VolumeBoxes], *, inclusive: bool = False
) -> list[np.ndarray] | None:
    """Which detections lie in regions to ignore, so that they are not false positives.

    Args:
        truth: of V volumes.
        detections: V entries.
        inclusive: as for :func:`volume_froc`.

    Returns:
        V arrays (N,) bool, see :func:`~lesion_d2.evaluation.excused.tracklets_in_regions`; None if
        the data set has no region.
    """
    if not any(truth.regions):
        return None
    return [
        tracklets_in_regions(
            found.slice_boxes, found.tracklets, len(found.boxes), regions, inclusive=inclusive
        )
        for found, regions in zip(detections, truth.regions, strict=True)
    ]


def leave_out_ignored(
    truth: VolumeTruth,
    detections: Sequence[VolumeBoxes],
    criterion: Criterion,
    *,
    inclusive: bool = False,
) -> list[VolumeBoxes]:
    """Drop detections that reach no lesion and lie in regions to ignore.

    Args:
        truth: of V volumes.
        detections: V entries.
        criterion: when a detection reaches a lesion.
        inclusive: as for :func:`volume_froc`.
    """
    excused = excuse(truth, detections, inclusive=inclusive)
    if excused is None:
        return list(detections)
    compared = _compared(detections, truth.lesions, criterion, inclusive)
    ignored = match_images(**compared, excused=excused).ignored
    ends = np.cumsum([len(found.boxes) for found in detections])[:-1]
    parts = np.split(~ignored, ends)
    return [found.select(kept) for found, kept in zip(detections, parts, strict=True)]


def volume_metrics(
    truth: VolumeTruth,
    detections: Sequence[VolumeBoxes],
    curve: FrocCurve,
    class_names: Sequence[str],
    criterion: Criterion,
    rates: Sequence[float],
    *,
    inclusive: bool = False,
    ap_method: str = "coco",
) -> dict[str, float]:
    """AP and sensitivities for :class:`~lesion_d2.evaluation.VolumeEvaluator`, in percent.

    Args:
        truth: of V volumes.
        detections: V entries.
        curve: see :func:`volume_froc`.
        class_names: names of classes 0, 1, ...
        criterion: hit criterion of ``curve``.
        rates: false positives per volume.
        inclusive: as for ``curve``.
        ap_method: see :func:`detection_average_precision`.
    """
    precisions = {}
    for number, name in enumerate(class_names):
        found = [boxes.of_class(number) for boxes in detections]
        lesions = [boxes.of_class(number) for boxes in truth.lesions]
        precisions[name] = 100 * detection_average_precision(
            **_compared(found, lesions, criterion, inclusive),
            excused=excuse(truth, found, inclusive=inclusive),
            method=ap_method,
        )
    sensitivity = curve.at(rates)
    froc = 100 * np.append(sensitivity, sensitivity.mean())
    return {
        **_with_mean(criterion.ap_name, precisions),
        **dict(zip(sensitivity_names(rates), froc.tolist(), strict=True)),
    }


def _compared(
    found: Sequence[VolumeBoxes],
    lesions: Sequence[VolumeBoxes],
    criterion: Criterion,
    inclusive: bool,
) -> dict[str, object]:
    """Arguments of :func:`froc_curve` and :func:`detection_average_precision`."""
    key_slices = criterion.needs_key_slices
    return {
        "pred_boxes": [boxes.boxes_for(criterion, inclusive) for boxes in found],
        "pred_scores": [boxes.scores for boxes in found],
        "gt_boxes": [boxes.boxes_for(criterion, inclusive) for boxes in lesions],
        "iou_threshold": criterion.threshold,
        "overlap": criterion.overlap,
        "inclusive": inclusive,
        "tracklets": [boxes.tracklets for boxes in found] if key_slices else None,
    }


def patient_metrics(
    truth: VolumeTruth, detections: Sequence[VolumeBoxes], class_names: Sequence[str]
) -> dict[str, float]:
    """Patient-level AP in percent, independent of criteria; see :func:`volume_metrics`."""
    precisions = {}
    for number, name in enumerate(class_names):
        found = [boxes.of_class(number) for boxes in detections]
        lesions = [boxes.of_class(number) for boxes in truth.lesions]
        precisions[name] = 100 * _patient_average_precision(truth, found, lesions)
    return _with_mean("patient_AP", precisions)


def _patient_average_precision(
    truth: VolumeTruth, found: Sequence[VolumeBoxes], lesions: Sequence[VolumeBoxes]
) -> float:
    """Patient-level AP of one class; NaN if no patient has it, or all do."""
    scores = np.zeros(truth.num_patients)
    has_class = np.zeros(truth.num_patients, dtype=bool)
    for patient, boxes, true_boxes in zip(truth.patients, found, lesions, strict=True):
        scores[patient] = max(scores[patient], boxes.scores.max(initial=0.0))
        has_class[patient] |= len(true_boxes.boxes) > 0
    return math.nan if has_class.all() else ranking_average_precision(scores, has_class)


def _with_mean(metric: str, values: Mapping[str, float]) -> dict[str, float]:
    """The mean of the defined values, and with several classes the value of each."""
    defined = [value for value in values.values() if not math.isnan(value)]
    mean = sum(defined) / len(defined) if defined else math.nan
    each = {f"{metric}-{name}": value for name, value in values.items()} if len(values) > 1 else {}
    return {metric: mean, **each}


def _check_slices(dicts: Sequence[Mapping], name: str) -> None:
    image_ids, slices, patients = set(), set(), {}
    for d in dicts:
        image_id = d["image_id"]
        for key in ("volume", "slice_index"):
            if key not in d:
                raise ValueError(f"{name}, {image_id}: found no {key!r}, expected a volume's slice")
        volume, number = d["volume"], d["slice_index"]
        if image_id in image_ids:
            raise ValueError(f"{name}: found image_id {image_id!r} twice, expected once")
        if (volume, number) in slices:
            raise ValueError(
                f"{name}: found slice {number} of volume {volume} twice, expected once"
            )
        image_ids.add(image_id)
        slices.add((volume, number))
        patient = d.get("patient", volume)
        if patients.setdefault(volume, patient) != patient:
            raise ValueError(
                f"{name}, volume {volume}: found patients {patients[volume]} and {patient}, "
                "expected one"
            )


@dataclass(eq=False)
class _Lesion:
    """A lesion, from the slices read so far."""

    low: np.ndarray  # 3, x, y, z
    high: np.ndarray  # 3
    number: int  # of its class
    key_box: np.ndarray | None = None  # 6


def _add_box(lesions: dict, annotation: Mapping, image: Mapping, name: str) -> None:
    """Extend a lesion's 3-D box by its box on one slice."""
    where = f"{name}, {image['image_id']}"
    if "lesion_id" not in annotation:
        raise ValueError(
            f"{where}: found an annotation without 'lesion_id', expected the lesion's number"
        )
    box = xyxy_box(annotation)
    low, high = (np.array([*box[i : i + 2], image["slice_index"]], dtype=float) for i in (0, 2))
    lesion, number = annotation["lesion_id"], annotation["category_id"]
    known = lesions.setdefault(lesion, _Lesion(low, high, number))
    if known.number != number:
        raise ValueError(
            f"{where}, lesion {lesion}: found classes {known.number} and {number}, expected one"
        )
    known.low, known.high = np.minimum(known.low, low), np.maximum(known.high, high)
    if not annotation.get("is_key", False):
        return
    if known.key_box is not None:
        raise ValueError(
            f"{where}, lesion {lesion}: found key slices {known.key_box[2]:g} and {low[2]:g}, "
            "expected one"
        )
    known.key_box = np.concatenate([low, high])


def _joined(lesions: Mapping[object, _Lesion]) -> VolumeBoxes:
    if not lesions:
        return VolumeBoxes.empty()
    boxes = np.array([np.concatenate([lesion.low, lesion.high]) for lesion in lesions.values()])
    classes = np.array([lesion.number for lesion in lesions.values()])
    keys = {i: x.key_box for i, x in enumerate(lesions.values()) if x.key_box is not None}
    key_boxes = np.array(list(keys.values())).reshape(-1, 6)
    return VolumeBoxes(
        boxes, np.ones(len(boxes)), classes, key_boxes, np.array(list(keys), dtype=int)
    )
