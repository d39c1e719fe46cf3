"""Patches of volumes and tiny detectors for them."""

from collections.abc import Sequence

import lesion_d2
from lesion_d2.structures import BitMasks3D, Boxes3D

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

BACKGROUND = 60.0
BRIGHTER = 120.0


def tiny_config(name: str, *options: object) -> CfgNode:
    """A narrow ResNet-18 with P2 and P3 of strides (1, 4, 4) and (2, 8, 8), two anchors each.

    Args:
        name: the meta-architecture.
        options: further keys and values.
    """
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    levels = ["p2", "p3"]
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.META_ARCHITECTURE": name,
        "MODEL.BACKBONE.NAME": "build_resnet_unet_fpn_3d_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.PIXEL_MEAN": [BACKGROUND],
        "MODEL.PIXEL_STD": [BRIGHTER],
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3"],
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.UNET_FPN.DECODER_CHANNELS": (8, 4),
        "MODEL.ANCHOR_GENERATOR.NAME": "AnchorGenerator3D",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[10.0], [18.0]],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.7, 1.4]],
        "MODEL.VOLUMETRIC.ANCHOR_DEPTHS": [[3.0], [6.0]],
        "MODEL.VOLUMETRIC.HEAD_CHANNELS": 32,
        "MODEL.RETINANET.IN_FEATURES": levels,
        "MODEL.RETINANET.NUM_CLASSES": 2,
        "MODEL.RETINANET.NUM_CONVS": 2,
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": (10.0, 10.0, 10.0, 5.0, 5.0, 5.0),
        "MODEL.RETINANET.IOU_THRESHOLDS": [0.1, 0.5],
        "MODEL.RETINANET.NMS_THRESH_TEST": 1e-5,
        "MODEL.RETINA_UNET.SOFTMAX": True,
        "MODEL.RETINA_UNET.SHEM_POOL": 20,
        "INPUT.VOLUME.PATCH_SIZE": (8, 48, 48),
        **_two_stages(levels),
    }
    for key, value in values.items():
        cfg.merge_from_list([key, value])
    cfg.merge_from_list(list(options))
    return cfg


def _two_stages(levels: list[str]) -> dict[str, object]:
    """Keys of the RPN and of the RoI heads."""
    weights = (10.0, 10.0, 10.0, 5.0, 5.0, 5.0)
    return {
        "MODEL.PROPOSAL_GENERATOR.NAME": "LesionRPN3D",
        "MODEL.RPN.HEAD_NAME": "StandardRPNHead3D",
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.RPN.CONV_DIMS": [16],
        "MODEL.RPN.BBOX_REG_WEIGHTS": weights,
        "MODEL.RPN.SMOOTH_L1_BETA": 1.0,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
        "MODEL.ROI_HEADS.NAME": "LesionROIHeads3D",
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_HEADS.IN_FEATURES": levels,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.3],
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.1,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead3D",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": weights,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead3D",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
    }


def tiny_model(name: str, *options: object) -> nn.Module:
    """The detector of :func:`tiny_config`, always with the same first weights."""
    torch.manual_seed(0)
    return build_model(tiny_config(name, *options))


def patch(
    boxes: Sequence[Sequence[float]],
    size: tuple[int, int, int],
    *,
    classes: Sequence[int] | None = None,
    seed: int = 0,
) -> dict:
    """Noise with an ellipsoid in every box; those of class 1 are darker than the background.

    Args:
        boxes: x1, y1, z1, x2, y2, z2 in voxels, with edges.
        size: depth, height and width.
        classes: of the boxes; 0 for all by default.
    """
    generator = torch.Generator().manual_seed(seed)
    image = BACKGROUND + 10 * torch.randn(1, *size, generator=generator)
    classes = [0] * len(boxes) if classes is None else classes
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    axes = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")[::-1]
    for mask, box, category in zip(masks, boxes, classes, strict=True):
        distance = sum(
            (2 * (axis - (low + high) / 2) / (high - low)) ** 2
            for axis, low, high in zip(axes, box[:3], box[3:], strict=True)
        )
        mask[:] = distance <= 1
        image[:, mask] += (1 - 2 * category) * BRIGHTER
    instances = Instances(size)
    instances.gt_boxes = Boxes3D(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks3D(masks)
    return {"image": image, "instances": instances}


class Reader:
    """Reads a volume in memory, of which the model sees ``factors`` (z, y, x) times the voxels."""

    def __init__(self, volume: Tensor, factors: tuple[int, int, int] = (1, 1, 1)):
        self.volume, self.factors = torch.as_tensor(volume).float(), factors
        for axis, factor in enumerate(factors):
            self.volume = self.volume.repeat_interleave(factor, dim=axis)
        self.source_shape, self.shape = tuple(volume.shape), tuple(self.volume.shape)
        self.loaded = []

    def load(self, start, size, device):
        (z, y, x), (d, h, w) = start, size
        self.loaded += range(z, z + d)
        return self.volume[z : z + d, y : y + h, x : x + w].to(device)

    def to_source(self, boxes):
        return (boxes + 0.5) / boxes.new_tensor(self.factors[::-1] * 2) - 0.5


def losses_of(model: nn.Module, batch: list[dict]) -> dict[str, Tensor]:
    """The losses of a batch of patches."""
    with EventStorage():
        return model(batch)


def detect(model: nn.Module, batch: list[dict]) -> list[Instances]:
    """What a model finds on patches; it is put into evaluation mode."""
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(batch)]
