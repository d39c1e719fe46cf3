"""Hard negative example mining (Tang et al., section 2.2)."""

import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools import mask as mask_util
from torch import Tensor, nn
from tqdm import tqdm

from ..data.catalog import load_records
from ..data.dataset_options import DatasetOptions, read_dataset
from ..data.loader import build_lesion_test_loader
from ..modeling.pseudo_labels import best_box_ious
from ..structures.boxes import first_pixel, moved_xywh, xyxy_box
from ..structures.ignore_regions import lesions_of, lie_inside, region_boxes
from ..structures.rle import check_mask, encode_mask
from ..utils.errors import InputError, short_repr
from ..utils.files import write_json
from ..utils.values import are_numbers, field_problems, is_number, is_whole
from .checkpoint_files.checkpointer import LesionCheckpointer
from .processes import share_running_statistics
from .resuming import ProcessStateHook

logger = logging.getLogger(__name__)

#: File name of a data set's hard negatives, in ``OUTPUT_DIR/inference/<data set>``.
FILE_NAME = "hard_negatives.json"

# Keys of an entry by kind of model: the mask and S2, or S2 of boxes.
_MASK_OR_BOX = ("segmentation", "mask_iou", "box_iou")


def select_hard_negatives(
    scores: np.ndarray,
    mask_ious: np.ndarray,
    *,
    max_negatives: int = 3,
    good_iou: float = 0.3,
    min_score: float = 0.7,
    rng: np.random.Generator,
) -> np.ndarray:
    """Select the hard negatives among one image's detections (Tang et al., section 2.2).

    Let i be the highest-scored detection with a mask IoU above ``good_iou``, a good detection. If
    there is one, E contains the detections with a higher score than i; otherwise those with a score
    above ``min_score``. m = min(``max_negatives``, size of E) detections are sampled from E.

    Args:
        scores: (n,) S1, the lesion probability, in any order.
        mask_ious: (n,) S2, the highest mask IoU with any of the image's pseudo-masks; for models
            without masks, and for other lesions of a volume, the highest box IoU.
        max_negatives: upper limit of m; 3 in the paper.
        good_iou, min_score: 0.3 and 0.7 in the paper.
        rng: random generator.

    Returns:
        (m,) indices, ascending.
    """
    scores, mask_ious = np.asarray(scores), np.asarray(mask_ious)
    is_good = mask_ious > good_iou
    bound = scores[is_good].max() if is_good.any() else min_score
    candidates = np.flatnonzero(scores > bound)
    count = min(max_negatives, len(candidates))
    return np.sort(rng.choice(candidates, count, replace=False))


def best_mask_ious(masks: Tensor, true_masks: Tensor) -> Tensor:
    """Compute the highest IoU of each mask with any of the true masks.

    Args:
        masks: (n, H, W) bool.
        true_masks: (m, H, W) bool; on the CPU, to avoid GPU synchronization.

    Returns:
        (n,) float32; 0 if m is 0 or a mask is empty.
    """
    best = torch.zeros(len(masks), device=masks.device)
    rows, columns = (true_masks.any(dim=0).any(dim=d).nonzero().flatten() for d in (1, 0))
    if len(masks) == 0 or len(rows) == 0:
        return best
    # Most detections do not overlap a lesion: whole masks are only counted for those that do.
    top, bottom, left, right = (int(v) for axis in (rows, columns) for v in (axis[0], axis[-1] + 1))
    true = true_masks[:, top:bottom, left:right].flatten(1).to(masks.device).float()
    intersections = masks[:, top:bottom, left:right].flatten(1).float() @ true.T
    touching = intersections.any(dim=1).nonzero().flatten()
    areas = masks[touching].flatten(1).sum(dim=1)
    unions = areas[:, None] + true.sum(dim=1) - intersections[touching]
    best[touching] = (intersections[touching] / unions).amax(dim=1)
    return best


