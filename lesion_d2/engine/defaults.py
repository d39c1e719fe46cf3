"""Setting up a run: config, checks, logs, devices and processes."""

import argparse
import gc
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path

import detectron2
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from .._programs import count_as_old
from ..config import LesionConfig, get_lesion_config
from ..data.loader import count_workers
from ..utils.errors import told
from ..utils.files import atomic_write
from ..utils.parallel import count_cores
from .checks import check_inputs
from .checks.values import check_values
from .input_errors import InputError, as_input_error
from .resuming import check_free, hold_output, release_output
from .solver.schedule import resolve_epochs

logger = logging.getLogger(__name__)


def load_config(args: argparse.Namespace) -> LesionConfig:
    """Build the config from the defaults, ``--config-file`` and the ``KEY VALUE`` pairs.

    Args:
        args: arguments of Detectron2's ``default_argument_parser``.

    Returns:
        The config, not frozen.

    Raises:
        InputError: a file is missing or not YAML, a key is unknown, the type of a value differs
            from the default's, or MODEL.DEVICE or SEED is invalid.
    """
    cfg = get_lesion_config()
    if args.config_file:
        with as_input_error(f"--config-file {args.config_file}: "):
            cfg.merge_from_file(args.config_file)
    with as_input_error(""):
        cfg.merge_from_list(args.opts or [])
    check_device(cfg)
    check_values(cfg, pattern="SEED")
    return cfg


