"""Checks of a run's inputs, before anything is written."""

import argparse
import math
from collections.abc import Sequence
from itertools import chain

from detectron2.config import CfgNode

from ...config.volumetric import is_volumetric
from ...data.catalog import keep_train_sets
from ...data.deeplesion.csv_rows import read_once
from ...data.mapper import LesionDatasetMapper
from ...data.pseudo_masks.files import PseudoMasks
from ...data.samplers import count_epoch
from ...structures.ignore_regions import lesions_of
from ..input_errors import InputError, as_input_error, switched_on
from ..solver.schedule import resolve_epochs
from .datasets import check_masks, check_mined_images, load_datasets
from .evaluation import check_ensemble, check_lesions
from .model import check_model
from .output import check_output
from .training import check_regions, check_training
from .unused import check_unused
from .volumetric import check_kinds, check_patches, check_records, check_volumetric
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
    check_unused(cfg)
    check_volumetric(cfg)
    check_output(cfg)
    check_ensemble(cfg, args)
    check_run_weights(cfg, args, check_model(cfg))
    mask_files = ()
    if not is_volumetric(cfg):
        with as_input_error(""):
            mask_files = LesionDatasetMapper(cfg, not args.eval_only).pseudo_masks
    if args.eval_only:
        test_sets = load_datasets(cfg, "TEST", required=True)
        if is_volumetric(cfg):
            check_records(cfg, "TEST", test_sets)
        return 0
    if is_volumetric(cfg):
        check_patches(cfg)
    check_training(cfg, args.num_gpus * args.num_machines)
    train_sets = load_datasets(cfg, "TRAIN", required=True)
    images = list(chain.from_iterable(train_sets))
    check_regions(cfg, images)
    if is_volumetric(cfg):
        num_images = check_records(cfg, "TRAIN", train_sets)
        check_kinds(cfg, "TEST")
    else:
        num_images = _count_images(cfg, images, mask_files)
        keep_train_sets(cfg, train_sets)
    _check_iterations(cfg, num_images)
    test_sets = load_datasets(cfg, "TEST", required=False)
    if is_volumetric(cfg):
        check_records(cfg, "TEST", test_sets)
    check_lesions(cfg, dict(zip(cfg.DATASETS.TEST, test_sets, strict=True)))
    if switched_on(cfg, "TEST.LOSS_"):
        check_masks(cfg, list(chain.from_iterable(test_sets)), "TEST", mask_files)
    return num_images


def _count_images(cfg: CfgNode, images: list[dict], mask_files: Sequence[PseudoMasks]) -> int:
    """The number of images per epoch; checks what training on slices needs."""
    check_masks(cfg, images, "TRAIN", mask_files)
    check_mined_images(cfg, images)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        images = [image for image in images if lesions_of(image["annotations"])]
    if not images:
        raise InputError(f"DATASETS.TRAIN: found no lesion in {', '.join(cfg.DATASETS.TRAIN)}")
    with as_input_error(""):
        return count_epoch(images, cfg)


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
