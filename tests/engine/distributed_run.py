"""What each process of ``test_distributed.py`` does."""

import argparse
import hashlib
import json
import os
from functools import partial
from pathlib import Path

from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.engine import Trainer, finish_run, launch_run, load_model
from lesion_d2.engine.mean_teacher import MeanTeacherHook
from lesion_d2.engine.processes import unwrap

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from made_up_run import MadeUpRun
from tiny_run import stopping_args, tiny_args
from torch import nn

import train_net

# Lesions' anchors in a batch of the tiny run, about: what the normalizer settles at.
_SETTLED = 80.0

MADE_UP_VALUES = [1.0, 2.0, 2.0, 1.0, 3.0, float("nan"), 3.0, 2.0, 1.0, 5.0]
MADE_UP_CHECKPOINT = "model_0000003.pth"  # its evaluation lowers the learning rate


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
    for normalizer, num_iterations in (("constant", 4), ("settled", 5), ("detectron2", 12)):
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
    else:  # which it forgets in some ten iterations, in place of Detectron2's forty
        model._ema_update = partial(model._ema_update, momentum=0.5)
    trainer.train()
    if not comm.is_main_process():  # the means over the processes are there
        return []
    return [loss for loss, _ in trainer.storage.history("total_loss").values()]


def evaluate(args: argparse.Namespace, file: str) -> None:
    """Evaluate MODEL.WEIGHTS, and the ensemble of its mirrored views; write the results."""
    cfg = train_net.setup(args)
    results = {"model": Trainer.test(cfg, load_model(cfg))}
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.ENSEMBLE.ENABLED = True
    cfg.OUTPUT_DIR += "/ensemble"
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    results["ensemble"] = Trainer.test(cfg, load_model(cfg))
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


def run_made_up(folder: str, values: list[float], resume_from: str) -> None:
    """Train with made-up evaluations, then again from a checkpoint; write what each process did."""
    runs = [MadeUpRun(Path(folder), values, saves=True).run()]
    if comm.is_main_process():
        (Path(folder) / "last_checkpoint").write_text(resume_from)
    comm.synchronize()
    runs.append(MadeUpRun(Path(folder), values).run(resume=True))
    found = comm.all_gather(
        [
            {
                "rates": {str(iteration): rates for iteration, rates in run.rates.items()},
                "iter": run.iter,
                "hooks": [hook.state_dict() for hook in run.late],
            }
            for run in runs
        ]
    )
    if comm.is_main_process():
        (Path(folder) / "made_up").write_text(json.dumps(found))


def stop_early(output_dir: str) -> None:
    """Train until the early stop, and resume; write what each process ends with."""
    found = []
    for flags in ((), ("--resume",)):
        cfg = train_net.setup(stopping_args(output_dir, *flags, TEST__NUM_BEST_CHECKPOINTS=2))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=bool(flags))
        trainer.train()
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        found.append(comm.all_gather([trainer.iter, rates, trainer.scheduler.base_lrs]))
    if comm.is_main_process():
        (Path(output_dir) / "stopped").write_text(json.dumps(found))


def resume_alike(output_dir: str) -> None:
    """Train, and once more from the first checkpoint; write what each process ends with."""
    options = {
        "SOLVER__MAX_ITER": 3,
        "SOLVER__CHECKPOINT_PERIOD": 1,
        "SOLVER__CHECKPOINT_MAX_TO_KEEP": 0,
    }
    found = []
    for flags in ((), ("--resume",)):
        args = tiny_args(output_dir, *flags, DATASETS__TEST=(), TEST__EVAL_PERIOD=0, **options)
        trainer = Trainer(train_net.setup(args))
        trainer.resume_or_load(resume=bool(flags))
        trainer.train()
        model = unwrap(trainer.model)
        ended = [trainer.start_iter, _digest(model), float(model.loss_normalizer)]
        found.append(comm.all_gather(ended))
        if comm.is_main_process():
            (Path(output_dir) / "last_checkpoint").write_text("model_0000000.pth")
        comm.synchronize()
    if comm.is_main_process():
        (Path(output_dir) / "ended").write_text(json.dumps(found))


