"""Counts arithmetic operations of models, which are the same on every machine."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.utils.flop_counter import FlopCounterMode

from .. import configs
from ..configs import as_retinanet, load_config, with_output
from ..timing import Row

P3_TO_P7 = ("p3", "p4", "p5", "p6", "p7")


def count_operations(cfg: CfgNode) -> tuple[int, int]:
    """Multiplications and additions of inference without masks, and of a training step.

    Counts convolutions and matrix products for one image, without computing them.

    Args:
        cfg: of a RetinaNet or RetinaUNet.
    """
    model, size = build_model(cfg).to("meta").train(), cfg.INPUT.CT.IMAGE_SIZE
    image = torch.empty(1, len(cfg.MODEL.PIXEL_MEAN), size, size, device="meta")
    with FlopCounterMode(display=False) as counter:
        features = model.backbone(image)
        predictions = model.head([features[level] for level in model.head_in_features])
        detection = counter.get_total_flops()
        outputs = [level for levels in predictions for level in levels]
        if getattr(model, "seg_predictor", None) is not None:
            outputs.append(model.predict_segmentation(image, features))
        torch.stack([output.sum() for output in outputs]).sum().backward()
    return detection, counter.get_total_flops()


def compare_operations() -> Iterator[Row]:
    """RetinaUNet against RetinaNet, at P2 to P5 and, like Lin et al., at P3 to P7."""
    small, wide = (load_config(f, "cpu") for f in (configs.CPU_CONFIG, configs.GPU_CONFIG))
    wide.MODEL.RETINANET.IN_FEATURES = list(P3_TO_P7)
    for cfg, net, name in (
        (small, as_retinanet(small), configs.CPU_CONFIG.stem),
        (wide, as_detectron2s_retinanet(wide), "ResNet-50, P3 to P7"),
    ):
        (infer, step), (net_infer, net_step) = map(count_operations, (with_output(cfg), net))
        size = cfg.INPUT.CT.IMAGE_SIZE
        note = f"{step / 1e9:.0f} billion, an image of {size} x {size}, {name}"
        title = "RetinaUNet / RetinaNet, operations:"
        yield Row(f"{title} training step", step / net_step, "x", 1.2, note)
        yield Row(f"{title} inference without masks", infer / net_infer, "x", 1.0, note)


def as_detectron2s_retinanet(cfg: CfgNode) -> CfgNode:
    """Detectron2's RetinaNet on its own FPN, whose levels begin at P3."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    return cfg
