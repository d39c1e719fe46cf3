"""Benchmark of our detectors and box operations against torchvision, Detectron2 and MONAI."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

from lesion_d2.layers import nms_3d
from lesion_d2.layers.box_overlaps import box_iou

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from .. import configs
from ..configs import as_retinanet, load_config, with_all_candidates, with_output
from ..inputs import random_batch, random_volume_boxes
from ..timing import Row, one_thread, paired_ratio, time_calls
from .running import WARM_UP, build_for_device, time_inferences, time_steps

_SIZES = {"cpu": 256, "cuda": 512}  # of images, pixels
_NUM_BOXES, _THRESHOLD = 1000, 0.5


def measure_peers(device: str, *, repeats: int = 5) -> Iterator[Row]:
    """Training steps and inference of RetinaNets with a ResNet-50, and MONAI's box operations.

    The three RetinaNets have levels P2 to P6 and the same anchors; torchvision's batch norm is
    frozen, like Detectron2's. On a CPU with one thread.
    """
    with one_thread() if device == "cpu" else contextlib.nullcontext():
        yield from _compare_detectors(device, repeats)
        if find_spec("monai") is not None:
            yield from _compare_boxes(device, repeats)


def _compare_detectors(device: str, repeats: int) -> Iterator[Row]:
    cfg = with_all_candidates(load_config(configs.GPU_CONFIG, device))
    cfg.INPUT.CT.IMAGE_SIZE, cfg.SOLVER.IMS_PER_BATCH = _SIZES[device], 2
    batch = random_batch(cfg)
    models = [build_for_device(c) for c in (with_output(cfg), as_retinanet(cfg))]
    models.append(TorchvisionRetinaNet(cfg).to(device))
    size = " x ".join(map(str, batch[0]["image"].shape))
    for work, run, number in (
        ("training step", time_steps, len(batch)),
        ("inference", time_inferences, 1),
    ):
        ours, theirs, peer = run(models, batch, repeats=repeats)
        note = f"{number} images of {size}, ResNet-50, P2 to P6"
        name = f"torchvision's RetinaNet, {device}: {work}"
        yield paired_ratio(f"RetinaUNet / {name}", ours, peer, note)
        yield paired_ratio(f"Detectron2's RetinaNet / {name}", theirs, peer, note)


class TorchvisionRetinaNet(nn.Module):
    """torchvision's RetinaNet with the interface of Detectron2's models.

    Args:
        cfg: of a RetinaNet on P2 to P6, the last of them by pooling.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
        ratios = tuple(tuple(row) for row in ratios) * (len(sizes) if len(ratios) == 1 else 1)
        options = cfg.MODEL.RETINANET
        self.detector = RetinaNet(
            resnet_fpn_backbone(
                backbone_name=f"resnet{cfg.MODEL.RESNETS.DEPTH}",
                weights=None,
                trainable_layers=5,
                returned_layers=[1, 2, 3, 4],
            ),
            num_classes=options.NUM_CLASSES,
            anchor_generator=AnchorGenerator(tuple(map(tuple, sizes)), ratios),
            min_size=cfg.INPUT.CT.IMAGE_SIZE,
            max_size=cfg.INPUT.CT.IMAGE_SIZE,
            score_thresh=options.SCORE_THRESH_TEST,
            nms_thresh=options.NMS_THRESH_TEST,
            topk_candidates=options.TOPK_CANDIDATES_TEST,
            detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training; otherwise boxes of each image."""
        images = [sample["image"].to(self.device) / 255 for sample in batch]
        if not self.training:
            return [{"instances": found["boxes"]} for found in self.detector(images)]
        instances = [sample["instances"].to(self.device) for sample in batch]
        return self.detector(
            images, [{"boxes": i.gt_boxes.tensor, "labels": i.gt_classes} for i in instances]
        )


def _compare_boxes(device: str, repeats: int) -> Iterator[Row]:
    from monai.data import box_utils

    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(random_volume_boxes(rng, (_NUM_BOXES,)).astype(np.float32)).to(device)
    scores = torch.from_numpy(rng.uniform(0, 1, _NUM_BOXES).astype(np.float32)).to(device)
    pairs: dict[str, list[Callable[[], Tensor]]] = {
        "NMS in 3-D": [
            partial(nms_3d, boxes, scores, _THRESHOLD),
            partial(box_utils.non_max_suppression, boxes, scores, _THRESHOLD),
        ],
        "IoU in 3-D": [partial(box_iou, boxes, boxes), partial(box_utils.box_iou, boxes, boxes)],
    }
    for name, calls in pairs.items():
        ours, theirs = time_calls(calls, repeats=repeats, warm_up=WARM_UP, device=device)
        same = torch.allclose(*(torch.as_tensor(call()).float() for call in calls), atol=1e-5)
        note = f"{_NUM_BOXES} boxes, {'the same' if same else 'NOT the same'} results"
        yield paired_ratio(f"{name} / MONAI's, {device}", ours, theirs, note, limit=1.0)