def read_lesion_boxes(
    dataset: str, read: Callable[[str], list[dict]] = load_records
) -> dict[str, list]:
    """Read the lesion boxes of a registered data set that hard negatives must not overlap.

    These are the annotated boxes of the image and, for slices of volumes, the boxes of all lesions
    of the volume (``volume_boxes``): annotations may end before the lesion does, and a detection on
    the next slice is not a false positive. Regions to ignore are not included.

    Args:
        dataset: its name in ``DatasetCatalog``.
        read: gives its dicts from its name; by default all of them.

    Returns:
        ``image_id`` -> XYXY boxes in pixels of the slice.
    """
    boxes = {}
    for image in read(dataset):
        boxes[image["image_id"]] = image.get("volume_boxes") or [
            xyxy_box(a) for a in lesions_of(image["annotations"])
        ]
    return boxes


def read_region_boxes(
    dataset: str, read: Callable[[str], list[dict]] = load_records
) -> dict[str, Boxes]:
    """Read the regions to ignore of a registered data set, which are excluded from mining.

    Args:
        dataset, read: see :func:`read_lesion_boxes`.

    Returns:
        ``image_id`` -> boxes in pixels of the slice, for images that have any.
    """
    boxes = {image["image_id"]: region_boxes(image) for image in read(dataset)}
    return {
        name: Boxes(torch.from_numpy(regions).float())
        for name, regions in boxes.items()
        if len(regions)
    }


@dataclass
class MinedSet:
    """Hard negatives of images, and statistics of the mining.

    Attributes:
        negatives: data set -> ``image_id`` -> annotations, for images that have any.
        num_images: number of processed images.
        num_good: number of images with a good detection.
    """

    negatives: dict[str, dict[str, list[dict]]] = field(default_factory=dict)
    num_images: int = 0
    num_good: int = 0

    @property
    def by_image(self) -> dict[str, list[dict]]:
        """Return ``image_id`` -> annotations for all data sets."""
        return {name: found for images in self.negatives.values() for name, found in images.items()}

    def add(self, other: "MinedSet") -> None:
        """Add the result of another process."""
        for dataset, images in other.negatives.items():
            self.negatives.setdefault(dataset, {}).update(images)
        self.num_images += other.num_images
        self.num_good += other.num_good


