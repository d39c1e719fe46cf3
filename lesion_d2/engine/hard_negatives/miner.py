"""Finding the hard negatives of training images with the current detector."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.evaluation import inference_context
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from pycocotools import mask as mask_util
from torch import Tensor, nn
from tqdm import tqdm

from ...data.catalog import load_records
from ...data.dataset_options import DatasetOptions, read_dataset
from ...data.loader import build_lesion_test_loader
from ...modeling.pseudo_labels import best_box_ious
from ...structures.boxes import xyxy_box
from ...structures.ignore_regions import lesions_of, lie_inside, region_boxes
from ...structures.rle import encode_mask
from .results import MinedSet
from .selection import best_mask_ious, select_hard_negatives


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
            """The dicts of a data set that training uses."""
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


def _is_example(annotation: dict) -> bool:
    """Whether an annotation is usable: non-empty mask, and a box of at least one pixel."""
    x1, y1, x2, y2 = annotation["bbox"]
    has_pixels = "segmentation" not in annotation or mask_util.area(annotation["segmentation"]) > 0
    return has_pixels and min(x2 - x1, y2 - y1) >= 1
