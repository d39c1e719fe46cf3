"""Checks of the weights that a run starts from."""

import argparse
import os

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint_files import last_checkpoint
from ..checkpoint_files.best_checkpoints import checkpoint_files
from ..checkpoint_files.checkpointer import check_weights, read_checkpoint
from ..input_errors import InputError, as_input_error
from ..mean_teacher import STUDENT
from ..trainer import Trainer, optimizer_name


def check_run_weights(cfg: CfgNode, args: argparse.Namespace, model: nn.Module) -> None:
    """Check the weight files that a run reads.

    Args:
        cfg, args: config and arguments of the run.
        model: result of :func:`check_model`.

    Raises:
        InputError: a file is missing or does not match the model.
    """
    if args.eval_only and cfg.TEST.ENSEMBLE.CHECKPOINTS:  # MODEL.WEIGHTS is not used
        _check_checkpoints(cfg, model)
        return
    if args.resume and _check_last_checkpoint(cfg, args, model):
        return
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise InputError("--eval-only: found no MODEL.WEIGHTS, expected a checkpoint's path")
    with as_input_error("MODEL.WEIGHTS: "):
        check_weights(cfg.MODEL.WEIGHTS, model, for_training=not args.eval_only)


def _check_checkpoints(cfg: CfgNode, model: nn.Module) -> None:
    with as_input_error("TEST.ENSEMBLE.CHECKPOINTS: "):
        for file in checkpoint_files(cfg.TEST.ENSEMBLE.CHECKPOINTS):
            check_weights(file, model, for_training=False)


def _check_last_checkpoint(cfg: CfgNode, args: argparse.Namespace, model: nn.Module) -> bool:
    """Check the checkpoint to resume from; returns whether there is one."""
    try:
        checkpoint = last_checkpoint(cfg.OUTPUT_DIR)
        if checkpoint is None:
            return False
        check_weights(checkpoint, model, for_training=False)
        if not args.eval_only:
            saved = read_checkpoint(checkpoint)
            _check_student(cfg, checkpoint, saved)
            _check_same_training(cfg, checkpoint, saved, model)
    except (OSError, ValueError) as error:
        tag = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
        raise InputError(
            f"--resume: {error}; {tag} names it: remove {tag}, or start without --resume"
        ) from error
    return True


def _check_student(cfg: CfgNode, checkpoint: str, saved: dict) -> None:
    found, expected = STUDENT in saved, cfg.MODEL.MEAN_TEACHER.ENABLED
    if found != expected:
        of_training = {True: "of a mean teacher's training", False: "of a plain training"}
        raise ValueError(
            f"{checkpoint}: found a checkpoint {of_training[found]}, expected one "
            f"{of_training[expected]} (MODEL.MEAN_TEACHER.ENABLED is {expected})"
        )


def _check_same_training(cfg: CfgNode, checkpoint: str, saved: dict, model: nn.Module) -> None:
    """Check that a resumed run has the same model and optimizer."""
    ours = model.state_dict()
    if not ours:  # the model could not be built beforehand
        return
    others = sorted(name for name in saved["model"] if name.removeprefix("module.") not in ours)
    if others:
        raise ValueError(
            f"{checkpoint}: found {len(others)} weights that the model does not have, such as "
            f"{others[0]}, expected a checkpoint of this config's model"
        )
    if "trainer" not in saved:
        raise ValueError(
            f"{checkpoint}: found weights alone, expected a checkpoint with the state of its "
            "training"
        )
    state = saved["trainer"]["_trainer"]["optimizer"]
    found, expected = optimizer_name(state), cfg.SOLVER.OPTIMIZER
    if found != expected:
        raise ValueError(
            f"{checkpoint}: found a checkpoint of a training by {found}, expected one by "
            f"{expected} (SOLVER.OPTIMIZER)"
        )
    sizes, ours = (
        [len(group["params"]) for group in groups]
        for groups in (state["param_groups"], Trainer.build_optimizer(cfg, model).param_groups)
    )
    if sizes != ours:
        raise ValueError(
            f"{checkpoint}: found an optimizer with groups of {sizes} parameters, expected {ours}: "
            "learning rates or decays of this config (SOLVER), or what is frozen, are others"
        )
