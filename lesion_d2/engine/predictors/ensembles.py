"""Builds ensembles of models and views from a config."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from ...config.volumetric import is_volumetric
from ...inference import Ensemble, VolumeEnsemble
from ..processes import unwrap


def build_ensemble(cfg: CfgNode, models: Sequence[nn.Module]) -> Ensemble:
    """Build the ensemble of TEST.ENSEMBLE.

    Args:
        cfg: config.
        models: models in evaluation mode with the same classes.
    """
    return _build(cfg, models, mirrors=cfg.TEST.ENSEMBLE.MIRRORS)


def as_evaluated(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model for the inputs of the test loader; a model of slices is returned as it is.

    A model of volumes is applied to overlapping tiles; ensembles already do this.

    Args:
        cfg: config.
        model: a model or an ensemble. Inside a :class:`VolumeEnsemble` it is set to evaluation
            mode.
    """
    if not is_volumetric(cfg) or isinstance(model, VolumeEnsemble):
        return model
    return _build(cfg, [unwrap(model)], mirrors=False)


def _build(cfg: CfgNode, models: Sequence[nn.Module], *, mirrors: bool) -> Ensemble:
    options = cfg.TEST.ENSEMBLE
    shared = {
        "mirrors": mirrors,
        "tile_overlap": options.TILE_OVERLAP,
        "consolidation": options.CONSOLIDATION,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
    }
    if is_volumetric(cfg):
        sides = cfg.TEST.VOLUME_TILE_SIZE
        tile_size = tuple(sides) if any(sides) else tuple(cfg.INPUT.VOLUME.PATCH_SIZE)
        threshold = options.TILE_IOU_THRESH
        return VolumeEnsemble(
            models,
            tile_size=tile_size,
            iou_threshold=threshold,
            patch_size=tuple(cfg.INPUT.VOLUME.PATCH_SIZE),
            tiles_per_batch=cfg.TEST.IMS_PER_BATCH,
            **shared,
        )
    threshold = options.TILE_IOU_THRESH if options.TILE_SIZE > 0 else options.IOU_THRESH
    return Ensemble(models, tile_size=options.TILE_SIZE, iou_threshold=threshold, **shared)
