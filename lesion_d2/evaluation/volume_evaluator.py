"""Evaluation in 3-D of a detector that looks at slices (Jaeger et al., section 4.3)."""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from ..files import written_whole
from .froc import FrocCurve
from .plots import plot_froc
from .predictions import gather_predictions, order_by_image
from .volumes import VOLUME_IOU, VolumeBoxes, VolumeTruth, volume_froc, volume_metrics

logger = logging.getLogger(__name__)


class VolumeEvaluator(DatasetEvaluator):
    """AP, FROC and AP per patient of slice detections that are merged to boxes in 3-D.

    For data sets with boxes on all slices of a lesion, as
    :func:`lesion_d2.data.volumes.load_volumes` gives them. ``results["volume"]`` has, in percent
    and at a 3-D IoU of 0.1 (Jaeger et al., section 4.3):

    - ``AP10``: mean over the classes with lesions of the average precision, see
      :func:`~lesion_d2.evaluation.detection_average_precision`; with several classes also
      ``AP10-<class>``.
    - ``sens@0.5`` to ``sens@16``, ``mean_sens``: FROC sensitivity at so many false positives per
      volume. It pools the classes, as :class:`~lesion_d2.evaluation.LesionEvaluator` does.
    - ``patient_AP``: mean over the classes that some but not all patients have of the average
      precision of the patients, ranked by the highest score of the class in any of their volumes
      (0 without a detection), see :func:`~lesion_d2.evaluation.ranking_average_precision`: the
      paper names no interpolation, we take none, and one step for ties. With several classes also
      ``patient_AP-<class>``.

    What is not defined, such as the AP of a class without lesions, is NaN.

    Files in ``output_dir``: ``volumes.json`` (numbers, settings, detections in 3-D) and
    ``froc.png``. Of several processes the first returns the results, the others ``{}``.
    """

    @configurable
    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        *,
        merge: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]],
        merge_iou_threshold: float = 0.1,
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: a data set in Detectron2's catalog. Its dicts are the truth.
            output_dir: where files go; none are written without it.
            merge: makes boxes in 3-D of those of a volume's slices (section 4.2), as
                ``batched_merge_slices`` of ``lesion_d2.inference.slices`` does:
                ``merge(boxes, scores, slice_ids, classes, iou_threshold=...)`` takes (N, 4)
                X1Y1X2Y2, (N,), (N,), (N,) and returns (M, 6) X1Y1Z1X2Y2Z2 with the first and last
                slice number, (M,) scores, (M,) classes.
            merge_iou_threshold: of ``merge``.
            distributed: whether to gather the predictions of all processes.

        Raises:
            ValueError: see :meth:`VolumeTruth.from_dicts`; or a lesion's class is not one of the
                data set's.
        """
        self._dataset_name = dataset_name
        self._classes = list(MetadataCatalog.get(dataset_name).thing_classes)
        self._truth = VolumeTruth.from_dicts(DatasetCatalog.get(dataset_name), dataset_name)
        for lesions in self._truth.lesions:
            self._check_classes(lesions.classes, dataset_name)
        self._folder = Path(output_dir) if output_dir is not None else None
        self._merge = merge
        self._merge_iou_threshold = merge_iou_threshold
        self._distributed = distributed
        self.reset()

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None = None
    ) -> dict:
        """Arguments of ``VolumeEvaluator(cfg, dataset_name, output_dir, merge=...)``."""
        return {
            "dataset_name": dataset_name,
            "output_dir": output_dir,
            "merge_iou_threshold": cfg.TEST.MERGE_IOU_THRESH,
        }

    def reset(self) -> None:
        """Forget what was processed."""
        self._predictions: list[tuple[object, tuple[np.ndarray, ...]]] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Take in the detections on some slices.

        Args:
            inputs: with ``image_id``.
            outputs: with ``instances``, in the pixels of the slices on disk.

        Raises:
            ValueError: an image or a class that the data set does not have, or a box or score that
                is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self._truth.slices:
                raise ValueError(
                    f"predictions have image_id {image_id!r}, expected one of {self._dataset_name}"
                )
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.double().numpy()
            scores, classes = instances.scores.double().numpy(), instances.pred_classes.numpy()
            self._check_classes(classes, f"predictions on {image_id}")
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise ValueError(
                    f"predictions on {image_id}: found a box or score that is not a finite number"
                )
            self._predictions.append((image_id, (boxes, scores, classes)))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate what was processed; slices that were not count as slices without detections."""
        predictions = gather_predictions(self._predictions, distributed=self._distributed)
        if predictions is None:
            return {}
        slices = self._truth.slices
        by_image = order_by_image(predictions, slices, self._dataset_name, unit="slices")
        detections = self._merge_volumes(by_image)
        curve = volume_froc(self._truth, detections)
        numbers = volume_metrics(self._truth, detections, curve, self._classes)
        self._log(numbers)
        if self._folder:
            self._write(detections, curve, numbers)
        return {"volume": numbers}

    def _check_classes(self, classes: np.ndarray, where: str) -> None:
        for number in classes[(classes < 0) | (classes >= len(self._classes))][:1]:
            raise ValueError(
                f"{where}: found class {number}, expected 0 to {len(self._classes) - 1}"
            )

    def _merge_volumes(self, by_image: Mapping[object, tuple]) -> list[VolumeBoxes]:
        parts: list[list[tuple]] = [[] for _ in self._truth.names]
        for image_id, (boxes, scores, classes) in by_image.items():
            volume, number = self._truth.slices[image_id]
            if len(boxes):
                parts[volume].append((boxes, scores, np.full(len(boxes), number), classes))
        merged = []
        for part in parts:
            if not part:
                merged.append(VolumeBoxes.empty())
                continue
            arrays = map(np.concatenate, zip(*part, strict=True))
            boxes, scores, classes = self._merge(*arrays, iou_threshold=self._merge_iou_threshold)
            merged.append(VolumeBoxes(*map(np.asarray, (boxes, scores, classes))))
        return merged

    def _log(self, numbers: Mapping[str, float]) -> None:
        # NaN, where a number is not defined, as an empty cell.
        lines = [(name, None if math.isnan(v) else v) for name, v in numbers.items()]
        table = tabulate(lines, ["in 3-D", "%"], tablefmt="pipe", floatfmt=".2f", missingval="")
        num_lesions = sum(len(lesions.boxes) for lesions in self._truth.lesions)
        logger.info(
            "%d lesions in %d volumes of %d patients; AP and sensitivity at false positives per "
            "volume, IoU %g:\n%s",
            num_lesions,
            len(self._truth.names),
            self._truth.num_patients,
            VOLUME_IOU,
            table,
        )

    def _write(
        self, detections: list[VolumeBoxes], curve: FrocCurve, numbers: Mapping[str, float]
    ) -> None:
        content = {
            "dataset": self._dataset_name,
            "settings": {
                "iou_threshold": VOLUME_IOU,
                "merge_iou_threshold": self._merge_iou_threshold,
                "average_precision": "101 recalls, as COCO",
                "patient_average_precision": "not interpolated, ties are one step",
            },
            "results": {k: None if math.isnan(v) else v for k, v in numbers.items()},
            "detections": [
                {"volume": name, "box3d": box, "score": score, "category_id": number}
                for name, found in zip(self._truth.names, detections, strict=True)
                for box, score, number in zip(
                    found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
                )
            ],
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self._folder / "volumes.json") as partial:
            partial.write_text(json.dumps(content) + "\n")
        plot_froc({self._dataset_name: curve}, self._folder / "froc.png", unit="volume")