class HardNegativeMiner:
    """Finds the hard negatives of training images with the current detector.

    The random selection depends only on the seed, the iteration and the image's id, not on other
    images: the result is the same for any number of processes.

    Args:
        datasets: names of the training sets.
        build_loader: builds a data set's loader from its name: batches of this process's share of
            the images, preprocessed as at inference, with ``lesion_masks`` if ``read_boxes`` is
            None, and ``volume_boxes`` if the data set has them.
        read_boxes: for a model without masks, returns a data set's lesion boxes from its name, as
            :func:`read_lesion_boxes`: S2 is then the box IoU. With masks it is None, and S2 is the
            mask IoU; on slices of volumes, the box IoU with ``volume_boxes`` if it is higher, as
            lesions may not be annotated on all of their slices.
        read_regions: returns a data set's regions to ignore from its name, as
            :func:`read_region_boxes`; detections in them are excluded unless they are good ones.
            None for no regions.
        false_positive_class: class of the hard negatives; detections never have it.
        max_negatives, good_iou, min_score: see :func:`select_hard_negatives`.
        seed: random seed of the selection.
    """

    @configurable
    def __init__(
        self,
        *,
        datasets: Sequence[str],
        build_loader: Callable[[str], Iterable[list[dict]]],
        read_boxes: Callable[[str], Mapping[str, Sequence]] | None = None,
        read_regions: Callable[[str], Mapping[str, Boxes]] | None = None,
        false_positive_class: int = 1,
        max_negatives: int = 3,
        good_iou: float = 0.3,
        min_score: float = 0.7,
        seed: int = 0,
    ):
        self._datasets = list(datasets)
        self._build_loader = build_loader
        self._loaders: dict[str, Iterable[list[dict]]] = {}
        self._read_boxes = read_boxes
        self._boxes: dict[str, Mapping[str, Sequence]] = {}
        self._read_regions = read_regions
        self._regions: dict[str, Mapping[str, Boxes]] = {}
        self._false_positive_class = false_positive_class
        self._select = partial(
            select_hard_negatives,
            max_negatives=max_negatives,
            good_iou=good_iou,
            min_score=min_score,
        )
        self._good_iou = good_iou
        self._seed = seed

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``HardNegativeMiner(cfg)``."""

        def read(name: str) -> list[dict]:
            """What the training sees of a data set."""
            return read_dataset(name, DatasetOptions.from_config(cfg, name, "TRAIN"))

        return {
            "datasets": cfg.HARD_NEGATIVES.DATASETS or cfg.DATASETS.TRAIN,
            "build_loader": partial(
                build_lesion_test_loader,
                cfg,
                with_masks=cfg.MODEL.MASK_ON,
                filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                kind="TRAIN",
            ),
            "read_boxes": None if cfg.MODEL.MASK_ON else partial(read_lesion_boxes, read=read),
            "read_regions": partial(read_region_boxes, read=read),
            "false_positive_class": cfg.MODEL.ROI_HEADS.NUM_CLASSES - 1,
            "max_negatives": cfg.HARD_NEGATIVES.MAX_PER_IMAGE,
            "good_iou": cfg.HARD_NEGATIVES.POSITIVE_IOU_THRESH,
            "min_score": cfg.HARD_NEGATIVES.MIN_SCORE,
            "seed": max(cfg.SEED, 0),
        }

    def loaders(self) -> dict[str, Iterable[list[dict]]]:
        """Data set -> loader; created on first use."""
        if not self._loaders:
            self._loaders = {name: self._build_loader(name) for name in self._datasets}
            if self._read_boxes is not None:
                self._boxes = {name: self._read_boxes(name) for name in self._datasets}
            if self._read_regions is not None:
                self._regions = {name: self._read_regions(name) for name in self._datasets}
        return self._loaders

    def mine(self, model: nn.Module, iteration: int) -> MinedSet:
        """Mine this process's share of the images.

        Args:
            model: a detector, with ``pred_masks`` if ``read_boxes`` is None; its mode is restored.
            iteration: training iteration, part of the random seed.
        """
        mined = MinedSet()
        with inference_context(model), torch.no_grad():
            for dataset, loader in self.loaders().items():
                images = mined.negatives[dataset] = {}
                bar = tqdm(
                    loader,
                    desc=f"hard negatives of {dataset}",
                    unit="image",
                    disable=not comm.is_main_process(),
                )
                for batch in bar:
                    for sample, output in zip(batch, model(batch), strict=True):
                        instances = output["instances"]
                        ious = self._lesion_ious(dataset, sample, instances)
                        instances, ious = self._outside(dataset, sample, instances, ious)
                        found = self._mine_image(
                            sample, instances, ious.cpu().numpy(), iteration, mined
                        )
                        if found:
                            images[sample["image_id"]] = found
        return mined

    def _outside(
        self, dataset: str, sample: dict, instances: Instances, ious: Tensor
    ) -> tuple[Instances, Tensor]:
        """An image's detections and their S2, without non-lesions in regions to ignore."""
        regions = self._regions.get(dataset, {}).get(sample["image_id"])
        if regions is None:
            return instances, ious
        inside = lie_inside(instances.pred_boxes, regions.to(instances.pred_boxes.device))
        kept = ~inside | (ious > self._good_iou)
        return instances[kept], ious[kept]

    def _lesion_ious(self, dataset: str, sample: dict, instances: Instances) -> Tensor:
        """Compute S2 of an image's n detections, (n,)."""
        boxes = instances.pred_boxes.tensor
        if self._read_boxes is not None:
            true_boxes = self._boxes[dataset][sample["image_id"]]
            return best_box_ious(boxes, boxes.new_tensor(true_boxes).reshape(-1, 4))
        ious = best_mask_ious(instances.pred_masks, sample["lesion_masks"])
        if "volume_boxes" in sample:  # lesions without a mask on this slice
            volume_boxes = boxes.new_tensor(sample["volume_boxes"]).reshape(-1, 4)
            ious = torch.maximum(ious, best_box_ious(boxes, volume_boxes))
        return ious

    def _mine_image(
        self, sample: dict, instances: Instances, ious: np.ndarray, iteration: int, mined: MinedSet
    ) -> list[dict]:
        mined.num_images += 1
        mined.num_good += bool((ious > self._good_iou).any())
        image = zlib.crc32(str(sample["image_id"]).encode())
        rng = np.random.default_rng([self._seed, iteration, image])
        chosen = self._select(instances.scores.cpu().numpy(), ious, rng=rng)
        annotations = [self._annotation(instances[int(i)], float(ious[i])) for i in chosen]
        return [a for a in annotations if _is_example(a)]

    def _annotation(self, instance: Instances, iou: float) -> dict:
        annotation = {
            "bbox": instance.pred_boxes.tensor[0].tolist(),
            "category_id": self._false_positive_class,
            "score": float(instance.scores[0]),
        }
        if self._read_boxes is not None:
            return {**annotation, "box_iou": iou}
        rle = encode_mask(instance.pred_masks[0].cpu().numpy())
        return {**annotation, "segmentation": rle, "mask_iou": iou}


