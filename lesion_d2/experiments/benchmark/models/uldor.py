"""Benchmark of ULDor against Mask R-CNN, and of mining against plain inference."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from lesion_d2.data.loader import build_lesion_test_loader
from lesion_d2.engine.hard_negatives import HardNegativeMiner

import torch
from detectron2.config import CfgNode
from torch import nn

from .. import configs
from ..configs import as_mask_rcnn, load_config, with_all_proposals, with_most_negatives
from ..inputs import FEW, LARGE, prepare_phantom, random_batch, registered
from ..timing import Row, paired_ratio, time_calls
from .running import WARM_UP, build_for_device, training_step


def measure_uldor(device: str, folder: Path, *, repeats: int = 9) -> Iterator[Row]:
    """A training step of ULDor against Mask R-CNN, and its mining against plain inference."""
    file = configs.ULDOR_GPU_CONFIG if device == "cuda" else configs.ULDOR_CPU_CONFIG
    cfg = load_config(file, device)
    model = build_for_device(with_all_proposals(cfg))
    yield _compare_steps(cfg, model, file.stem, repeats)
    root = prepare_phantom(folder, **(LARGE if device == "cuda" else FEW))
    with registered(root) as name:
        yield _compare_mining(cfg, model, name, repeats)


def _compare_steps(cfg: CfgNode, model: nn.Module, title: str, repeats: int) -> Row:
    """One of an image's two instances is a hard negative for ULDor, a lesion for Mask R-CNN."""
    batch, plain_batch = random_batch(cfg), random_batch(cfg)
    for sample in batch:
        sample["instances"].gt_classes[1] = cfg.MODEL.ROI_HEADS.NUM_CLASSES - 1
    rcnn = build_for_device(as_mask_rcnn(cfg))
    steps = [training_step(model, batch), training_step(rcnn, plain_batch)]
    device = cfg.MODEL.DEVICE
    ours, theirs = time_calls(steps, repeats=repeats, warm_up=WARM_UP, device=device)
    size = " x ".join(map(str, batch[0]["image"].shape))
    note = f"{len(batch)} images of {size}, {title}"
    return paired_ratio(f"ULDor / Mask R-CNN, {device}: training step", ours, theirs, note)


def _compare_mining(cfg: CfgNode, model: nn.Module, name: str, repeats: int) -> Row:
    """With the maximum number of detections and negatives."""
    cfg = with_most_negatives(cfg)
    # An untrained model classifies half of its regions as false positives.
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = 10.0
    cfg.DATASETS.TRAIN = (name,)
    # Without workers, which would hide work of the miner's loader, and take time to start.
    cfg.DATALOADER.NUM_WORKERS = 0
    miner, device = HardNegativeMiner(cfg), cfg.MODEL.DEVICE
    counts, number = [], []
    mine = _keep(lambda: sum(map(len, miner.mine(model, 0).by_image.values())), number)
    plain = _keep(partial(infer_all, model, build_lesion_test_loader(cfg, name)), counts)
    mining, inference = time_calls([mine, plain], repeats=repeats, device=device)
    note = (
        f"{len(counts[0])} images, at least {min(counts[0])} detections per image, {number[0]} "
        "hard negatives, loading in the same process"
    )
    return paired_ratio(f"mining / inference, {device}", mining, inference, note, limit=1.1)


def _keep(call: Callable, results: list) -> Callable[[], None]:
    """The same call, which appends its result to a list."""
    return lambda: results.append(call())


def infer_all(model: nn.Module, loader: Iterable[list[dict]]) -> list[int]:
    """Inference on a data set as in Detectron2's evaluation; returns the numbers of detections."""
    model.eval()
    with torch.no_grad():
        return [len(output["instances"]) for batch in loader for output in model(batch)]
