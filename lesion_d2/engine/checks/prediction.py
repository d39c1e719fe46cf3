"""Checks of a config for prediction."""

import argparse

from detectron2.config import CfgNode

from ...config.volumetric import is_volumetric
from ...data.mapper import LesionDatasetMapper
from ..input_errors import InputError, as_input_error
from .evaluation import check_ensemble
from .model import check_model
from .unused import check_unused
from .volumetric import check_volumetric
from .weights import check_run_weights


def check_prediction(cfg: CfgNode) -> None:
    """Check the config keys and weights for prediction, without data sets.

    Raises:
        InputError: a value is invalid, or weights are missing or do not match the model.
    """
    check_unused(cfg)
    check_volumetric(cfg)
    args = argparse.Namespace(eval_only=True, resume=False)
    check_ensemble(cfg, args)
    if not (cfg.MODEL.WEIGHTS or cfg.TEST.ENSEMBLE.CHECKPOINTS):
        raise InputError("MODEL.WEIGHTS: found none, expected the weights of a trained model")
    check_run_weights(cfg, args, check_model(cfg))
    if not is_volumetric(cfg):
        with as_input_error(""):
            LesionDatasetMapper(cfg, False)