def _xywh(box: Sequence[float]) -> list[float]:
    return BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def _is_example(annotation: dict) -> bool:
    """Whether an annotation is usable: non-empty mask, and a box of at least one pixel."""
    x1, y1, x2, y2 = annotation["bbox"]
    has_pixels = "segmentation" not in annotation or mask_util.area(annotation["segmentation"]) > 0
    return has_pixels and min(x2 - x1, y2 - y1) >= 1


_STATE_FIELDS = {
    "mined_at": (is_whole, "an iteration"),
    "negatives": (lambda value: isinstance(value, dict), "annotations by images"),
}
_NEGATIVE_FIELDS = {
    "bbox": (
        lambda box: are_numbers(box, 4) and box[0] < box[2] and box[1] < box[3],
        "x1 < x2, y1 < y2",
    ),
    "category_id": (lambda value: is_whole(value) and value >= 0, "a whole number from 0"),
    "score": (is_number, "a number"),
}


def _negative_problems(annotations: object) -> Iterator[str]:
    """The errors in an image's hard negatives, except the size of masks."""
    if not isinstance(annotations, list):
        yield f"found {short_repr(annotations)}, expected a list of annotations"
        return
    for annotation in annotations:
        yield from field_problems(annotation, _NEGATIVE_FIELDS)
        if "segmentation" in annotation:
            try:
                check_mask(annotation["segmentation"])
            except ValueError as error:
                yield f"segmentation: {error}"


