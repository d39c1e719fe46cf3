import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from typing import Any

import detectron2
import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..config import add_lesion_config
from ..data.deeplesion import set_allow_missing
from ..data.mapper import LesionDatasetMapper
from ..modeling import AttentionGate
from .checkpoint import check_weights
from .schedule import resolve_epochs
from .trainer import optimizer_class

logger = logging.getLogger(__name__)

# A key, whether a value of it can be used, and what is expected.
_Check = tuple[str, Callable[[Any], bool], str]
_MODEL_CHECKS: tuple[_Check, ...] = (
    ("MODEL.RETINA_UNET.SEG_LOSS_WEIGHT", lambda v: v >= 0, "0 (off) or more"),
    ("MODEL.RETINA_UNET.SEG_FOCAL_ALPHA", lambda v: 0 <= v <= 1, "0 to 1"),
    ("MODEL.RETINA_UNET.SEG_FOCAL_GAMMA", lambda v: v >= 0, "0 or more"),
    ("MODEL.RETINA_UNET.BOX_MARGIN", lambda v: v >= 0, "0 or more pixels"),
)
_TRAINING_CHECKS: tuple[_Check, ...] = (
    (
        "DATALOADER.SAMPLER_TRAIN",
        lambda v: v == "TrainingSampler",
        "'TrainingSampler', the only one of the training loader",
    ),
    ("SOLVER.PLATEAU_PATIENCE", lambda v: v >= 0, "0 (off) or more"),
    ("SOLVER.PLATEAU_FACTOR", lambda v: 0 < v < 1, "a factor between 0 and 1"),
    ("SOLVER.EARLY_STOP_PATIENCE", lambda v: v >= 0, "0 (off) or more"),
)


class InputError(ValueError):
    """What a run was given cannot be used; the message is one line for its user."""


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the process with exit code 1 and one line on stderr where an InputError is raised."""
    try:
        yield
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)


def load_config(args: argparse.Namespace) -> CfgNode:
    """Build the config from the defaults, ``--config-file`` and the ``KEY VALUE`` pairs.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        The config, not frozen.

    Raises:
        InputError: a file is missing or not YAML, a key is unknown, or a value has another type
            than the default.
    """
    cfg = get_cfg()
    add_lesion_config(cfg)
    if args.config_file:
        with _as_input_error(f"--config-file {args.config_file}: "):
            cfg.merge_from_file(args.config_file)
    with _as_input_error(""):
        cfg.merge_from_list(args.opts or [])
    return cfg


@contextmanager
def _as_input_error(prefix: str) -> Iterator[None]:
    # yacs reports by KeyError and AssertionError what is wrong in a config.
    try:
        yield
    except (AssertionError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        raise InputError(prefix + " ".join(str(text).split())) from error


def setup_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check a run's inputs, complete its config and do Detectron2's ``default_setup``.

    Epochs become iterations, the device becomes the CPU where there is no GPU, and no more loader
    workers are used than there are cores. Nothing is written before the inputs are found to be
    good.

    Args:
        cfg: completed in place, then frozen.
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        InputError: see :func:`check_inputs`.
    """
    num_images = check_inputs(cfg, args)
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="lesion_d2")
    _fit_to_machine(cfg)
    if not args.eval_only:
        with _as_input_error(""):
            resolve_epochs(cfg, num_images)
    cfg.freeze()
    default_setup(cfg, args)
    if detectron2.__name__ != "detectron2":  # default_setup sets up the name of the copy only
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="detectron2")