def train_and_evaluate(train_args, curves: str, evaluate_args, results: str, folder: str) -> None:
    """All that two processes do, so that they start only once."""
    train(train_args, curves)
    evaluate(evaluate_args, results)
    share_statistics(folder, f"{folder}/statistics")
    run_made_up(f"{folder}/made_up_run", MADE_UP_VALUES, MADE_UP_CHECKPOINT)
    stop_early(f"{folder}/stopped_run")
    resume_alike(f"{folder}/resumed_run")
    finish_run()
    (Path(folder) / f"threads_{os.getpid()}").write_text(json.dumps(_thread_names()))


def _thread_names() -> list[str]:
    return [
        (task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")
    ]  # of the system's threads, not only of Python's


def mine_hard_negatives(args: argparse.Namespace, file: str) -> None:
    """Train two iterations with a mining between; write each process's set."""
    _mine_and_write(args, file)
    finish_run()


def _mine_and_write(args: argparse.Namespace, file: str) -> None:
    trainer = Trainer(train_net.setup(args))
    trainer.train()
    state = trainer.state_dict()["hooks"]["HardNegativeMiningHook"]
    counts = {name: len(found) for name, found in state["negatives"].items()}
    states = comm.all_gather({**state, "counts": counts})
    if comm.is_main_process():
        Path(file).write_text(json.dumps(states))


def _digest(model: nn.Module) -> str:
    """Of all weights and buffers, bit for bit."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def train_mean_teacher(args: argparse.Namespace, file: str) -> None:
    """Train; write each process's images, teacher and student, and their pseudo-labels."""
    _train_mean_teacher(args, file)
    finish_run()


def launch_mean_teacher(args: argparse.Namespace, file: str) -> None:
    """As ``train_net.py`` does it in a process of torchrun."""
    launch_run(partial(train_mean_teacher, file=file), args)


def _train_mean_teacher(args: argparse.Namespace, file: str) -> None:
    trainer = Trainer(train_net.setup(args))
    images = []
    trainer.model.register_forward_pre_hook(
        lambda model, inputs: images.extend(sample["image_id"] for sample in inputs[0])
    )
    trainer.train()
    model = unwrap(trainer.model)
    found = {part: _digest(getattr(model, part)) for part in ("teacher", "student")}
    found |= {"images": images, "logged": _log_pseudo_labels(trainer)}
    states = comm.all_gather(found)
    if comm.is_main_process():
        Path(file).write_text(json.dumps(states))


def _log_pseudo_labels(trainer: Trainer) -> dict[str, float]:
    """What a hook logs of the pseudo-labels of all processes; it updates the teacher once more."""
    hook = MeanTeacherHook(period=1)
    hook.trainer = trainer
    with trainer.storage:
        hook.after_step()
    latest = trainer.storage.latest()
    return {k: v for k, (v, _) in latest.items() if k.startswith("mean_teacher/")}


def train_volumes(root: str, name: str, args, evaluated, file: str) -> None:
    """Train a model of volumes, then evaluate another; write each process's sum of its weights."""
    register_volume_set(root, name)
    cfg = train_net.setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = _sum_of_weights(trainer.model)
    batch = next(iter(trainer.loader))
    trainer.after_train = lambda: None  # it tests
    trainer.train()
    found = {
        "before": before,
        "weights": _sum_of_weights(trainer.model),
        "volumes": [sample["image_id"] for sample in batch],
    }
    sums = comm.all_gather(found)
    cfg = train_net.setup(evaluated)
    Trainer.test(cfg, load_model(cfg))
    if comm.is_main_process():
        with open(file, "w") as out:
            json.dump(sums, out)


def _sum_of_weights(model: nn.Module) -> float:
    return sum(float(p.double().abs().sum()) for p in unwrap(model).parameters())
