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
        if args.resume:
            raise InputError(
                "--resume: found TEST.ENSEMBLE.CHECKPOINTS too, expected one of them with "
                "--eval-only"
            )
        with as_input_error("TEST.ENSEMBLE.CHECKPOINTS: "):
            for file in checkpoint_files(cfg.TEST.ENSEMBLE.CHECKPOINTS):
                check_weights(file, model, for_training=False)
        return
    if args.resume and _check_last_checkpoint(cfg, args, model):
        return
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS: found none, expected the weights of a trained model")
    with as_input_error("MODEL.WEIGHTS: "):
        check_weights(cfg.MODEL.WEIGHTS, model, for_training=not args.eval_only)


def _check_last_checkpoint(cfg: CfgNode, args: argparse.Namespace, model: nn.Module) -> bool:
    """Check the checkpoint to resume from; returns whether there is one."""
    try:
        checkpoint = last_checkpoint(cfg.OUTPUT_DIR)
        if checkpoint is None:
            return False
        check_weights(checkpoint, model, for_training=False)
        if not args.eval_only:
            problem = _problem_of(cfg, read_checkpoint(checkpoint), model)
            if problem:
                raise ValueError(f"{checkpoint}: found {problem}")
    except (OSError, ValueError) as error:
        tag = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
        raise InputError(
            f"--resume: {error}; {tag} names it: remove {tag}, or start without --resume"
        ) from error
    return True


def _problem_of(cfg: CfgNode, saved: dict, model: nn.Module) -> str:
    """Describe how a checkpoint's training differs from the run's; "" if it does not."""
    kinds = {True: "a mean teacher's training", False: "a plain training"}
    has_teacher, ours = cfg.MODEL.MEAN_TEACHER.ENABLED, model.state_dict()
    if (STUDENT in saved) != has_teacher:
        return (
            f"a checkpoint of {kinds[not has_teacher]}, expected one of {kinds[has_teacher]} "
            f"(MODEL.MEAN_TEACHER.ENABLED is {has_teacher})"
        )
    if not ours:  # the model could not be built beforehand
        return ""
    others = sorted(name for name in saved["model"] if name.removeprefix("module.") not in ours)
    if others:
        return (
            f"{len(others)} weights that the model does not have, such as {others[0]}, expected a "
            "checkpoint of this config's model"
        )
    if "trainer" not in saved:
        return "weights alone, expected a checkpoint with the state of its training"
    state = saved["trainer"]["_trainer"]["optimizer"]
    found, expected = optimizer_name(state), cfg.SOLVER.OPTIMIZER
    if found != expected:
        return (
            f"a checkpoint of a training by {found}, expected one by {expected} (SOLVER.OPTIMIZER)"
        )
    sizes, expected = (
        [len(group["params"]) for group in groups]
        for groups in (state["param_groups"], Trainer.build_optimizer(cfg, model).param_groups)
    )
    if sizes == expected:
        return ""
    return (
        f"an optimizer with groups of {sizes} parameters, expected {expected}: learning rates or "
        "decays of this config (SOLVER), or what is frozen, are others"
    )
