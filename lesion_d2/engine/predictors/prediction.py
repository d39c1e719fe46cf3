"""Trained models, and ensembles of them, for evaluation and prediction."""

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ...config.volumetric import is_volumetric
from ...data.mapper import LesionDatasetMapper
from ...data.volumetric.loader import VolumeReader
from ..checkpoint_files.best_checkpoints import checkpoint_files
from ..checkpoint_files.checkpointer import LesionCheckpointer, load_trained
from ..defaults import fit_device
from ..trainer import Trainer
from .ensembles import as_evaluated, build_ensemble


def load_model(cfg: CfgNode, *, resume: bool = False) -> nn.Module:
    """Build the model or ensemble of a config, and load its weights.

    This is the model with MODEL.WEIGHTS or, with TEST.ENSEMBLE.ENABLED, an
    :class:`~lesion_d2.inference.Ensemble` of it, or of one model per file of
    TEST.ENSEMBLE.CHECKPOINTS. A model of volumes is wrapped to process tiles.

    Args:
        cfg: config.
        resume: use the last checkpoint in OUTPUT_DIR, if there is one, instead of MODEL.WEIGHTS.

    Returns:
        The model in evaluation mode, on MODEL.DEVICE.

    Raises:
        FileNotFoundError: weights do not exist, or a folder has no ranking.
        ValueError: a file does not contain weights for this model, or a ranking is invalid.
    """
    if not cfg.TEST.ENSEMBLE.ENABLED:
        return as_evaluated(cfg, _load(cfg, cfg.MODEL.WEIGHTS, resume))
    files = checkpoint_files(cfg.TEST.ENSEMBLE.CHECKPOINTS)
    models = [_load(cfg, file) for file in files] or [_load(cfg, cfg.MODEL.WEIGHTS, resume)]
    return build_ensemble(cfg, models)


def _load(cfg: CfgNode, weights: str, resume: bool = False) -> nn.Module:
    model = Trainer.build_model(cfg)
    checkpointer = LesionCheckpointer(model, cfg.OUTPUT_DIR)
    if resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
    load_trained(checkpointer, weights)
    return model.eval()


def build_test_mapper(cfg: CfgNode) -> LesionDatasetMapper | VolumeReader:
    """Build the mapper from a dict or a volume's record to model input at inference."""
    if is_volumetric(cfg):
        return VolumeReader(cfg.INPUT.VOLUME.SPACING, cfg.INPUT.CT.HU_WINDOW)
    return LesionDatasetMapper(cfg, False)


class LesionPredictor:
    """The counterpart of Detectron2's DefaultPredictor, from a data set's dict to detections.

    Slices or volumes are read and preprocessed as in the evaluation; the model or ensemble is that
    of :func:`load_model`.

    Attributes:
        cfg: a copy of the config; MODEL.DEVICE is the CPU if there is no GPU.
        model: the model in evaluation mode.
        metadata: metadata of the first data set of DATASETS.TEST, if there is one.

    Example:
        >>> predictor = LesionPredictor(cfg)
        >>> record = DatasetCatalog.get("phantom_test")[0]
        >>> instances = predictor(record)["instances"].to("cpu")
        >>> visualizer = LesionVisualizer(window_image(record), predictor.metadata)
        >>> visualizer.draw_outcome(match_outcome(record, instances, score_threshold=0.5))
        >>> save_picture(visualizer.get_output().get_image(), "slice.png")
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: config; not modified.

        Raises:
            FileNotFoundError, ValueError: see :func:`load_model`.
        """
        self.cfg = cfg.clone()
        self.cfg.defrost()
        fit_device(self.cfg)
        self.model = load_model(self.cfg)
        self.mapper = build_test_mapper(self.cfg)
        if self.cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(self.cfg.DATASETS.TEST[0])

    @torch.no_grad()
    def __call__(self, dataset_dict: dict) -> dict:
        """Detect the lesions of one slice, or of one volume for a model of volumes.

        Args:
            dataset_dict: a dict of a data set in DatasetCatalog, or a record of
                :func:`~lesion_d2.data.volumetric.volume_records`; its ``annotations`` are ignored.

        Returns:
            ``{"instances": ...}`` in pixels of the slice or voxels of the volume, on MODEL.DEVICE.
        """
        return self.model([self.mapper(dataset_dict)])[0]
