"""COCO metrics and the FROC table of a detector."""

import contextlib
import copy
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ..structures.boxes import first_pixel
from ..structures.ignore_regions import lesions_of
from ..utils.files import atomic_write, without_nan, write_json
from .coco import CocoEvaluation, ImageDetections
from .excused import boxes_in_regions
from .matching import match_images
from .predictions import gather_predictions, order_by_image
from .report import FrocReport, make_report
from .strata import Truth

logger = logging.getLogger(__name__)

#: File with an evaluation's results: task -> metric -> number, null for NaN.
RESULTS = "results.json"
#: Minimum IoU of a hit.
FROC_IOU = 0.5
#: IoU of AP10.
_LOW_IOU = 0.1


class LesionEvaluator(COCOEvaluator):
    """COCO AP and FROC sensitivities of a lesion detector.

    COCO metrics equal those of Detectron2 and pycocotools to the last digit, in a fraction of the
    time and memory: :class:`~lesion_d2.evaluation.coco.CocoEvaluation`.

    ``results["bbox"]`` has Detectron2's metrics (at most 100 detections per image, as in COCO) and
    ``AP10``, the AP at an IoU of 0.1. ``results["froc"]`` has the sensitivity in percent at 0.5 to
    16 false positives per image (``sens@4``) and their mean (``mean_sens``), from all detections,
    with 95 % bootstrap intervals over patients (``sens@4_low``, ``sens@4_high``).
    ``results["froc_size"]``, ``["froc_type"]`` and ``["froc_interval"]`` have the same by stratum
    (``under_10mm/sens@4``), see :func:`~lesion_d2.evaluation.strata.make_strata`. FROC pools all
    classes, as in the papers: any detection can find any lesion. COCO metrics are per class.

    Regions to ignore (annotations with ``iscrowd``, :mod:`lesion_d2.structures.ignore_regions`)
    never count as lesions. In the FROC, a detection that reaches no lesion and has at least half of
    its area in a region is neither a hit nor a false positive. COCO metrics require the same class
    and, in place of a half, the IoU threshold.

    Masks are evaluated, as ``results["segm"]``, if every lesion of the data set has one; masks that
    are neither evaluated nor written are ignored (``needs_masks``).

    A data set without lesions gives NaN; a model without detections gives 0.

    Files in ``output_dir``: ``results.json``, ``coco_instances_results.json``, ``froc.json`` (the
    table, the curve, and the score threshold of each rate), ``froc.csv``, ``froc.png`` and
    ``froc.pdf``. Boxes in files have the coordinates of the data set's own files
    (:func:`lesion_d2.structures.boxes.first_pixel`), masks are in pixels. With several processes,
    the first returns the results and the others ``{}``.
    """

    @configurable
    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike | None = None,
        *,
        distributed: bool = True,
        inclusive: bool = False,
        num_bootstrap: int = 1000,
        seed: int = 0,
        write_masks: bool = False,
        records: list[dict] | None = None,
    ):
        """
        Args:
            dataset_name: a data set in Detectron2's catalog. Its current dicts are the ground truth
                of all metrics; nothing is cached from an earlier evaluation.
            output_dir: folder for the files; None writes none.
            distributed: whether to gather the predictions of all processes.
            inclusive: whether boxes are whole pixels, see
                :func:`~lesion_d2.evaluation.matching.paired_overlaps`, for FROC and AP: for COCO,
                all boxes are then one pixel wider and higher.
            num_bootstrap: resamples for the intervals; 0 for none.
            seed: seed of the resamples.
            write_masks: whether to write masks, in COCO's RLE, to the file of detections even if
                they are not evaluated.
            records: the dicts to evaluate, if not all of the data set's.

        Raises:
            ValueError: the data set is empty or has a duplicate ``image_id``.
        """
        dicts = DatasetCatalog.get(dataset_name) if records is None else records
        self._truth = Truth.from_dicts(dicts, dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        has_masks = _has_masks(dicts)
        #: Whether masks of detections are evaluated or written.
        self.needs_masks = has_masks or write_masks
        with _without_json_file(metadata), tempfile.TemporaryDirectory() as folder:
            super().__init__(
                dataset_name,
                tasks=None if has_masks else ("bbox",),
                distributed=distributed,
                output_dir=folder,
                use_fast_impl=False,
                allow_cached_coco=False,
            )
        self._logger = logger
        self._dicts = {d["image_id"]: d for d in dicts}
        self._dataset_name = dataset_name
        self._folder = Path(output_dir) if output_dir is not None else None
        self._output_dir = None  # Detectron2 would write there non-atomically
        self._inclusive = inclusive
        annotations = self._coco_api.dataset.get("annotations", ())  # missing without lesions
        _fill_regions(annotations)
        if inclusive:
            _add_pixel(annotations)
        self._num_bootstrap = num_bootstrap
        self._seed = seed
        # Detectron2 skips a data set without any annotation; here it is a normal case.
        self._do_evaluation = True
        self._kpt_oks_sigmas = ()

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | os.PathLike | None = None
    ) -> dict:
        """Arguments of ``LesionEvaluator(cfg, dataset_name, output_dir)``."""
        return {
            "dataset_name": dataset_name,
            "output_dir": output_dir,
            "inclusive": cfg.TEST.INCLUSIVE_BOXES,
            "num_bootstrap": cfg.TEST.NUM_BOOTSTRAP,
            "write_masks": cfg.TEST.WRITE_MASKS,
        }

    def reset(self) -> None:
        """Discard all predictions."""
        self._predictions: list[tuple[object, ImageDetections]] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Store detections as arrays; masks that are not needed are not even moved to the CPU.

        Args:
            inputs: the model's inputs, with ``image_id``.
            outputs: the model's outputs, with ``instances``.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                found = ImageDetections.from_instances(output["instances"], masks=self.needs_masks)
                self._predictions.append((record["image_id"], found))

    def evaluate(self, img_ids: Sequence | None = None) -> dict[str, dict[str, float]]:
        """Evaluate the predictions; images without a prediction count as images without detections.

        Args:
            img_ids: the images to evaluate; all by default.

        Raises:
            ValueError: predictions or ``img_ids`` name an image that is not in the data set.
        """
        predictions = gather_predictions(self._predictions, distributed=self._distributed)
        if predictions is None:
            return {}
        truth = self._truth if img_ids is None else self._truth_of(img_ids)
        detections = self._by_image(predictions)

        self._results = OrderedDict()
        in_dataset = self._with_categories(detections)
        self._eval_coco(in_dataset, truth.image_ids)
        report = self._eval_froc(detections, truth)
        report.log()
        self._results.update(report.results())
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_detections(in_dataset)
            write_json(self._folder / RESULTS, without_nan(self._results), indent=1)
            report.write(self._folder, self._dataset_name, self._settings())
        return copy.deepcopy(self._results)

    def _truth_of(self, img_ids: Sequence) -> Truth:
        self._check_known(img_ids, "img_ids")
        return Truth.from_dicts([self._dicts[i] for i in img_ids], self._dataset_name)

    def _by_image(
        self, predictions: list[tuple[object, ImageDetections]]
    ) -> dict[object, ImageDetections]:
        """Image id -> detections, in the order of the data set."""
        self._check_known([image_id for image_id, _ in predictions], "predictions")
        return order_by_image(predictions, self._dicts, self._dataset_name)

    def _check_known(self, image_ids: Sequence, name: str) -> None:
        for image_id in image_ids:
            if image_id not in self._dicts:
                raise ValueError(
                    f"{name}: found image_id {image_id!r}, expected one of {self._dataset_name}"
                )

    def _with_categories(
        self, detections: Mapping[object, ImageDetections]
    ) -> dict[object, ImageDetections]:
        """The detections with the data set's category ids in place of classes."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            return dict(detections)
        ids = np.array([category for _, category in sorted((v, k) for k, v in mapping.items())])
        for image_id, found in detections.items():
            for category in found.categories[found.categories >= len(ids)][:1]:
                raise ValueError(
                    f"predictions of image {image_id!r}: found class {category}, expected one of "
                    f"the {len(ids)} classes of {self._dataset_name}, numbered from 0"
                )
        return {i: replace(d, categories=ids[d.categories]) for i, d in detections.items()}

    def _eval_coco(self, detections: Mapping[object, ImageDetections], img_ids: list) -> None:
        """Compute the COCO metrics.

        Args:
            detections: with ids of the data set.
            img_ids: the images that count.
        """
        tasks = self._tasks
        if tasks is None:
            has_masks = any(found.masks is not None for found in detections.values())
            tasks = ("bbox", "segm") if has_masks else ("bbox",)
        for task in tasks:
            found = detections
            if self._inclusive and task == "bbox":
                pixel = np.array([0, 0, 1, 1])
                found = {i: replace(d, boxes=d.boxes + pixel) for i, d in found.items()}
            low = [_LOW_IOU] if task == "bbox" else ()
            run = CocoEvaluation(self._coco_api, found, task, more_thresholds=low)
            run.params.imgIds = img_ids
            run.evaluate()
            run.accumulate()
            run.summarize()
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(run, task, class_names=names)

    def _derive_coco_results(
        self, coco_eval: CocoEvaluation, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if iou_type == "bbox":
            precision = coco_eval.eval["more_precision"][0, :, :, 0, -1]  # all areas
            precision = precision[precision > -1]
            results["AP10"] = 100 * float(precision.mean()) if precision.size else float("nan")
            logger.info("AP at IoU 0.1: %.3f", results["AP10"])
        return results

    def _write_detections(self, detections: Mapping[object, ImageDetections]) -> None:
        """Write the detections in COCO's results format, image by image.

        Args:
            detections: with ids of the data set.
        """
        offset = first_pixel(self._dataset_name)
        results = (found.results(i, offset) for i, found in detections.items() if len(found))
        path = self._folder / "coco_instances_results.json"
        with atomic_write(path) as partial, partial.open("w") as file:
            separator = "["
            for of_image in results:
                file.write(separator + json.dumps(of_image)[1:-1])
                separator = ", "
            file.write("]" if separator == ", " else "[]")

    def _eval_froc(self, detections: Mapping[object, ImageDetections], truth: Truth) -> FrocReport:
        nothing = ImageDetections.empty()
        found = [detections.get(image_id, nothing) for image_id in truth.image_ids]
        boxes = [each.xyxy for each in found]
        excused = [
            boxes_in_regions(*pair, inclusive=self._inclusive)
            for pair in zip(boxes, truth.regions, strict=True)
        ]
        matches = match_images(
            boxes,
            [each.scores for each in found],
            truth.boxes,
            iou_threshold=FROC_IOU,
            inclusive=self._inclusive,
            excused=excused,
        )
        return make_report(matches, truth, num_bootstrap=self._num_bootstrap, seed=self._seed)

    def _settings(self) -> dict[str, object]:
        return {
            "iou_threshold": FROC_IOU,
            "overlap": "iou",
            "inclusive": self._inclusive,
            "num_bootstrap": self._num_bootstrap,
            "bootstrap_unit": "patient",
            "seed": self._seed,
        }


def _fill_regions(annotations: Iterable[dict]) -> None:
    """Give regions to ignore without a mask their whole box as one, for the evaluation of masks."""
    for annotation in annotations:
        if annotation["iscrowd"] and "segmentation" not in annotation:
            x, y, width, height = annotation["bbox"]
            right, bottom = x + width, y + height
            annotation["segmentation"] = [[x, y, right, y, right, bottom, x, bottom]]


def _add_pixel(results: Iterable[dict]) -> None:
    """Convert COCO's boxes to whole pixels: width = x2 - x1 + 1."""
    for result in results:
        x, y, width, height = result["bbox"]
        result["bbox"] = [x, y, width + 1, height + 1]


def _has_masks(dicts: Sequence[Mapping]) -> bool:
    annotations = [a for d in dicts for a in lesions_of(d.get("annotations", ()))]
    return bool(annotations) and all("segmentation" in a for a in annotations)


@contextlib.contextmanager
def _without_json_file(metadata: Metadata) -> Iterator[None]:
    """Hide ``json_file`` temporarily.

    COCOEvaluator would use an existing file as ground truth, or convert the data set and set the
    metadata to that file permanently, so that later evaluators would use a stale file.
    """
    kept = vars(metadata).pop("json_file", None)
    try:
        yield
    finally:
        vars(metadata).pop("json_file", None)
        if kept is not None:
            vars(metadata)["json_file"] = kept
