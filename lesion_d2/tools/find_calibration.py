"""Measure the effect of the calibration strength (MODEL.RETINA_UNET.CALIBRATION) on the FROC curve.

python -m lesion_d2.tools.find_calibration --dataset phantom_val \\
    --config-file configs/improved_retinanet/dense_phantom.yaml \\
    --weights output/improved_retinanet/dense_[1-3]/model_final.pth

Prints the sensitivity at several rates of false positives for each strength: mean and standard
deviation, if several checkpoints of one config are given. Use a validation set.
"""

import argparse
import sys
from collections.abc import Sequence

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions
from lesion_d2.data.loader import build_lesion_test_loader
from lesion_d2.engine import InputError, LesionCheckpointer, Trainer, fit_device, load_config
from lesion_d2.engine.checkpoint_files.checkpointer import load_trained
from lesion_d2.evaluation import froc_curve
from lesion_d2.evaluation.excused import boxes_in_regions
from lesion_d2.modeling import RetinaUNet
from lesion_d2.structures.ignore_regions import region_boxes
from lesion_d2.tools.compare_runs import mean_and_spread
from lesion_d2.utils.errors import run_program
from lesion_d2.visualization import truth_boxes

import numpy as np
import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from tqdm import tqdm

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
RATES = (0.125, 0.25, 0.5, 1, 2, 4)


def calibration_config(args: argparse.Namespace) -> CfgNode:
    """The config, on the available device.

    Raises:
        InputError: as :func:`load_config`, or the model cannot be calibrated.
    """
    cfg = load_config(args)
    if cfg.MODEL.META_ARCHITECTURE != "RetinaUNet":
        raise InputError(
            f"MODEL.META_ARCHITECTURE: found {cfg.MODEL.META_ARCHITECTURE!r}, expected "
            "'RetinaUNet', whose scores can be calibrated"
        )
    fit_device(cfg)
    return cfg


def sensitivities(
    model: RetinaUNet,
    cfg: CfgNode,
    dataset: str,
    strengths: Sequence[float],
    rates: Sequence[float],
) -> np.ndarray:
    """Sensitivity of one model for each strength.

    Args:
        model: in evaluation mode.
        cfg: its config.
        dataset: name of a registered data set.
        strengths: of the calibration.
        rates: false positives per image.

    Returns:
        (len(strengths), len(rates)) shares.
    """
    options = DatasetOptions.from_config(cfg, dataset, "TEST")  # as the loader has
    records = {record["image_id"]: record for record in load_records(dataset, options)}
    seen, boxes, scores = [], [[] for _ in strengths], [[] for _ in strengths]
    for batch in tqdm(build_lesion_test_loader(cfg, dataset), desc=dataset, disable=None):
        seen += [records[sample["image_id"]] for sample in batch]
        for i, strength in enumerate(strengths):
            model.calibration = strength
            with torch.inference_mode():
                found = [output["instances"].to("cpu") for output in model(batch)]
            boxes[i] += [instances.pred_boxes.tensor.numpy() for instances in found]
            scores[i] += [instances.scores.numpy() for instances in found]
    truth, regions = list(map(truth_boxes, seen)), list(map(region_boxes, seen))
    options, curves = {"inclusive": cfg.TEST.INCLUSIVE_BOXES}, []
    for found, given in zip(boxes, scores, strict=True):
        pairs = zip(found, regions, strict=True)
        excused = [boxes_in_regions(*pair, **options) for pair in pairs]
        curves.append(froc_curve(found, given, truth, excused=excused, **options))
    return np.array([curve.at(rates) for curve in curves])


def run(args: argparse.Namespace) -> str:
    """Measure all checkpoints; returns the table."""
    cfg = calibration_config(args)
    cfg.MODEL.SEG_HEAD.PREDICT_MASKS = False
    cfg.MODEL.RETINA_UNET.CALIBRATION = max(args.strengths)
    model, results = Trainer.build_model(cfg).eval(), []
    for weights in args.weights:
        load_trained(LesionCheckpointer(model), weights)
        results.append(sensitivities(model, cfg, args.dataset, args.strengths, args.rates))
    percent = 100 * np.array(results)
    lines = [
        [f"{strength:g}", *map(mean_and_spread, percent[:, i].T)]
        for i, strength in enumerate(args.strengths)
    ]
    headers = ["strength", *(f"{rate:g}" for rate in args.rates)]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 to 1")
    return value


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.find_calibration", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config-file", required=True, help="config of the checkpoints' model")
    parser.add_argument("--weights", nargs="+", required=True, help="checkpoints, one per seed")
    parser.add_argument(
        "--dataset", required=True, help="name of a registered data set, such as phantom_val"
    )
    strengths, rates = (" ".join(f"{value:g}" for value in v) for v in (STRENGTHS, RATES))
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=_share,
        default=STRENGTHS,
        help=f"strengths to compare, 0 to 1 (default: {strengths})",
    )
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=RATES,
        help=f"false positives per image (default: {rates})",
    )
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return the exit code."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: _report(args))


def _report(args: argparse.Namespace) -> None:
    table = run(args)
    print(f"Sensitivity in % at false positives per image; {args.dataset}, checkpoints:", end=" ")
    print(f"{len(args.weights)}\n\n{table}")


if __name__ == "__main__":
    sys.exit(main())
