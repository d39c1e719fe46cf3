"""Compare weighted box clustering with NMS on the detections of an ensemble.

python -m lesion_d2.tools.compare_consolidation \\
    --config-file configs/quickstart/retina_unet_phantom.yaml DATASETS.TEST "('phantom_test',)" \\
    TEST.ENSEMBLE.CHECKPOINTS "('output/quickstart_v1/best',)" OUTPUT_DIR output/consolidation

The views are those of TEST.ENSEMBLE: models x tiles x mirrors. They are run once on DATASETS.TEST,
and their detections are consolidated in both ways. The baseline is the first model on the image
without mirroring. The table and OUTPUT_DIR/results.json have median times in ms per image: of the
views, and of the consolidation. Each line's evaluation is in a separate folder of OUTPUT_DIR.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.config import FROC_RATES
from lesion_d2.engine import Trainer, load_config, load_model, setup_run
from lesion_d2.engine.predictors.ensembles import as_evaluated
from lesion_d2.inference import Ensemble
from lesion_d2.inference.ensemble import CONSOLIDATIONS, consolidate
from lesion_d2.utils.errors import run_program
from lesion_d2.utils.files import without_nan, write_json

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from tqdm import tqdm

_PROGRAM = "lesion_d2.tools.compare_consolidation"
_BASE_LINE = "first model"
_SENSITIVITIES = tuple(f"sens@{rate:g}" for rate in FROC_RATES)
#: Columns of the table, by the task of the evaluator's results: slices or volumes.
METRICS = {
    "bbox": ("AP10", "AP50"),
    "froc": _SENSITIVITIES,
    "volume": ("AP10", *_SENSITIVITIES),
}


def compare(cfg: CfgNode, ensemble: Ensemble, dataset: str) -> list[dict]:
    """Evaluate the consolidations of an ensemble, and its first model, on one data set.

    Args:
        cfg: of the run; files are written to folders in its OUTPUT_DIR.
        ensemble: predicts the views.
        dataset: name of a registered data set.

    Returns:
        One dict per line of the table: ``name``, ``metrics`` (by "task/metric", those of METRICS
        that the evaluator returns, in percent), ``detections`` (per image), ``views_ms``,
        ``consolidation_ms`` (None for the first model).
    """
    evaluators = {name: _evaluator(cfg, name, dataset) for name in (_BASE_LINE, *CONSOLIDATIONS)}
    counts = {name: 0 for name in evaluators}
    views_ms: dict[str, list[float]] = {name: [] for name in evaluators}
    consolidation_ms: dict[str, list[float]] = {name: [] for name in CONSOLIDATIONS}
    loader = Trainer.build_test_loader(cfg, dataset)
    timed = partial(time_call, torch.device(cfg.MODEL.DEVICE))
    alone = as_evaluated(cfg, ensemble.models[0])
    options = {
        "iou_threshold": ensemble.iou_threshold,
        "max_detections": ensemble.max_detections,
    }
    for batch in tqdm(loader, desc=dataset, disable=None):
        for sample in batch:
            found, plain_ms = timed(alone, [sample])
            outputs = {_BASE_LINE: found[0]["instances"]}
            views_ms[_BASE_LINE].append(plain_ms)
            detections, shared_ms = timed(ensemble.views, sample)
            for method in CONSOLIDATIONS:
                outputs[method], ms = timed(consolidate, detections, method, **options)
                views_ms[method].append(shared_ms)
                consolidation_ms[method].append(ms)
            for name, instances in outputs.items():
                evaluators[name].process([sample], [{"instances": instances}])
                counts[name] += len(instances)
    num_images = len(views_ms[_BASE_LINE])
    return [
        {
            "name": name,
            "metrics": _metrics(evaluator.evaluate()),
            "detections": counts[name] / num_images,
            "views_ms": statistics.median(views_ms[name]),
            "consolidation_ms": (
                statistics.median(consolidation_ms[name]) if name in consolidation_ms else None
            ),
        }
        for name, evaluator in evaluators.items()
    ]


def _evaluator(cfg: CfgNode, name: str, dataset: str):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / name.replace(" ", "_"))
    evaluator = Trainer.build_evaluator(cfg, dataset)
    evaluator.reset()
    return evaluator


@torch.no_grad()
def time_call(
    device: torch.device, function: Callable, *args: Any, **kwargs: Any
) -> tuple[Any, float]:
    """Call a function, and wait for the device: its result, and milliseconds."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, 1000 * (time.perf_counter() - start)


def _metrics(results: dict[str, dict[str, float]]) -> dict[str, float | None]:
    found = {}
    for task, metric in ((t, m) for t, metrics in METRICS.items() for m in metrics):
        if task in results:
            value = results[task].get(metric, math.nan)
            found[f"{task}/{metric}"] = value if math.isfinite(value) else None  # JSON has no NaN
    return found


def make_table(lines: Sequence[dict]) -> str:
    """The lines of :func:`compare` as a Markdown table."""
    metrics = [name.split("/")[1] for name in lines[0]["metrics"]]
    headers = ["", *metrics, "detections", "views ms", "joining ms"]
    cells = [
        [
            line["name"],
            *line["metrics"].values(),
            line["detections"],
            line["views_ms"],
            line["consolidation_ms"],
        ]
        for line in lines
    ]
    return tabulate(cells, headers, tablefmt="pipe", floatfmt=".1f", missingval="")


def run(args: argparse.Namespace) -> str:
    """Compare on all data sets of DATASETS.TEST; returns the text to print.

    Raises:
        InputError: as :func:`load_config` and :func:`setup_run`.
    """
    cfg = load_config(args)
    cfg.TEST.ENSEMBLE.ENABLED = True
    setup_run(cfg, args)
    ensemble = load_model(cfg)
    tables = {name: compare(cfg, ensemble, name) for name in cfg.DATASETS.TEST}
    content = {
        "num_models": len(ensemble.models),
        **ensemble.view_options,
        "iou_threshold": ensemble.iou_threshold,
        "max_detections": ensemble.max_detections,
        "datasets": tables,
    }
    write_json(Path(cfg.OUTPUT_DIR) / "results.json", without_nan(content), indent=1)
    views = _describe_views(ensemble)
    return "\n\n".join(f"{name}: {views}\n\n{make_table(table)}" for name, table in tables.items())


def _describe_views(ensemble: Ensemble) -> str:
    number, options = len(ensemble.models), ensemble.view_options
    mirrors = f", {ensemble.num_mirrors} mirrors" if options["mirrors"] else ""
    sides = options["tile_size"]
    size = " x ".join(map(str, sides)) if isinstance(sides, tuple) else sides
    tiles = f", tiles of {size} {'voxels' if ensemble.num_axes == 3 else 'pixels'}" if size else ""
    return f"{number} model{'s' * (number > 1)}{mirrors}{tiles}"


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config-file", required=True, help="config of the checkpoints' model")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    parser.set_defaults(eval_only=True, resume=False, num_gpus=1, num_machines=1)  # as train_net.py
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the tables, and return the exit code."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: print(run(args)), _PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