class HardNegativeMiningHook(HookBase):
    """Mines hard negatives between epochs; training continues with them as a separate class.

    The new set replaces the previous one. After each mining, the training loader restarts with
    workers that have the new set, and continues in the order of images. The set is saved in
    checkpoints: a checkpoint that was already written in the same iteration is written again.
    ``OUTPUT_DIR/inference/<data set>/hard_negatives.json`` has the set in COCO's results format,
    with S2 as ``mask_iou``, or ``box_iou`` for models without masks, and boxes in the coordinates
    of the data set's files (:func:`lesion_d2.structures.boxes.first_pixel`);
    ``lesion_d2.tools.visualize negatives`` draws it.

    Args:
        period: iterations between two minings; there is none after the last iteration.
        start_iter: first iteration at which to mine.
        miner: finds the hard negatives.
        checkpointer: checkpointer of the run.
        states: saves the state of the processes after mining.
    """

    def __init__(
        self,
        period: int,
        *,
        start_iter: int = 0,
        miner: HardNegativeMiner,
        checkpointer: LesionCheckpointer,
        states: ProcessStateHook | None = None,
    ):
        self._period = period
        self._states = states
        self._start_iter = start_iter
        self._miner = miner
        self._checkpointer = checkpointer
        self._mined_at = -1
        self._negatives: Mapping[str, list[dict]] = {}

    def state_dict(self) -> dict:
        """The current set, and the iteration after which it was mined."""
        return {"mined_at": self._mined_at, "negatives": self._negatives}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue with the set of a checkpoint.

        Raises:
            InputError: it is invalid; the message contains the image and the key.
        """
        for text in field_problems(state_dict, _STATE_FIELDS):
            raise InputError(f"hard negatives of the checkpoint: {text}")
        for image_id, annotations in state_dict["negatives"].items():
            for text in _negative_problems(annotations):
                where = f"hard negatives of the checkpoint, image {short_repr(image_id)}"
                raise InputError(f"{where}: {text}")
        self._mined_at = state_dict["mined_at"]
        self._negatives = state_dict["negatives"]

    def before_train(self) -> None:
        """Pass the set of a checkpoint to the loader; fail early if mining cannot work."""
        self._miner.loaders()
        if self._mined_at >= 0:
            self.trainer.restart_loader(self.trainer.start_iter, self._negatives)

    def after_step(self) -> None:
        """Mine every ``period`` iterations."""
        iteration, next_iter = self.trainer.iter, self.trainer.iter + 1
        if (
            next_iter % self._period == 0
            and self._start_iter <= next_iter < self.trainer.max_iter
            and self._mined_at < iteration
        ):
            self._mine(iteration)

    def _mine(self, iteration: int) -> None:
        start = time.perf_counter()
        share_running_statistics(self.trainer.model)
        mined = MinedSet()
        for share in comm.all_gather(self._miner.mine(self.trainer.model, iteration)):
            mined.add(share)
        self._mined_at, self._negatives = iteration, mined.by_image
        self.trainer.restart_loader(iteration + 1, self._negatives)
        self._report(mined, time.perf_counter() - start)
        if comm.is_main_process():
            self._write(mined)
        if self._states is not None:
            self._states.keep("after")
        name = f"model_{iteration:07d}"
        if self._checkpointer.has_checkpoint() and (
            Path(self._checkpointer.get_checkpoint_file()).stem == name
        ):
            self._checkpointer.save(name, iteration=iteration)

    def _report(self, mined: MinedSet, seconds: float) -> None:
        num_negatives = sum(map(len, self._negatives.values()))
        share = mined.num_good / mined.num_images
        self.trainer.storage.put_scalars(
            **{
                "hard_negatives/number": num_negatives,
                "hard_negatives/good_images": share,
                "hard_negatives/seconds": seconds,
            },
            smoothing_hint=False,
        )
        logger.info(
            f"Mined {num_negatives} hard negatives on {len(self._negatives)} of {mined.num_images} "
            f"images; {100 * share:.1f} % of the images have a good detection; {seconds:.1f} s"
        )

    def _write(self, mined: MinedSet) -> None:
        for dataset, images in mined.negatives.items():
            offset = first_pixel(dataset)
            results = [
                {
                    "image_id": image_id,
                    "category_id": annotation["category_id"],
                    "bbox": moved_xywh(_xywh(annotation["bbox"]), offset),
                    "score": annotation["score"],
                    **{key: annotation[key] for key in _MASK_OR_BOX if key in annotation},
                }
                for image_id, annotations in images.items()
                for annotation in annotations
            ]
            folder = Path(self._checkpointer.save_dir, "inference", dataset)
            os.makedirs(folder, exist_ok=True)
            write_json(folder / FILE_NAME, results)
