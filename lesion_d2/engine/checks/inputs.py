"""Checks of a run's inputs, before anything is written."""

import argparse
import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from ...config.volumetric import is_volumetric
from ...data.catalog import keep_train_sets
from ...data.deeplesion.csv_rows import read_once
from ...data.mapper import LesionDatasetMapper
from ...data.pseudo_masks.files import PseudoMasks
from ...data.samplers import count_epoch
from ...data.volumetric import VolumePatchMapper
from ...evaluation import parse_criteria
from ...modeling import MeanTeacher
from ...structures.ignore_regions import lesions_of
from ..input_errors import InputError, as_input_error, switched_on
from ..solver.clipping import clipper
from ..solver.compilation import check_compiler
from ..solver.schedule import check_epochs, check_learning_rate_factors, resolve_epochs
from ..trainer import optimizer_class
from .datasets import check_masks, check_mined_images, load_datasets
from .evaluation import check_best_metric
from .model import check_model
from .relations import RELATIONS, TRAINING_RELATIONS, check_regions, check_relations
from .unused import check_unused
from .values import check_values
from .volumetric import read_volumes
from .weights import check_run_weights


@read_once()
def check_inputs(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Check a run's output folder, config keys, weights and data sets.

    Args:
        cfg: config.
        args: arguments of Detectron2's ``default_argument_parser``.

    Returns:
        The number of images per epoch of DATASETS.TRAIN, without those that the training loader
        skips, or of volumes for a model of volumes; 0 with ``--eval-only``.

    Raises:
        InputError: an input is missing or empty, or a value is invalid.
    """
    _check_output(cfg)
    mask_files = _check_model(cfg, args)
    if not args.eval_only:
        check_training(cfg, args.num_gpus * args.num_machines)
        num_images = check_train_sets(cfg, mask_files)
    test_sets = load_datasets(cfg, "TEST", required=args.eval_only)
    if is_volumetric(cfg):
        read_volumes(cfg, "TEST", test_sets)
    if args.eval_only:
        return 0
    check_best_metric(cfg, dict(zip(cfg.DATASETS.TEST, test_sets, strict=True)))
    if switched_on(cfg, "TEST.LOSS_"):
        check_masks(cfg, "TEST", list(chain.from_iterable(test_sets)), mask_files)
    return num_images


def check_prediction(cfg: CfgNode) -> None:
    """Check the config keys and weights for prediction, without data sets.

    Raises:
        InputError: a value is invalid, or weights are missing or do not match the model.
    """
    _check_model(cfg, argparse.Namespace(eval_only=True, resume=False))


def check_training(cfg: CfgNode, num_processes: int) -> None:
    """Check the keys that only training uses.

    Raises:
        InputError: a value is invalid; the message names the key.
    """
    check_relations(cfg, TRAINING_RELATIONS)
    with as_input_error(""):
        optimizer_class(cfg)
        clipper(cfg)
        check_learning_rate_factors(cfg)
        check_compiler(cfg)
        check_epochs(cfg)
        if cfg.MODEL.MEAN_TEACHER.ENABLED:
            MeanTeacher(cfg, nn.Identity())
    if cfg.SOLVER.IMS_PER_BATCH % max(1, num_processes):  # 0 for --num-gpus 0, as in Detectron2
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: found {cfg.SOLVER.IMS_PER_BATCH}, expected a multiple of the "
            f"{num_processes} processes"
        )


def _check_output(cfg: CfgNode) -> None:
    """Check that OUTPUT_DIR and its folder of results exist or can be created, and are writable."""
    found = f"OUTPUT_DIR: found {cfg.OUTPUT_DIR!r}, expected a folder"
    if not cfg.OUTPUT_DIR:
        raise InputError(found)
    for folder in (Path(cfg.OUTPUT_DIR), Path(cfg.OUTPUT_DIR, "inference")):
        there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path())
        if not there.is_dir():
            raise InputError(f"{found}, but {there} is none")
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"{found} to write to, but {there} cannot be written to")


def _check_model(cfg: CfgNode, args: argparse.Namespace) -> Sequence[PseudoMasks]:
    """Check the keys of all runs and the weights; returns INPUT.PSEUDO_MASK_FILES."""
    check_unused(cfg)
    check_values(cfg, of_training=not args.eval_only)
    check_relations(cfg, RELATIONS)
    with as_input_error("TEST.VOLUME_CRITERIA: "):
        parse_criteria(cfg.TEST.VOLUME_CRITERIA)
    check_run_weights(cfg, args, check_model(cfg))
    with as_input_error(""):
        if not is_volumetric(cfg):
            return LesionDatasetMapper(cfg, not args.eval_only).pseudo_masks
        if not args.eval_only:
            VolumePatchMapper(cfg)
    return ()


def check_train_sets(cfg: CfgNode, mask_files: Sequence[PseudoMasks] = ()) -> int:
    """Check DATASETS.TRAIN; returns the number of images or volumes per epoch.

    Raises:
        InputError: see :func:`load_datasets`; or they lack what the training needs.
    """
    train_sets = load_datasets(cfg, "TRAIN", required=True)
    images = list(chain.from_iterable(train_sets))
    check_regions(cfg, images)
    check_mined_images(cfg, train_sets)
    if is_volumetric(cfg):
        images = read_volumes(cfg, "TRAIN", train_sets)
    else:
        keep_train_sets(cfg, train_sets)
    check_masks(cfg, "TRAIN", images, mask_files)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        images = [image for image in images if lesions_of(image["annotations"])]
    if not images:
        raise InputError(f"DATASETS.TRAIN: found no lesion in {', '.join(cfg.DATASETS.TRAIN)}")
    with as_input_error(""):
        num_images = count_epoch(images, cfg)
    _check_iterations(cfg, num_images)
    return num_images


def _check_iterations(cfg: CfgNode, num_images: int) -> None:
    cfg = cfg.clone()
    resolve_epochs(cfg, num_images)
    period, start = cfg.HARD_NEGATIVES.PERIOD, cfg.HARD_NEGATIVES.START_ITER
    end = cfg.SOLVER.MAX_ITER
    if period > 0 and period * max(1, math.ceil(start / period)) >= end:
        raise InputError(
            f"HARD_NEGATIVES: found no mining in {end} iterations, expected a multiple of PERIOD "
            f"({period}) from START_ITER ({start}) on before the last one"
        )
