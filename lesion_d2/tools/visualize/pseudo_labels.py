"""Pictures of the pseudo-labels of a teacher in training images, as Fig. 3 of Bai et al."""

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from lesion_d2.data.catalog import load_records
from lesion_d2.engine import LesionPredictor, load_config
from lesion_d2.engine.checks import dataset_options
from lesion_d2.modeling import select_pseudo_labels, summarize_pseudo_labels
from lesion_d2.modeling.pseudo_labels import HIT_IOU, PseudoLabelCounts, hits_any
from lesion_d2.structures.ignore_regions import lesions_of, lie_inside, region_boxes
from lesion_d2.visualization import (
    HIDDEN_LEGEND,
    PAGE_STYLES,
    PSEUDO_LABEL_LEGEND,
    LesionVisualizer,
    parse_window,
    truth_boxes,
)

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, pairwise_iou
from tqdm import tqdm

from .pictures import (
    check_output,
    names_of_pictures,
    pick_records,
    picture_name,
    remove_pictures,
    write_pictures,
)

PICKS = ("random", "most")


@dataclass
class TeacherImage:
    """A training image's Detectron2 dict and its pseudo-labels, in pixels of the slice."""

    record: dict
    pseudo_labels: Instances

    @property
    def hidden_boxes(self) -> Boxes | None:
        """Lesions with hidden annotations; None if the data set has no hidden annotations."""
        if "hidden_annotations" not in self.record:
            return None
        return Boxes(torch.from_numpy(truth_boxes(self.record, "hidden_annotations")).float())

    def title(self) -> str:
        """Name of the image, and numbers of its pseudo-labels and of hidden lesions among them."""
        number = len(self.pseudo_labels)
        text = f"{self.record['image_id']}\n{number} pseudo-label{'' if number == 1 else 's'}"
        if self.hidden_boxes is None:
            return text
        ious = pairwise_iou(self.pseudo_labels.pred_boxes, self.hidden_boxes)
        return f"{text}, {int((ious >= HIT_IOU).any(dim=1).sum())} of them hidden lesions"


def draw_pseudo_labels(args: argparse.Namespace) -> list[str]:
    """Write pictures of images with pseudo-labels; return their paths, the contact sheet last."""
    window = parse_window(args.window)
    cfg = teacher_config(args)
    dataset = cfg.DATASETS.TRAIN[0]
    records = load_records(dataset, dataset_options(cfg, dataset, "TRAIN"))
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "pseudo_labels", dataset)
    check_output(output, records, dataset)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = [record for record in records if lesions_of(record["annotations"])]
    order = pick_records(records, "random", len(records), seed=args.seed)
    counts = PseudoLabelCounts()
    images = generate_pseudo_labels(cfg, order, counts)
    chosen = pick_images(images, args.pick, args.num)
    print(_summary(counts, len(records)))
    if not chosen:
        raise ValueError(
            f"MODEL.MEAN_TEACHER.SCORE_THRESH: found {cfg.MODEL.MEAN_TEACHER.SCORE_THRESH}, "
            f"expected a lower score, because no unannotated detection in {dataset} reaches it"
        )
    drawings = [(picture_name(image.record), image.title(), image) for image in chosen]

    def draw(visualizer: LesionVisualizer, image: TeacherImage) -> None:
        """Draw the lesions, pseudo-labels and hidden lesions of one image."""
        visualizer.draw_pseudo_labels(image.record, image.pseudo_labels)

    legend = PSEUDO_LABEL_LEGEND + (HIDDEN_LEGEND if chosen[0].hidden_boxes is not None else [])
    remove_pictures(output, names_of_pictures(records))
    style = PAGE_STYLES[args.style]
    return write_pictures(dataset, window, drawings, draw, output, legend, style=style)


def teacher_config(args: argparse.Namespace) -> CfgNode:
    """The config of a run, with the changes of the command line.

    Args:
        args: with ``config_file``, ``opts``, ``allow_missing``, and ``dataset``, ``weights`` and
            ``score_threshold``, which may be None.

    Raises:
        InputError: as :func:`load_config`.
        ValueError: no weights or no data set are given.
    """
    cfg = load_config(args)
    cfg.MODEL.WEIGHTS = args.weights or cfg.MODEL.WEIGHTS
    if args.score_threshold is not None:
        cfg.MODEL.MEAN_TEACHER.SCORE_THRESH = args.score_threshold
    if not (cfg.MODEL.WEIGHTS or cfg.TEST.ENSEMBLE.CHECKPOINTS):
        raise ValueError("--weights: found none, expected a checkpoint's path, or MODEL.WEIGHTS")
    cfg.DATASETS.ALLOW_MISSING = cfg.DATASETS.ALLOW_MISSING or args.allow_missing
    cfg.DATASETS.TRAIN = (args.dataset,) if args.dataset else cfg.DATASETS.TRAIN
    if not cfg.DATASETS.TRAIN:
        raise ValueError("--dataset: found none, expected a name, or DATASETS.TRAIN in the config")
    return cfg


def generate_pseudo_labels(
    cfg: CfgNode, records: Sequence[dict], counts: PseudoLabelCounts
) -> Iterator[TeacherImage]:
    """Generate the pseudo-labels of images, as a teacher with the config's weights does.

    Args:
        cfg: of the run; see :class:`LesionPredictor`.
        records: the images' Detectron2 dicts.
        counts: updated with each image that is yielded.
    """
    predictor, options = LesionPredictor(cfg), cfg.MODEL.MEAN_TEACHER
    for record in tqdm(records, desc="images", disable=None):
        found = predictor(record)["instances"].to("cpu")
        if "volume_boxes" in record:
            found = found[hits_any(found.pred_boxes, record["volume_boxes"])]
        detections = Instances(found.image_size, pred_boxes=found.pred_boxes, scores=found.scores)
        pseudo_labels = select_pseudo_labels(
            detections,
            Boxes(torch.from_numpy(truth_boxes(record)).float()),
            score_threshold=options.SCORE_THRESH,
            gt_nms_threshold=options.GT_NMS_THRESH,
        )
        regions = Boxes(torch.from_numpy(region_boxes(record)).float())
        pseudo_labels = pseudo_labels[~lie_inside(pseudo_labels.pred_boxes, regions)]
        image = TeacherImage(record, pseudo_labels)
        counts.add(pseudo_labels, image.hidden_boxes)
        yield image


def pick_images(images: Iterable[TeacherImage], pick: str, num: int) -> list[TeacherImage]:
    """Choose images with pseudo-labels.

    Args:
        images: in random order.
        pick: "random" takes the first ones and reads no more of ``images``; "most" takes those with
            the most pseudo-labels, and of as many, the highest sum of scores.
        num: maximum number of images.
    """
    labeled = (image for image in images if len(image.pseudo_labels))
    if pick == "random":
        return list(islice(labeled, num))
    return sorted(
        labeled, key=lambda i: (-len(i.pseudo_labels), -float(i.pseudo_labels.scores.sum()))
    )[:num]


def _summary(counts: PseudoLabelCounts, num_images: int) -> str:
    text = f"{counts['pseudo_labels']} pseudo-labels in {counts['images']} of {num_images} images"
    shares = summarize_pseudo_labels(counts)
    names = {"mean_score": "mean score {:.2f}", "precision": "precision {:.1%}"}
    names["recall"] = "recall of hidden lesions {:.1%}"
    return "; ".join([text, *(t.format(shares[n]) for n, t in names.items() if n in shares)])