def setup_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check a run's inputs, complete its config, and set up logging, folder and seeds.

    Epochs are converted to iterations, the device becomes the CPU if there is no GPU, and the
    number of loader workers is limited by the cores, see :func:`count_workers`. Nothing is written
    before all inputs are checked.

    Args:
        cfg: completed in place, then frozen.
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        InputError: see :func:`check_inputs`; or another training run (for evaluation only, another
            evaluation) uses OUTPUT_DIR.
    """
    count_as_old()  # all imported modules
    with _held_records(f"{__package__}.checks", "lesion_d2.data") as records:
        num_images = check_inputs(cfg, args)
    hold_output(_held_folder(cfg, args))
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="lesion_d2")
    for record in records:  # from checks before logging is set up
        logging.getLogger(record.name).handle(record)
    _fit_to_machine(cfg)
    if not args.eval_only:
        with as_input_error(""):
            resolve_epochs(cfg, num_images)
    cfg.freeze()
    _set_up(cfg, args)
    for name in (detectron2.__name__, "lesion_d2"):
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:  # tracebacks go to the file only
                handler.addFilter(_is_not_told)


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """As Detectron2's ``default_setup``, which converts the config to or from YAML ten times.

    That takes a second; and it writes in place, so a full disk would leave an incomplete file.
    """
    rank = comm.get_rank()
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    for name in {"fvcore", "detectron2", detectron2.__name__}:  # the copy has another name
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info(f"Environment info:\n{collect_env_info()}")
    logger.info(f"Command line arguments: {args}")
    if args.config_file:
        content = Path(PathManager.get_local_path(args.config_file)).read_text()
        logger.info(f"Contents of args.config_file={args.config_file}:\n{content}")
    if comm.is_main_process():
        content, file = cfg.dump(), os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        logger.info(f"Running with full config:\n{content}")
        with atomic_write(file) as partial:
            partial.write_text(content)
        logger.info(f"Full config saved to {file}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    precision = cfg.get("FLOAT32_PRECISION", "")  # only in recent versions of Detectron2
    if precision and torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def _held_folder(cfg: CfgNode, args: argparse.Namespace) -> str:
    """The folder to lock; evaluation and training may run at the same time."""
    return os.path.join(cfg.OUTPUT_DIR, "inference") if args.eval_only else cfg.OUTPUT_DIR


@contextmanager
def logged_errors() -> Iterator[None]:
    """Log the traceback of an exception that ends an evaluation, as for training."""
    try:
        yield
    except Exception:
        logger.exception("Exception during evaluation:")
        raise


def _is_not_told(record: logging.LogRecord) -> bool:
    """Filter of log records: drop tracebacks of errors that are printed as one line."""
    return not record.exc_info or told(record.exc_info[1]) is None


@contextmanager
def _held_records(*names: str) -> Iterator[list[logging.LogRecord]]:
    """Collect the records of loggers and their children, from INFO on, instead of handling them.

    If an error occurs, warnings are emitted immediately.
    """
    held = [logging.getLogger(name) for name in names]
    before = [(one.level, one.propagate) for one in held]
    handler = BufferingHandler(sys.maxsize)
    for one in held:
        one.addHandler(handler)
        one.setLevel(logging.INFO)
        one.propagate = False
    failed = True
    try:
        yield handler.buffer
        failed = False
    finally:
        for one, (level, propagate) in zip(held, before, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
            one.propagate = propagate
        for record in handler.buffer if failed else ():
            if record.levelno >= logging.WARNING:
                logging.getLogger(record.name).handle(record)


def check_device(cfg: CfgNode) -> None:
    """Check that MODEL.DEVICE is the CPU, or a GPU of this machine if it has any.

    Raises:
        InputError: it is another device.
    """
    device = cfg.MODEL.DEVICE
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", device)
    if match is None:
        raise InputError(f"MODEL.DEVICE: found {device!r}, expected 'cpu', 'cuda' or 'cuda:0'")
    if match[1] and torch.cuda.is_available() and int(match[1]) >= torch.cuda.device_count():
        raise InputError(
            f"MODEL.DEVICE: found {device!r}, expected one of the {torch.cuda.device_count()} GPUs "
            "of this machine, numbered from 0"
        )


def fit_device(cfg: CfgNode) -> None:
    """Set MODEL.DEVICE to the CPU, and log it, if there is no GPU.

    A GPU with an index becomes the current device, as streams, events and random states are per
    GPU.

    Raises:
        InputError: see :func:`check_device`.
    """
    check_device(cfg)
    if not _wants_gpu(cfg) and cfg.MODEL.DEVICE != "cpu":
        logger.info(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but no GPU was found: using the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if ":" in cfg.MODEL.DEVICE:
        torch.cuda.set_device(cfg.MODEL.DEVICE)


def _fit_to_machine(cfg: CfgNode) -> None:
    fit_device(cfg)
    num_workers, cores = count_workers(cfg.DATALOADER.NUM_WORKERS), count_cores()
    if num_workers != cfg.DATALOADER.NUM_WORKERS:
        logger.info(f"DATALOADER.NUM_WORKERS is set to {num_workers} on {cores} cores")
        cfg.DATALOADER.NUM_WORKERS = num_workers
    share_cores(cfg)


def share_cores(cfg: CfgNode) -> None:
    """Divide the CPU threads equally among the processes of this machine."""
    if cfg.MODEL.DEVICE == "cpu" and comm.get_local_size() > 1:
        torch.set_num_threads(max(1, count_cores() // comm.get_local_size()))


def _wants_gpu(cfg: CfgNode) -> bool:
    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()


def checked_config(args: argparse.Namespace) -> LesionConfig:
    """Load and check a run's config before its processes start or join, and do the same again.

    Their main process logs the warnings, so that these are only logged here on an error.

    Raises:
        InputError: see :func:`load_config` and :func:`check_inputs`.
    """
    with _held_records("lesion_d2.config", f"{__package__}.checks", "lesion_d2.data"):
        cfg = load_config(args)
        check_inputs(cfg, args)
    return cfg


def prepare_launch(args: argparse.Namespace) -> None:
    """Check the inputs of a run of several processes before they start.

    Otherwise an error would be shown as a traceback of one of them.

    Raises:
        InputError: see :func:`check_inputs`, :func:`check_free` and :func:`prepare_processes`.
    """
    if args.num_gpus * args.num_machines <= 1:
        return
    cfg = checked_config(args)
    if args.machine_rank == 0:
        check_free(_held_folder(cfg, args))
    prepare_processes(cfg, args.num_gpus)


def prepare_processes(cfg: CfgNode, number: int) -> None:
    """Check that there are GPUs for the processes that ``launch`` starts on this machine.

    For a run on the CPU, GPUs are hidden from them, because ``launch`` selects the communication
    backend by the presence of a GPU.

    Raises:
        InputError: there are fewer GPUs, or MODEL.DEVICE is a single GPU.
    """
    if not _wants_gpu(cfg):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    check_shared_device(cfg.MODEL.DEVICE, number)
    if number > torch.cuda.device_count():
        raise InputError(
            f"found --num-gpus {number}, expected at most the {torch.cuda.device_count()} "
            "GPUs of this machine"
        )


def check_shared_device(device: str, number: int) -> None:
    """Check that the processes of a machine can use different GPUs.

    Args:
        device: MODEL.DEVICE.
        number: number of processes on this machine.

    Raises:
        InputError: MODEL.DEVICE is a single GPU.
    """
    if ":" in device and (number > 1 or device != "cuda:0"):
        raise InputError(
            f"MODEL.DEVICE: found {device!r}, expected 'cuda': each of several processes uses a "
            "different GPU"
        )


def finish_run() -> None:
    """Wait for all processes of a run, then close their connection and its threads.

    Otherwise, a process that returns while the main one still evaluates exits with an open
    connection. A connection thread that outlives the interpreter occasionally aborts its process,
    and ``launch`` then kills the others. The threads end with the last reference to the process
    group, so call this when no trainer or distributed model is left. It also releases OUTPUT_DIR.
    """
    if dist.is_available() and dist.is_initialized():
        comm.synchronize()
        comm._get_global_gloo_group.cache_clear()  # both refer to process groups
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()
        gc.collect()  # DistributedDataParallel is part of reference cycles
    release_output()
