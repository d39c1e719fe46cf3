"""The configs of the GPU check, and the settings with which they are measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from lesion_d2.config import LesionConfig
from lesion_d2.config.volumetric import is_volumetric

from detectron2.config import CfgNode

from ..benchmark.configs import CONFIGS, load_config, name_of

#: One of every kind of model, small enough for a CPU; each trains a step.
SMALL = (
    "quickstart/retina_unet_phantom",
    "improved_retinanet/attention_phantom",
    "uldor/uldor_phantom",
    "3dce_attention/3dce_9_cs_phantom",
    "mean_teacher/add_phantom",
    "retina_unet/small/2dc/mask_rcnn",
    "retina_unet/small/2d/u_faster_rcnn_plus",
    "retina_unet/small/2d/det_unet",
    "retina_unet/small/3d/retina_unet",
    "retina_unet/small/3d/mask_rcnn",
    "retina_unet/small/3d/det_unet",
)
# Models at full width, ordered so that different ones come first.
_FIRST = (
    "retina_unet/retina_unet_R_50_deeplesion",
    "improved_retinanet/attention",
    "uldor/uldor",
    "3dce_attention/3dce_9_cs",
    "mean_teacher/add",
    "retina_unet/retina_unet_3d",
    "retina_unet/retina_unet",
    "retina_unet/mask_rcnn",
    "retina_unet/det_unet",
    "retina_unet/u_faster_rcnn_plus",
    "retina_unet/mask_rcnn_3d",
    "retina_unet/retinanet_3d",
    "improved_retinanet/retinanet",
    "3dce_attention/rfcn",
    "3dce_attention/3dce_21_cs",
    "mean_teacher/faster_rcnn",
)
_PAPERS = ("retina_unet", "improved_retinanet", "uldor", "3dce_attention", "mean_teacher")
# Keys of MODEL that make a model wide or a step long, and their maximum with --tiny.
NARROW: Mapping[str, int] = {
    "FPN.OUT_CHANNELS": 32,
    "RESNETS.STEM_OUT_CHANNELS": 16,
    "RESNETS.WIDTH_PER_GROUP": 8,
    "RESNETS.RES2_OUT_CHANNELS": 32,
    "VGG.WIDTH": 8,
    "DENSENET.STEM_CHANNELS": 16,
    "DENSENET.GROWTH_RATE": 8,
    "ROI_BOX_HEAD.FC_DIM": 64,
    "ROI_BOX_HEAD.CONV_DIM": 32,
    "ROI_MASK_HEAD.CONV_DIM": 32,
    "ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "RPN.PRE_NMS_TOPK_TRAIN": 200,
    "RPN.PRE_NMS_TOPK_TEST": 200,
    "RPN.POST_NMS_TOPK_TRAIN": 100,
    "RPN.POST_NMS_TOPK_TEST": 100,
    "VOLUMETRIC.HEAD_CHANNELS": 32,
}
_TINY_SIDE, _TINY_PATCH, _TINY_BATCH = 64, (8, 64, 64), 2


@dataclass(frozen=True)
class Setting:
    """How a model trains: config keys, and the name in the table."""

    name: str
    amp: bool = True
    channels_last: bool = True
    fused: bool = True
    compiled: bool = False

    def apply(self, cfg: CfgNode) -> None:
        """Set the keys."""
        cfg.SOLVER.AMP.ENABLED = self.amp
        cfg.MODEL.CHANNELS_LAST = self.channels_last
        cfg.SOLVER.FUSED = self.fused
        cfg.SOLVER.COMPILE = self.compiled


#: The configs' own settings, and settings with one part changed.
AS_IT_IS = Setting("as it is")
FLOAT32 = Setting("float32", amp=False, channels_last=False)
CHANNELS_FIRST = Setting("channels first", channels_last=False)
NOT_FUSED = Setting("not fused", fused=False)
COMPILED = Setting("compiled", compiled=True)
SETTINGS = {s.name: s for s in (AS_IT_IS, FLOAT32, CHANNELS_FIRST, NOT_FUSED, COMPILED)}


def narrow(cfg: CfgNode) -> None:
    """Make a model so narrow that a training step takes little time on a CPU."""
    for key, most in NARROW.items():
        part, name = key.split(".")
        cfg.MODEL[part][name] = min(cfg.MODEL[part][name], most)


def main_configs() -> list[str]:
    """All models at full width on CT, different ones first."""
    found = [
        name_of(file)
        for paper in _PAPERS
        for file in sorted((CONFIGS / paper).glob("*.yaml"))
        if not file.stem.endswith("_phantom")
    ]
    return [*_FIRST, *(name for name in found if name not in _FIRST)]


def read_config(name: str, device: str, *, tiny: bool) -> LesionConfig:
    """The config of a name, without pretrained weights and with a tiny learning rate.

    Args:
        name: its path in the folder of configs, without the suffix.
        device: of the model.
        tiny: make it narrow, and its images small.
    """
    cfg = load_config(CONFIGS / f"{name}.yaml", device)
    cfg.SOLVER.BASE_LR = 1e-6  # at a larger one, an untrained model would overflow in a few steps
    cfg.INPUT.PSEUDO_MASK = "ellipse"  # GrabCut's are prepared beforehand
    cfg.INPUT.PSEUDO_MASK_FILES = ()
    cfg.DATASETS.TEST = ()
    cfg.DATASETS.EXCLUDED_VOLUMES = ()
    cfg.DATALOADER.EMPTY_IMAGE_RATIO = -1.0
    if tiny:
        narrow(cfg)
        cfg.SOLVER.IMS_PER_BATCH = _TINY_BATCH
        cfg.INPUT.CT.IMAGE_SIZE, cfg.INPUT.CT.PIXEL_SPACING = _TINY_SIDE, 0.0
        if is_volumetric(cfg):
            cfg.INPUT.VOLUME.PATCH_SIZE = _TINY_PATCH
            cfg.TEST.VOLUME_TILE_SIZE = (0, 0, 0)
    return cfg
