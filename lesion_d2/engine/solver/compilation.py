"""SOLVER.COMPILE: torch.compile for backbone and head."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn

from ...modeling import ImageStack, MeanTeacher, UNetFPN
from ..input_errors import InputError

# Compilers that torch.compile (on a CPU) and Triton (on a GPU) look for, and the environment
# variable that overrides them.
_COMPILERS = {"cpu": ("CXX", ("g++", "clang++")), "cuda": ("CC", ("gcc", "clang", "cc"))}


def compile_parts(model: nn.Module, **options: object) -> None:
    """Compile the most expensive parts of a training step; weights and names do not change.

    These are the backbone, the decoder of a U-FPN, and the head of a one-stage model or of the RPN,
    whose shapes depend only on the image size. Parts that process lesions and regions, whose number
    changes with every batch, are not compiled.

    Args:
        model: a detector, or a mean teacher with two detectors.
        options: options of :func:`torch.compile`.
    """
    detectors = [model.student, model.teacher] if isinstance(model, MeanTeacher) else [model]
    for detector in detectors:
        for part in _parts(detector):
            part.compile(**options)
        backbone = detector.backbone
        if isinstance(backbone, UNetFPN):  # a method that is called in addition to forward
            backbone.decode = torch.compile(backbone.decode, **options)


def _parts(detector: nn.Module) -> Iterator[nn.Module]:
    backbone = detector.backbone
    # The stack caches features between evaluated slices; this cannot be compiled.
    yield backbone.backbone if isinstance(backbone, ImageStack) else backbone
    proposals = getattr(detector, "proposal_generator", None)  # of two-stage models
    for owner, name in ((detector, "head"), (proposals, "rpn_head")):
        if hasattr(owner, name):
            yield getattr(owner, name)


def check_compiler(cfg: CfgNode) -> None:
    """Check that this machine can compile, if SOLVER.COMPILE is set.

    Raises:
        InputError: a requirement is missing.
    """
    if not cfg.SOLVER.COMPILE:
        return
    on_gpu = cfg.MODEL.DEVICE != "cpu" and torch.cuda.is_available()
    missing = missing_compiler("cuda" if on_gpu else "cpu")
    if missing:
        raise InputError(f"SOLVER.COMPILE: found True, but no {missing}; expected it, or False")


def missing_compiler(device: str) -> str:
    """Return the missing requirement of torch.compile on this machine; "" if there is none.

    Args:
        device: "cpu" or "cuda".
    """
    variable, names = _COMPILERS[device]
    if not any(map(shutil.which, [os.environ[variable]] if os.environ.get(variable) else names)):
        return f"compiler ({variable}, {' or '.join(names)})"
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        return f"{include}/Python.h (package python3-dev)"
    if device == "cuda" and find_spec("triton") is None:
        return "package triton"
    return ""
