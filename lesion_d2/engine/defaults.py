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
from .checks.values import Check, check_values
from .input_errors import InputError, as_input_error
from .resuming import check_free, hold_output, release_output
from .solver.schedule import resolve_epochs

logger = logging.getLogger(__name__)

_SEED: Check = ("SEED", lambda v: v < 2**32, "below 2^32, as NumPy has it; below 0 draws one")


def load_config(args: argparse.Namespace) -> LesionConfig:
    """Build the config from the defaults, ``--config-file`` and the ``KEY VALUE`` pairs.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Returns:
        The config, not frozen.

    Raises:
        InputError: a file is missing or not YAML, a key is unknown, a value has another type than
            the default, or there is no such MODEL.DEVICE or SEED.
    """
    cfg = get_lesion_config()
    if args.config_file:
        with as_input_error(f"--config-file {args.config_file}: "):
            cfg.merge_from_file(args.config_file)
    with as_input_error(""):
        cfg.merge_from_list(args.opts or [])
    check_device(cfg)
    check_values(cfg, (_SEED,))
    return cfg


def setup_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check a run's inputs, complete its config and set up logs, folder and seeds.

    Epochs become iterations, the device becomes the CPU where there is no GPU, and the loader gets
    as many workers as there are cores for, see :func:`count_workers`. Nothing is written before the
    inputs are found to be good.

    Args:
        cfg: completed in place, then frozen.
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        InputError: see :func:`check_inputs`; or another training is at work in OUTPUT_DIR, for
            an evaluation alone another one.
    """
    count_as_old()  # what was imported
    with _held_records(f"{__package__}.checks", "lesion_d2.data") as records:
        num_images = check_inputs(cfg, args)
    hold_output(_held_folder(cfg, args))
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="lesion_d2")
    for record in records:  # the checks come before there is a log
        logging.getLogger(record.name).handle(record)
    _fit_to_machine(cfg)
    if not args.eval_only:
        with as_input_error(""):
            resolve_epochs(cfg, num_images)
    cfg.freeze()
    _set_up(cfg, args)
    for name in (detectron2.__name__, "lesion_d2"):
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:  # the file keeps the tracebacks
                handler.addFilter(_is_not_told)


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """As Detectron2's ``default_setup``, which writes the config as YAML six times and reads four.

    A second of pure Python; and in place, so that a full disk would leave half a file.
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
    precision = cfg.get("FLOAT32_PRECISION", "")  # of younger versions of Detectron2
    if precision and torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def _held_folder(cfg: CfgNode, args: argparse.Namespace) -> str:
    """Where no other run of the kind may write; checkpoints are evaluated while a training runs."""
    return os.path.join(cfg.OUTPUT_DIR, "inference") if args.eval_only else cfg.OUTPUT_DIR


@contextmanager
def logged_errors() -> Iterator[None]:
    """Let ``log.txt`` have the traceback of what ends an evaluation, as it has a training's."""
    try:
        yield
    except Exception:
        logger.exception("Exception during evaluation:")
        raise


def _is_not_told(record: logging.LogRecord) -> bool:
    """What ends a run is logged with its traceback; that is too much where one line tells it."""
    return not record.exc_info or told(record.exc_info[1]) is None


@contextmanager
def _held_records(*names: str) -> Iterator[list[logging.LogRecord]]:
    """What loggers and those below them say meanwhile, from INFO on, held back from all handlers.

    Where an error ends it, the warnings are told at once.
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
    """Check that MODEL.DEVICE is the CPU, or a GPU of this machine where it has any.

    Raises:
        InputError: it is something else.
    """
    device = cfg.MODEL.DEVICE
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", device)
    if match is None:
        raise InputError(f"MODEL.DEVICE: found {device!r}, expected 'cpu', 'cuda' or 'cuda:0'")
    if match[1] and torch.cuda.is_available() and int(match[1]) >= torch.cuda.device_count():
        raise InputError(
            f"MODEL.DEVICE: found {device!r}, expected one of the {torch.cuda.device_count()} GPUs "
            "of this machine, which count from 0"
        )


def fit_device(cfg: CfgNode) -> None:
    """Set MODEL.DEVICE to the CPU, and log it, where there is no GPU for it.

    A GPU that is named becomes the current one: streams, events and random states are its own.

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
        logger.info(f"DATALOADER.NUM_WORKERS becomes {num_workers} on {cores} cores")
        cfg.DATALOADER.NUM_WORKERS = num_workers
    share_cores(cfg)


def share_cores(cfg: CfgNode) -> None:
    """Give each of several processes of this machine that work on its CPU as many threads."""
    if cfg.MODEL.DEVICE == "cpu" and comm.get_local_size() > 1:
        torch.set_num_threads(max(1, count_cores() // comm.get_local_size()))


def _wants_gpu(cfg: CfgNode) -> bool:
    return cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()


def prepare_launch(args: argparse.Namespace) -> None:
    """Check the inputs of a run of several processes before they start.

    An error in one of them would come as its traceback.

    Raises:
        InputError: see :func:`check_inputs`, :func:`check_free` and :func:`prepare_processes`.
    """
    if args.num_gpus * args.num_machines <= 1:
        return
    cfg = load_config(args)
    check_inputs(cfg, args)
    if args.machine_rank == 0:
        check_free(_held_folder(cfg, args))
    prepare_processes(cfg, args.num_gpus)


def prepare_processes(cfg: CfgNode, number: int) -> None:
    """Check that there are GPUs for processes that ``launch`` is to start on this machine.

    For a run on the CPU the GPUs are hidden from them, because ``launch`` chooses how they
    communicate by whether there is a GPU.

    Raises:
        InputError: there are fewer GPUs, or MODEL.DEVICE is one for all of them.
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
    """Check that processes of a machine, which take its GPUs in turn, may do so.

    Args:
        device: MODEL.DEVICE.
        number: of processes on this machine.

    Raises:
        InputError: it is one GPU for all of them.
    """
    if ":" in device and (number > 1 or device != "cuda:0"):
        raise InputError(
            f"MODEL.DEVICE: found {device!r}, expected 'cuda': of several processes each has a GPU "
            "of its own"
        )


def finish_run() -> None:
    """Wait until all processes of a run are done, then end their connection and its threads.

    Without it, a process that returns while the main one still evaluates ends with an open
    connection. A thread of the connection that outlives the interpreter aborts its process now and
    then, and ``launch`` then kills the others too. The threads end with the last reference to the
    process group, so call this where no trainer or distributed model is left. Another run may then
    write to OUTPUT_DIR.
    """
    if dist.is_available() and dist.is_initialized():
        comm.synchronize()
        comm._get_global_gloo_group.cache_clear()  # these two hold process groups
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()
        gc.collect()  # DistributedDataParallel is part of reference cycles
    release_output()
