"""Measures peak memory."""

import multiprocessing
import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode


def ignore_meshgrid_warning() -> None:
    """Suppress a warning of torch in Detectron2's anchor generator."""
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)


def peak_memory(work: Callable[[CfgNode], None], cfg: CfgNode) -> float:
    """Peak memory of a function in MiB, in addition to the memory before.

    Args:
        work: a function of a module, which builds the model itself.
        cfg: its argument.
    """
    if cfg.MODEL.DEVICE == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work(cfg)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process has only one peak
        return pool.apply(_peak_resident_memory, (work, cfg, torch.get_num_threads()))


def _peak_resident_memory(work: Callable[[CfgNode], None], cfg: CfgNode, threads: int) -> float:
    torch.set_num_threads(threads)
    ignore_meshgrid_warning()
    before = high_water()
    work(cfg)
    return high_water() - before


def high_water() -> float:
    """Peak resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the parent's peak too on Linux
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
