"""Benchmark of the 3-D RetinaNet against MONAI's, with the same network, patches and anchors.

MONAI's detector is configured like ours where possible: a ResNet-50 with batch norm and the same
widths and strides, an FPN of P2 to P5, heads of four convolutions with group norm, three sizes
times three ratios per anchor position, matching between IoUs of 0.1 and 0.5, hard negatives from a
pool of 20 times their number. Two differences cannot be configured: it has a sigmoid, ours a
softmax with a background class; and its axes are x, y, z.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import lesion_d2
from lesion_d2.structures import BitMasks3D, Boxes3D

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from ..memory import peak_memory
from ..timing import Row, one_thread, paired_ratio, time_calls
from .running import WARM_UP, infer, training_step

_WIDTH = 18  # channels of the stem (Jaeger et al., in their code)
_HEAD_WIDTH = 64  # section 3.1; MONAI's heads have the FPN's width
_LEVELS = 4
_SIZES, _DEPTHS, _RATIOS = (4.0, 5.04, 6.35), (2.0, 2.52, 3.17), (0.5, 1.0, 2.0)  # of P2
_CANDIDATES, _DETECTIONS, _NMS = 1000, 100, 0.22
_PATCHES = {"cpu": (32, 96, 96), "cuda": (64, 128, 128)}  # on the GPU, the paper's
_BATCHES = {"cpu": 2, "cuda": 8}


def measure_monai(device: str, *, repeats: int = 9) -> Iterator[Row]:
    """A training step, inference, and the memory of both, against MONAI; no row without it.

    On a CPU with one thread, like :func:`measure_tao`.
    """
    if find_spec("monai") is None:
        return
    with one_thread() if device == "cpu" else contextlib.nullcontext():
        yield from _compare(device, repeats)


def _compare(device: str, repeats: int) -> Iterator[Row]:
    cfg = volume_config(device)
    batch = random_volumes(cfg)
    models = [build_model(cfg), build_monai(cfg)]
    title = f"RetinaNet3D / MONAI's, {device}:"
    size = " x ".join(map(str, cfg.INPUT.VOLUME.PATCH_SIZE))
    one, many = f"1 patch of {size}", f"{len(batch)} patches of {size}"
    run = partial(time_calls, repeats=repeats, warm_up=WARM_UP, device=device)
    ours, theirs = run([training_step(model, batch) for model in models])
    yield paired_ratio(f"{title} training step", ours, theirs, many, limit=1.0)
    if device == "cuda":
        speed = 1e3 * len(batch) / ours.milliseconds
        yield Row("RetinaNet3D, training", speed, "patches/s", None, many)
    calls = [partial(infer, model.eval(), batch) for model in models]
    ours, theirs = run(calls)
    note = f"{one}; score threshold 0, {'/'.join(str(call()) for call in calls)} detections"
    yield paired_ratio(f"{title} inference", ours, theirs, note, limit=0.9)
    for name, work, note in (("a step", _steps, many), ("an inference", _inferences, one)):
        a, b = (peak_memory(partial(work, build), cfg) for build in (build_model, build_monai))
        note = f"{a:.0f} against {b:.0f} MiB, {note}"
        yield Row(f"{title} memory of {name}", a / b, "x", 1.0, note)


def volume_config(device: str) -> CfgNode:
    """A config of RetinaNet3D that MONAI can be given, too."""
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    stages = [f"res{i}" for i in range(2, 2 + _LEVELS)]
    scales = [2**level for level in range(_LEVELS)]
    values = {
        "MODEL.DEVICE": device,
        "MODEL.META_ARCHITECTURE": "RetinaNet3D",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_3d_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.PIXEL_MEAN": [127.5],
        "MODEL.PIXEL_STD": [127.5],
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": _WIDTH,
        "MODEL.RESNETS.WIDTH_PER_GROUP": _WIDTH,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 4 * _WIDTH,
        "MODEL.RESNETS.OUT_FEATURES": stages,
        "MODEL.FPN.IN_FEATURES": stages,
        "MODEL.FPN.OUT_CHANNELS": _HEAD_WIDTH,
        "MODEL.VOLUMETRIC.STRIDES": ((1, 2, 2), *[(2, 2, 2)] * 4),
        "MODEL.VOLUMETRIC.HEAD_CHANNELS": _HEAD_WIDTH,
        "MODEL.VOLUMETRIC.ANCHOR_DEPTHS": [[n * d for d in _DEPTHS] for n in scales],
        "MODEL.ANCHOR_GENERATOR.NAME": "AnchorGenerator3D",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[n * s for s in _SIZES] for n in scales],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(_RATIOS)],
        "MODEL.RETINANET.IN_FEATURES": [f"p{i}" for i in range(2, 2 + _LEVELS)],
        "MODEL.RETINANET.NUM_CLASSES": 1,
        "MODEL.RETINANET.NUM_CONVS": 4,
        "MODEL.RETINANET.NORM": "GN",
        "MODEL.RETINANET.IOU_THRESHOLDS": [0.1, 0.5],
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": (10.0, 10.0, 10.0, 5.0, 5.0, 5.0),
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 1.0,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "MODEL.RETINANET.NMS_THRESH_TEST": _NMS,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _CANDIDATES,
        "MODEL.RETINA_UNET.SOFTMAX": True,
        "MODEL.RETINA_UNET.SHEM_POOL": 20,
        "TEST.DETECTIONS_PER_IMAGE": _DETECTIONS,
        "INPUT.VOLUME.PATCH_SIZE": _PATCHES[device],
        "SOLVER.IMS_PER_BATCH": _BATCHES[device],
    }
    cfg.merge_from_list([part for item in values.items() for part in item])
    return cfg


def random_volumes(cfg: CfgNode) -> list[dict]:
    """A training batch of the config's size: noise with two lesions per patch."""
    generator = torch.Generator().manual_seed(0)
    size = cfg.INPUT.VOLUME.PATCH_SIZE
    sides = torch.tensor(size[::-1], dtype=torch.float32)
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        low = sides * 0.6 * torch.rand(2, 3, generator=generator)
        boxes = torch.cat([low, low + sides * 0.25], dim=1)
        masks = torch.zeros(2, *size, dtype=torch.bool)
        for mask, (x0, y0, z0, x1, y1, z1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[z0:z1, y0:y1, x0:x1] = True
        instances = Instances(tuple(size))
        instances.gt_boxes, instances.gt_masks = Boxes3D(boxes), BitMasks3D(masks)
        instances.gt_classes = torch.zeros(2, dtype=torch.int64)
        image = 255 * torch.rand(1, *size, generator=generator)
        batch.append({"image": image, "instances": instances})
    return batch


class MonaiRetinaNet(nn.Module):
    """MONAI's detector with the interface of Detectron2's models.

    Args:
        cfg: of :func:`volume_config`.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
        from monai.apps.detection.networks.retinanet_network import RetinaNet
        from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

        shapes = [
            (size / ratio**0.5, size * ratio**0.5, depth)  # x, y, z
            for (size, depth), ratio in itertools.product(
                zip(_SIZES, _DEPTHS, strict=True), _RATIOS
            )
        ]
        anchors = AnchorGeneratorWithAnchorShape(
            feature_map_scales=[2**level for level in range(_LEVELS)], base_anchor_shapes=shapes
        )
        network = RetinaNet(
            spatial_dims=3,
            num_classes=1,
            num_anchors=len(shapes),
            feature_extractor=_monai_fpn(),
            size_divisible=(32, 32, 16),
        )
        self.detector = RetinaNetDetector(network, anchors)
        self.detector.set_box_coder_weights((10.0, 10.0, 10.0, 5.0, 5.0, 5.0))
        self.detector.set_regular_matcher(0.5, 0.1)
        self.detector.set_hard_negative_sampler(6, positive_fraction=0.5, min_neg=1, pool_size=20)
        self.detector.set_box_selector_parameters(
            score_thresh=0.0,
            topk_candidates_per_level=_CANDIDATES,
            nms_thresh=_NMS,
            detections_per_img=_DETECTIONS,
        )
        self.mean, self.std = cfg.MODEL.PIXEL_MEAN[0], cfg.MODEL.PIXEL_STD[0]

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training; otherwise boxes and scores of each volume."""
        device = next(self.parameters()).device
        images = [
            ((x["image"].to(device) - self.mean) / self.std).permute(0, 3, 2, 1).contiguous()
            for x in batch
        ]
        if not self.training:
            found = self.detector(images, use_inferer=False)
            return [{"instances": each["boxes"]} for each in found]
        targets = []
        for x in batch:
            instances = x["instances"].to(device)
            boxes = instances.gt_boxes.tensor + 0.5  # whole numbers are edges of voxels there
            targets.append({"boxes": boxes, "labels": instances.gt_classes})
        return self.detector(images, targets)


def _monai_fpn() -> nn.Module:
    from monai.networks.blocks.backbone_fpn_utils import BackboneWithFPN
    from monai.networks.nets.resnet import ResNet, ResNetBottleneck

    resnet = ResNet(
        block=ResNetBottleneck,
        layers=[3, 4, 6, 3],
        block_inplanes=[_WIDTH * 2**i for i in range(4)],
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_size=(7, 7, 7),
        conv1_t_stride=(2, 2, 1),
        bias_downsample=False,
    )
    fpn = BackboneWithFPN(
        resnet,
        {f"layer{i + 1}": str(i) for i in range(_LEVELS)},
        [4 * _WIDTH * 2**i for i in range(_LEVELS)],
        _HEAD_WIDTH,
        spatial_dims=3,
    )
    fpn.fpn.extra_blocks = None  # no level above P5
    return fpn


def build_monai(cfg: CfgNode) -> nn.Module:
    """MONAI's detector on the config's device."""
    return MonaiRetinaNet(cfg).to(cfg.MODEL.DEVICE)


def _steps(build: Callable[[CfgNode], nn.Module], cfg: CfgNode) -> None:
    step = training_step(build(cfg), random_volumes(cfg))
    step()
    step()


def _inferences(build: Callable[[CfgNode], nn.Module], cfg: CfgNode) -> None:
    model, batch = build(cfg).eval(), random_volumes(cfg)
    infer(model, batch)
    infer(model, batch)