def fit_device(cfg: CfgNode) -> None:
    """Set MODEL.DEVICE to the CPU, and log it, where there is no GPU for it."""
    if not _wants_gpu(cfg) and cfg.MODEL.DEVICE != "cpu":
        logger.info(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but no GPU was found: using the CPU")
        cfg.MODEL.DEVICE = "cpu"


def _fit_to_machine(cfg: CfgNode) -> None:
    fit_device(cfg)
    cores = os.cpu_count() or 1
    num_workers = min(cfg.DATALOADER.NUM_WORKERS, cores)
    if num_workers != cfg.DATALOADER.NUM_WORKERS:
        logger.info(f"DATALOADER.NUM_WORKERS becomes {num_workers}, the number of cores")
        cfg.DATALOADER.NUM_WORKERS = num_workers
    if cfg.MODEL.DEVICE == "cpu" and comm.get_local_size() > 1:
        torch.set_num_threads(max(1, cores // comm.get_local_size()))


def _wants_gpu(cfg: CfgNode) -> bool:
    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()


def prepare_launch(args: argparse.Namespace) -> None:
    """Check the inputs of a run of several processes before they start.

    An error in one of them would come as its traceback. For a run on the CPU the GPUs are hidden
    from them, because ``launch`` chooses how they communicate by whether there is a GPU.

    Raises:
        InputError: see :func:`check_inputs`.
    """
    if args.num_gpus * args.num_machines <= 1:
        return
    cfg = load_config(args)
    check_inputs(cfg, args)
    if not _wants_gpu(cfg):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif args.num_gpus > torch.cuda.device_count():
        raise InputError(
            f"found --num-gpus {args.num_gpus}, expected at most the {torch.cuda.device_count()} "
            "GPUs of this machine"
        )


def finish_run() -> None:
    """Wait until all processes of a run are done, then end their connection and its threads.

    Without it, a process that returns while the main one still evaluates ends with an open
    connection. A thread of the connection that outlives the interpreter aborts its process now and
    then, and ``launch`` then kills the others too. The threads end with the last reference to the
    process group, so call this where no trainer or distributed model is left.
    """
    if dist.is_available() and dist.is_initialized():
        comm.synchronize()
        comm._get_global_gloo_group.cache_clear()  # these two hold process groups
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()
        gc.collect()  # DistributedDataParallel is part of reference cycles


def check_inputs(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Check what a run reads: the weights, every data set, and the keys that it goes by.

    Args:
        cfg: of the run.
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        Images in DATASETS.TRAIN, without those that the training loader leaves out; 0 with
        ``--eval-only``.

    Raises:
        InputError: something is missing or empty, or a value is none of those known.
    """
    _check_weights(cfg, args, _check_model(cfg))
    with _as_input_error(""):
        LesionDatasetMapper(cfg, not args.eval_only)
    if args.eval_only:
        _load_datasets(cfg, "TEST", required=True)
        return 0
    _check_training(cfg, args.num_gpus * args.num_machines)
    images = _load_datasets(cfg, "TRAIN", required=True)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        images = [image for image in images if image["annotations"]]
    if not images:
        raise InputError(f"DATASETS.TRAIN: found no lesion in {', '.join(cfg.DATASETS.TRAIN)}")
    _load_datasets(cfg, "TEST", required=False)
    return len(images)


def _check_model(cfg: CfgNode) -> nn.Module:
    """Build the model without memory for its weights, which checks the keys that it goes by."""
    _check_values(cfg, _MODEL_CHECKS)
    found, strength = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINA_UNET.CALIBRATION
    if strength > 0 and found != "RetinaUNet":
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {found!r}, expected 'RetinaUNet' for the calibration "
            f"(MODEL.RETINA_UNET.CALIBRATION is {strength})"
        )
    try:
        with torch.device("meta"):
            model = META_ARCH_REGISTRY.get(found)(cfg)
    except (AssertionError, AttributeError, IndexError, KeyError, ValueError) as error:
        # Detectron2 tells of a name that does not exist by a KeyError of that name alone.
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise InputError(
            f"MODEL: found {found} on {cfg.MODEL.BACKBONE.NAME} not to be built: {kind}{text}"
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        # Some backbones need values while they are built: the run itself builds and checks them.
        logger.info(f"{found} on {cfg.MODEL.BACKBONE.NAME} was not checked beforehand: {error}")
        return nn.Identity()
    if cfg.MODEL.UNET_FPN.ATTENTION and not any(
        isinstance(m, AttentionGate) for m in model.modules()
    ):
        raise InputError(
            f"MODEL.BACKBONE.NAME: found {cfg.MODEL.BACKBONE.NAME}, expected a U-FPN for "
            "MODEL.UNET_FPN.ATTENTION True"
        )
    return model


def _check_values(cfg: CfgNode, checks: Iterable[_Check]) -> None:
    for key, is_usable, expected in checks:
        value = reduce(getitem, key.split("."), cfg)
        if not is_usable(value):
            raise InputError(f"{key}: found {value!r}, expected {expected}")


def _check_training(cfg: CfgNode, num_processes: int) -> None:
    with _as_input_error(""):
        optimizer_class(cfg)
    if num_processes > 1 and cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH: found {cfg.SOLVER.IMS_PER_BATCH}, expected a multiple of the "
            f"{num_processes} processes"
        )
    _check_values(cfg, _TRAINING_CHECKS)
    _check_patience(cfg)
    weight = cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT
    if cfg.MODEL.META_ARCHITECTURE == "RetinaUNet" and weight > 0 and not cfg.MODEL.MASK_ON:
        raise InputError(
            f"MODEL.MASK_ON: found False, expected True for the segmentation loss "
            f"(MODEL.RETINA_UNET.SEG_LOSS_WEIGHT is {weight})"
        )
    if weight == 0 and cfg.MODEL.RETINA_UNET.CALIBRATION > 0:
        raise InputError(
            "MODEL.RETINA_UNET.SEG_LOSS_WEIGHT: found 0, expected a segmentation loss for "
            f"MODEL.RETINA_UNET.CALIBRATION {cfg.MODEL.RETINA_UNET.CALIBRATION}"
        )


def _check_patience(cfg: CfgNode) -> None:
    for key in ("PLATEAU_PATIENCE", "EARLY_STOP_PATIENCE"):
        patience = cfg.SOLVER[key]
        if patience == 0:
            continue
        if not cfg.DATASETS.TEST:
            raise InputError(
                f"DATASETS.TEST: found no data set, expected one to evaluate (SOLVER.{key} is "
                f"{patience})"
            )
        if cfg.TEST.EVAL_PERIOD <= 0 and cfg.TEST.EVAL_EPOCHS <= 0:
            raise InputError(
                f"TEST.EVAL_PERIOD: found {cfg.TEST.EVAL_PERIOD}, expected it or TEST.EVAL_EPOCHS "
                f"above 0 (SOLVER.{key} is {patience} evaluations)"
            )


def _check_weights(cfg: CfgNode, args: argparse.Namespace, model: nn.Module) -> None:
    tag = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if args.resume and os.path.isfile(tag):
        _check_last_checkpoint(tag)
        return
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise InputError("--eval-only: found no MODEL.WEIGHTS, expected a checkpoint's path")
    with _as_input_error("MODEL.WEIGHTS: "):
        check_weights(cfg.MODEL.WEIGHTS, model)


def _check_last_checkpoint(tag: str) -> None:
    with open(tag) as file:
        checkpoint = os.path.join(os.path.dirname(tag), file.read().strip())
    try:
        check_weights(checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"--resume: {error}; {tag} names it: remove {tag}, or start without --resume"
        ) from error


def _load_datasets(cfg: CfgNode, kind: str, *, required: bool) -> list[dict]:
    names = cfg.DATASETS[kind]
    if required and not names:
        raise InputError(f"DATASETS.{kind}: found no data set, expected a name")
    return [image for name in names for image in _load_dataset(cfg, name, kind)]


def _load_dataset(cfg: CfgNode, name: str, kind: str) -> list[dict]:
    if name not in DatasetCatalog:
        known = [n for n in DatasetCatalog if _is_lesion_dataset(n)]
        raise InputError(f"DATASETS.{kind}: found {name!r}, expected one of {', '.join(known)}")
    _check_classes(cfg, name, kind)
    set_allow_missing(name, cfg.DATASETS.ALLOW_MISSING)
    try:
        images = DatasetCatalog.get(name)
    except (OSError, ValueError) as error:
        raise InputError(f"DATASETS.{kind}, {name}: {error}") from error
    if not images:
        raise InputError(f"DATASETS.{kind}, {name}: found no image")
    return images


def _check_classes(cfg: CfgNode, name: str, kind: str) -> None:
    classes = MetadataCatalog.get(name).get("thing_classes")
    found = cfg.MODEL.RETINANET.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE not in ("RetinaNet", "RetinaUNet") or classes is None:
        return
    if found != len(classes):
        raise InputError(
            f"MODEL.RETINANET.NUM_CLASSES: found {found}, expected {len(classes)}, the classes of "
            f"{name} (DATASETS.{kind})"
        )


def _is_lesion_dataset(name: str) -> bool:
    return MetadataCatalog.get(name).get("evaluator_type") == "lesion"
