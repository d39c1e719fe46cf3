"""3-D evaluation of detectors of slices or volumes (Jaeger et al., section 4.3; Bai et al.)."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from ...config import FROC_RATES
from ...structures.boxes import first_pixel
from ...utils.files import without_nan, write_json
from ..average_precision import AP_METHODS
from ..froc import FrocCurve
from ..operating_points import KEY, describe_operating_points
from ..plots import plot_froc
from ..predictions import gather_predictions, order_by_image
from .criteria import parse_criteria
from .runs import boxes_of_run, join_volume, slice_runs
from .volumes import (
    VolumeBoxes,
    VolumeTruth,
    leave_out_ignored,
    patient_metrics,
    volume_froc,
    volume_metrics,
)

logger = logging.getLogger(__name__)


class VolumeLinker(Protocol):
    """Links boxes on a volume's slices to 3-D boxes, as ``lesion_d2.inference.Linker`` does."""

    name: str
    parameters: Mapping[str, float]

    def __call__(
        self, boxes: np.ndarray, scores: np.ndarray, slice_ids: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Link boxes.

        Args:
            boxes, scores, slice_ids, classes: (N, 4) X1Y1X2Y2, (N,), (N,), (N,).

        Returns:
            (M, 6) X1Y1Z1X2Y2Z2 with the numbers of the first and last slice, (M,) scores, (M,)
            classes and (N,) tracklets: the index of the 3-D box that a box belongs to, or -1.
        """


class VolumeEvaluator(DatasetEvaluator):
    """AP, FROC and patient-level AP of 3-D boxes.

    The boxes are detections of a volumetric model, or linked from detections of a slice model.

    For data sets with boxes on all slices of a lesion, as from
    :func:`lesion_d2.data.phantoms.volumes.load_volumes`, or only on key slices if all criteria use
    only these. ``results["volume"]`` has, in percent, for the first criterion (a 3-D IoU of 0.1 in
    Jaeger et al., section 4.3):

    - ``AP10``, at an IoU of 0.1, or ``AP``: mean over the classes with lesions of the average
      precision, COCO's or by all points (Cai et al., 2020), see
      :func:`~lesion_d2.evaluation.detection_average_precision`; with several classes also
      ``AP10-<class>``.
    - ``sens@0.5`` to ``sens@16``, ``mean_sens``: FROC sensitivity at these false positives per
      volume. It pools the classes, as :class:`~lesion_d2.evaluation.LesionEvaluator` does.
    - ``patient_AP``: average precision of patients ranked by the highest score of a class in any of
      their volumes (0 without a detection), averaged over the classes that some but not all
      patients have, see :func:`~lesion_d2.evaluation.ranking_average_precision`. The paper does not
      mention interpolation; we do not interpolate, and ties are one step. With several classes also
      ``patient_AP-<class>``.

    ``results["volume_p3d"]``, ``["volume_iou"]``, ``["volume_iobb"]`` have AP and sensitivities for
    the other criteria. Undefined metrics, such as the AP of a class without lesions, are NaN.

    Regions to ignore (annotations with ``iscrowd``, :mod:`lesion_d2.structures.ignore_regions`)
    never count as lesions. Detections that reach no lesion and have at least half of the area of
    their boxes on all slices in regions
    (:func:`~lesion_d2.evaluation.excused.tracklets_in_regions`) are dropped; for ``patient_AP``, by
    the first criterion.

    Files in ``output_dir``: ``volumes.json`` (metrics, settings, the score threshold of each rate
    for the first criterion, 3-D detections with their boxes on the lesions' key slices),
    ``froc.png`` and ``froc.pdf``. Boxes in files have the coordinates of the data set's own files
    (:func:`lesion_d2.structures.boxes.first_pixel`). With several processes, the first returns the
    results and the others ``{}``.
    """

    #: Only boxes are linked and evaluated.
    needs_masks = False

    @configurable
    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        *,
        link: VolumeLinker | None,
        criteria: Sequence[str] = ("iou@0.1",),
        rates: Sequence[float] = FROC_RATES,
        inclusive: bool = False,
        ap_method: str = "coco",
        distributed: bool = True,
        records: list[dict] | None = None,
    ):
        """
        Args:
            dataset_name: a data set in Detectron2's catalog. Its dicts are the ground truth.
            output_dir: folder for the files; None writes none.
            link: links the boxes on a volume's slices to 3-D boxes, such as
                ``lesion_d2.inference.build_linker``'s; None for a volumetric model, whose
                detections are 3-D boxes.
            criteria: hit criteria, see :func:`~lesion_d2.evaluation.parse_criteria`.
            rates: false positives per volume.
            inclusive: whether boxes are whole pixels, see
                :func:`~lesion_d2.evaluation.matching.paired_overlaps`.
            ap_method: "coco" or "all_points", see
                :func:`~lesion_d2.evaluation.detection_average_precision`.
            distributed: whether to gather the predictions of all processes.
            records: the dicts to evaluate, if not all of the data set's.

        Raises:
            ValueError: see :meth:`VolumeTruth.from_dicts` and :func:`parse_criteria`; a lesion's
                class is not in the data set's classes; a criterion needs key slices and a lesion
                has none; or an unknown ``ap_method``.
        """
        self._dataset_name = dataset_name
        self._classes = list(MetadataCatalog.get(dataset_name).thing_classes)
        dicts = DatasetCatalog.get(dataset_name) if records is None else records
        self._truth = VolumeTruth.from_dicts(dicts, dataset_name)
        for lesions in self._truth.lesions:
            self._check_classes(lesions.classes, dataset_name)
        self._criteria = parse_criteria(criteria)
        for criterion in self._criteria.values():
            self._truth.check_criterion(criterion)
        if ap_method not in AP_METHODS:
            raise ValueError(f"found ap_method {ap_method!r}, expected one of {list(AP_METHODS)}")
        self._rates = tuple(rates)
        self._inclusive, self._ap_method = inclusive, ap_method
        self._folder = Path(output_dir) if output_dir is not None else None
        self._link = link
        self._runs = slice_runs(self._truth)
        self._distributed = distributed
        self.reset()

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None = None
    ) -> dict:
        """Arguments of ``VolumeEvaluator(cfg, dataset_name, output_dir, link=...)``."""
        return {
            "dataset_name": dataset_name,
            "output_dir": output_dir,
            "criteria": cfg.TEST.VOLUME_CRITERIA,
            "rates": cfg.TEST.VOLUME_FROC_RATES,
            "inclusive": cfg.TEST.INCLUSIVE_BOXES,
            "ap_method": cfg.TEST.VOLUME_AP,
        }

    def reset(self) -> None:
        """Discard all predictions."""
        self._predictions: list[tuple[object, tuple[np.ndarray, ...]]] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Store detections on slices, or on runs of consecutive slices.

        Args:
            inputs: with ``image_id``; for runs also ``volume`` and ``first_slice``, the number of
                the first slice.
            outputs: with ``instances``, in pixels of the slices on disk; for runs with
                ``pred_boxes`` (n, 6), X1Y1Z1X2Y2Z2 in voxels of the run.

        Raises:
            ValueError: an image, run or class that is not in the data set, boxes of the wrong
                dimension, or a box or score that is not finite.
        """
        of_runs = self._link is None
        known, columns = (self._runs, 6) if of_runs else (self._truth.slices, 4)
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            part = (sample.get("volume"), sample.get("first_slice")) if of_runs else image_id
            if part not in known:
                raise ValueError(
                    f"predictions: found image_id {image_id!r}, expected one of "
                    f"{self._dataset_name}"
                )
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.double().numpy()
            scores, classes = instances.scores.double().numpy(), instances.pred_classes.numpy()
            if boxes.shape[1] != columns:
                raise ValueError(
                    f"predictions on {image_id}: found {boxes.shape[1]} numbers per box, expected "
                    f"{columns}"
                )
            self._check_classes(classes, f"predictions on {image_id}")
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise ValueError(
                    f"predictions on {image_id}: found a box or score that is not finite, expected "
                    "finite numbers"
                )
            self._predictions.append((part, (boxes, scores, classes)))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate the predictions; slices without a prediction count as without detections."""
        predictions = gather_predictions(self._predictions, distributed=self._distributed)
        if predictions is None:
            return {}
        detections = self._detections(predictions)
        curves, results = {}, {}
        for task, criterion in self._criteria.items():
            curves[task] = volume_froc(
                self._truth, detections, criterion, inclusive=self._inclusive
            )
            results[task] = volume_metrics(
                self._truth,
                detections,
                curves[task],
                self._classes,
                criterion,
                self._rates,
                inclusive=self._inclusive,
                ap_method=self._ap_method,
            )
        counted = leave_out_ignored(
            self._truth, detections, self._criteria["volume"], inclusive=self._inclusive
        )
        results["volume"] |= patient_metrics(self._truth, counted, self._classes)
        self._log(results)
        if self._folder:
            self._write(detections, curves, results)
        return results

    def _check_classes(self, classes: np.ndarray, where: str) -> None:
        for number in classes[(classes < 0) | (classes >= len(self._classes))][:1]:
            raise ValueError(
                f"{where}: found class {number}, expected 0 to {len(self._classes) - 1}"
            )

    def _detections(self, predictions: list[tuple]) -> list[VolumeBoxes]:
        """The detections of each volume, from predictions in any order."""
        if self._link is not None:
            slices = self._truth.slices
            by_slice = order_by_image(predictions, slices, self._dataset_name, unit="slices")
            return self._link_volumes(by_slice)
        by_run = order_by_image(predictions, self._runs, self._dataset_name, unit="runs of slices")
        parts: dict[str, list[VolumeBoxes]] = {name: [] for name in self._truth.names}
        for (volume, first_slice), found in by_run.items():
            num_slices = self._runs[volume, first_slice]
            parts[volume].append(boxes_of_run(*found, first_slice, num_slices))
        return [join_volume(part) for part in parts.values()]

    def _link_volumes(self, by_image: Mapping[object, tuple]) -> list[VolumeBoxes]:
        parts: list[list[tuple]] = [[] for _ in self._truth.names]
        for image_id, (boxes, scores, classes) in by_image.items():
            volume, number = self._truth.slices[image_id]
            if len(boxes):
                parts[volume].append((boxes, scores, np.full(len(boxes), number), classes))
        linked = []
        for part in parts:
            if not part:
                linked.append(VolumeBoxes.empty())
                continue
            linked.append(self._link_boxes(*map(np.concatenate, zip(*part, strict=True))))
        return linked

    def _link_boxes(
        self, boxes: np.ndarray, scores: np.ndarray, slice_ids: np.ndarray, classes: np.ndarray
    ) -> VolumeBoxes:
        *linked, tracklets = map(np.asarray, self._link(boxes, scores, slice_ids, classes))
        kept = tracklets >= 0
        z = slice_ids[kept, None]
        slice_boxes = np.concatenate([boxes[kept, :2], z, boxes[kept, 2:], z], axis=1)
        return VolumeBoxes(*linked, slice_boxes, tracklets[kept])

    def _log(self, results: Mapping[str, Mapping[str, float]]) -> None:
        # NaN (undefined) becomes an empty cell.
        names = list(dict.fromkeys(name for numbers in results.values() for name in numbers))
        cells = [[numbers.get(name, math.nan) for numbers in results.values()] for name in names]
        lines = [
            [name, *(None if math.isnan(value) else value for value in row)]
            for name, row in zip(names, cells, strict=True)
        ]
        headers = ["in 3-D, %", *map(str, self._criteria.values())]
        table = tabulate(lines, headers, tablefmt="pipe", floatfmt=".2f", missingval="")
        logger.info(
            "%d lesions in %d volumes of %d patients; AP and sensitivity at false positives per "
            "volume:\n%s",
            self._truth.num_lesions,
            len(self._truth.names),
            self._truth.num_patients,
            table,
        )

    def _write(
        self,
        detections: list[VolumeBoxes],
        curves: Mapping[str, FrocCurve],
        results: Mapping[str, Mapping[str, float]],
    ) -> None:
        known = without_nan(results)
        content = {
            "dataset": self._dataset_name,
            "lesions": self._truth.num_lesions,
            "volumes": len(self._truth.names),
            "settings": {
                "criteria": {task: str(criterion) for task, criterion in self._criteria.items()},
                "iou_threshold": self._criteria["volume"].threshold,
                "linking": self._link and {"name": self._link.name, **self._link.parameters},
                "inclusive": self._inclusive,
                "average_precision": self._ap_method,
                "patient_average_precision": "not interpolated, ties are one step",
            },
            "results": known.pop("volume"),
            "other_results": known,
            KEY: describe_operating_points(
                curves["volume"], self._rates, self._dataset_name, "volume"
            ),
            "detections": [
                {"volume": name, **entry}
                for name, found, *truth in zip(
                    self._truth.names,
                    detections,
                    self._truth.lesions,
                    self._truth.regions,
                    strict=True,
                )
                for entry in _entries(found, *truth, first_pixel(self._dataset_name))
            ],
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / "volumes.json", content)
        criteria = (str(criterion) for criterion in self._criteria.values())
        named = dict(zip(criteria, curves.values(), strict=True))
        plot_froc(named, self._folder / "froc.png", unit="volume", title=self._dataset_name)


def _entries(
    found: VolumeBoxes, lesions: VolumeBoxes, regions: Mapping, first_pixel: float
) -> list[dict]:
    """Detections of a volume for ``volumes.json``, in the coordinates of the data set's files.

    ``key_slices`` are their boxes on the lesions' key slices, which P3D compares; in a volume with
    regions to ignore, their boxes on all slices, as these decide whether they lie in regions.
    """
    offset = first_pixel * np.array([1, 1, 0, 1, 1, 0])  # slice numbers are those on disk
    columns = zip(
        (found.boxes + offset).tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
    )
    entries = [
        {"box3d": box, "score": score, "category_id": number, "key_slices": {}}
        for box, score, number in columns
    ]
    kept = np.isin(found.slice_boxes[:, 2], lesions.slice_boxes[:, 2]) | bool(regions)
    boxes = (found.slice_boxes[kept] + offset)[:, [0, 1, 3, 4]].tolist()
    numbers = found.slice_boxes[kept, 2].astype(int).tolist()
    for i, number, box in zip(found.tracklets[kept].tolist(), numbers, boxes, strict=True):
        entries[i]["key_slices"][number] = box
    return entries
