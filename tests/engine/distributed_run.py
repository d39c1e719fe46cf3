"""What each process of ``test_distributed.py`` does."""

import argparse
import json

from lesion_d2.engine import LesionCheckpointer, Trainer, finish_run

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tiny_run import tiny_args

import train_net

# Lesions' anchors in a batch of the tiny run, about: what the normalizer settles at.
_SETTLED = 80.0


def run_args(output_dir, **changes) -> argparse.Namespace:
    """The command line of a tiny run with plain gradient descent and two sets to evaluate on."""
    return tiny_args(
        output_dir,
        SOLVER__OPTIMIZER="SGD",
        SOLVER__BASE_LR=0.01,
        SOLVER__WARMUP_ITERS=0,
        TEST__NUM_BOOTSTRAP=20,
        DATASETS__TEST=("phantom_val", "phantom_test"),
        **changes,
    )


def train(args: argparse.Namespace, file: str) -> None:
    """Train with each way to start the loss's normalizer; write the curves of the total loss."""
    cfg = train_net.setup(args)
    curves = {}
    for normalizer, num_iterations in (("constant", 6), ("settled", 8), ("detectron2", 50)):
        curves[normalizer] = _curve(_configure(cfg, normalizer, num_iterations), normalizer)
    if comm.is_main_process():
        with open(file, "w") as out:
            json.dump(curves, out)


def _configure(cfg: CfgNode, normalizer: str, num_iterations: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = num_iterations
    cfg.DATASETS.TEST = ()
    if normalizer == "constant":  # soft Dice over a part of the batch is another loss: without it
        cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT = 0.0
    seed_all_rng(cfg.SEED + comm.get_rank())
    return cfg


def _curve(cfg: CfgNode, normalizer: str) -> list[float]:
    trainer = Trainer(cfg)
    model = getattr(trainer.model, "module", trainer.model)
    share = 1 / comm.get_world_size()
    if normalizer == "constant":
        model._ema_update = lambda name, value, initial_value: _SETTLED * share
    elif normalizer == "settled":
        model.loss_normalizer = _SETTLED * share
    trainer.train()
    if not comm.is_main_process():  # the means over the processes are there
        return []
    return [loss for loss, _ in trainer.storage.history("total_loss").values()]


def evaluate(args: argparse.Namespace, file: str) -> None:
    """Evaluate MODEL.WEIGHTS; write the results."""
    cfg = train_net.setup(args)
    model = Trainer.build_model(cfg)
    LesionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        with open(file, "w") as out:
            json.dump(results, out)


def share_statistics(output_dir, file: str) -> None:
    """Train with BatchNorm; write each process's running statistics before and after a test."""
    args = run_args(output_dir, MODEL__RESNETS__NORM="BN", SOLVER__MAX_ITER=2)
    cfg = _configure(train_net.setup(args), "settled", 2)
    trainer = Trainer(cfg)
    trainer.after_train = lambda: None  # it tests
    trainer.train()
    statistics = [comm.all_gather(_running_statistics(trainer.model))]
    Trainer.test(cfg, trainer.model)
    statistics.append(comm.all_gather(_running_statistics(trainer.model)))
    if comm.is_main_process():
        with open(file, "w") as out:
            json.dump(statistics, out)


def _running_statistics(model) -> list[float]:
    return [
        value
        for name, buffer in model.named_buffers()
        if "running" in name
        for value in buffer.tolist()
    ]


def train_and_evaluate(train_args, curves: str, evaluate_args, results: str, folder: str) -> None:
    """All that two processes do, so that they start only once."""
    train(train_args, curves)
    evaluate(evaluate_args, results)
    share_statistics(folder, f"{folder}/statistics")
    finish_run()
