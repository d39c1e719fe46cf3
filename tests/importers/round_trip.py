"""What every imported data set has to do: train a step, and evaluate perfectly on its own truth."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import VolumeSet, read_volume_set
from lesion_d2.engine import Trainer
from lesion_d2.engine.checks import check_inputs
from lesion_d2.evaluation import LesionEvaluator, VolumeEvaluator
from lesion_d2.importers import Listing
from lesion_d2.structures.boxes import annotation_boxes

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_util
from tiny_run import tiny_args, tiny_config


def check_trains_and_evaluates(root: Path, tmp_path: Path) -> VolumeSet:
    """Train one step of a tiny model on a data set, and evaluate its truth as detections.

    Args:
        root: of a data set with a lesion.
        tmp_path: for files.

    Returns:
        The data set, for what else a test looks at.
    """
    volume_set = read_volume_set(root)
    with registered(root):
        _check_trains(root.name, len(volume_set.classes), tmp_path / "trained")
        _check_slices(root.name, tmp_path / "slices")
        _check_volumes(f"{root.name}_volumes", tmp_path / "volumes")
    return volume_set


@contextmanager
def registered(root: Path) -> Iterator[None]:
    """The names of a data set are known in the block, so that others may have them after it."""
    names = register_volume_set(root)
    try:
        yield
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _check_trains(name: str, num_classes: int, output: Path) -> None:
    options = {
        "DATASETS__TRAIN": (name,),
        "DATASETS__TEST": (name,),
        "MODEL__RETINANET__NUM_CLASSES": num_classes,
        "INPUT__CT__SLICE_INTERVAL": 0.0,
        "SOLVER__IMS_PER_BATCH": 2,
    }
    cfg = tiny_config(OUTPUT_DIR=output, **options)
    assert check_inputs(cfg, tiny_args(output, **options)) > 0
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with EventStorage():
        losses = model(next(iter(Trainer.build_train_loader(cfg))))
    total = sum(losses.values())
    assert torch.isfinite(total) and total > 0, losses
    total.backward()
    optimizer.step()
    assert any((a != b).any() for a, b in zip(before, model.parameters(), strict=True))


def _check_slices(name: str, folder: Path) -> None:
    evaluator = LesionEvaluator(name, folder, num_bootstrap=0)
    results = _evaluate_truth(evaluator, DatasetCatalog.get(name))
    assert results["bbox"]["AP"] == results["bbox"]["AP10"] == 100, results["bbox"]
    if "segm" in results:
        assert results["segm"]["AP"] == 100, results["segm"]
    _check_froc(results["froc"], folder / "froc.json")


def _check_volumes(name: str, folder: Path) -> None:
    evaluator = VolumeEvaluator(name, folder, link=_LinkByScore())
    results = _evaluate_truth(evaluator, DatasetCatalog.get(name))
    assert results["volume"]["AP10"] == 100, results["volume"]
    patient_ap = results["volume"]["patient_AP"]
    assert patient_ap == 100 or np.isnan(patient_ap)  # all patients have each class
    _check_froc(results["volume"], folder / "volumes.json")


def _check_froc(numbers: dict, file: Path) -> None:
    """100 % sensitivity, and no false positive with all detections."""
    sensitivities = [value for name, value in numbers.items() if "sens" in name]
    assert sensitivities and set(sensitivities) == {100.0}, numbers
    assert json.loads(file.read_text())["operating_points"]["last_rate"] == 0


def _evaluate_truth(evaluator: LesionEvaluator | VolumeEvaluator, dicts: list[dict]) -> dict:
    evaluator.reset()
    for record in dicts:
        evaluator.process([record], [{"instances": _truth_as_detections(record)}])
    return evaluator.evaluate()


def _truth_as_detections(record: dict) -> Instances:
    """The lesions of a slice, each with a score of its own, the same on all of its slices."""
    lesions = [a for a in record["annotations"] if not a.get("iscrowd")]
    size = record["height"], record["width"]
    instances = Instances(size)
    boxes = annotation_boxes(lesions)
    instances.pred_boxes = Boxes(torch.as_tensor(boxes))
    scores = [1 / (1 + a["lesion_id"]) for a in lesions]
    instances.scores = torch.tensor(scores, dtype=torch.float64)
    instances.pred_classes = torch.tensor([a["category_id"] for a in lesions], dtype=torch.int64)
    masks = [mask_util.decode(a["segmentation"]) for a in lesions if "segmentation" in a]
    if len(masks) == len(lesions):
        stacked = np.array(masks, bool).reshape(-1, *size)
        instances.pred_masks = torch.as_tensor(stacked)
    return instances


class _LinkByScore:
    """Boxes of one score are one lesion: what a linker of boxes does is not what is tested here."""

    name, parameters = "score", MappingProxyType({})

    def __call__(self, boxes, scores, slice_ids, classes):
        found, tracklets = np.unique(scores, return_inverse=True)
        linked = np.zeros((len(found), 6))
        for k in range(len(found)):
            own = tracklets == k
            linked[k, :3] = [*boxes[own, :2].min(axis=0), slice_ids[own].min()]
            linked[k, 3:] = [*boxes[own, 2:].max(axis=0), slice_ids[own].max()]
        kinds = np.array([classes[tracklets == k][0] for k in range(len(found))])
        return linked, found, kinds, tracklets


def damaged_lines(listing: Listing) -> list[str]:
    """What is wrong with the cases of a listing, those that turn out to be bad when read too."""
    lines = list(listing.damaged)
    for case in listing.cases:
        try:
            case.read()
        except ValueError as error:
            lines.append(str(error))
    return lines
