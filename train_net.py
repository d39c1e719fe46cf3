#!/usr/bin/env python
"""Train or evaluate a model of this project, like Detectron2's tools/train_net.py.

Train, and resume after an interruption:

    python train_net.py --config-file configs/quickstart/retina_unet_clinical.yaml
    python train_net.py --config-file configs/quickstart/retina_unet_clinical.yaml --resume

Evaluate a checkpoint on another split:

    python train_net.py --config-file configs/quickstart/retina_unet_clinical.yaml --eval-only \\
        MODEL.WEIGHTS output/quickstart/model_best.pth DATASETS.TEST "('phantom_clinical_test',)"

Evaluate the ensemble of the best checkpoints of a training with TEST.NUM_BEST_CHECKPOINTS:

    python train_net.py --config-file configs/quickstart/retina_unet_clinical.yaml --eval-only \\
        TEST.ENSEMBLE.ENABLED True TEST.ENSEMBLE.CHECKPOINTS "('output/quickstart/best',)" \\
        DATASETS.TEST "('phantom_clinical_test',)"

Several GPUs, or several processes on the CPU (with MODEL.DEVICE cpu): --num-gpus 2, or

    torchrun --nproc-per-node 2 train_net.py --config-file ...

On a cluster: srun ... python train_net.py --dist-url env:// --config-file ... (docs/clusters.md).
"""

import argparse
import sys

from lesion_d2.engine import (
    Trainer,
    finish_run,
    launch_run,
    load_config,
    load_model,
    logged_errors,
    setup_run,
)
from lesion_d2.utils.errors import interruptible, run_program

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm


def setup(args: argparse.Namespace) -> CfgNode:
    """Create the config and do the basic setup of a run."""
    cfg = load_config(args)
    setup_run(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> dict | None:
    """Train, or evaluate with ``--eval-only``; runs in every process."""
    with interruptible():  # with several processes, each ends its own loader workers, too
        results = run(args)
        finish_run()
    return results


def run(args: argparse.Namespace) -> dict | None:
    """Like :func:`main` without ``finish_run``, which needs trainer and model to be deleted."""
    cfg = setup(args)
    if args.eval_only:
        with logged_errors():
            model = load_model(cfg, resume=args.resume)
            results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train()
    return results


def start(args: argparse.Namespace) -> None:
    """Start the processes of a run and wait for them, or run as a process of a launcher."""
    launch_run(main, args)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    sys.exit(run_program(lambda: start(args), "train_net.py"))
