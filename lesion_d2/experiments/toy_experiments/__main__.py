"""Run the toy experiments (Jaeger et al., section 4.6), and draw Figure 5.

python datasets/prepare_toys.py
python -m lesion_d2.experiments.toy_experiments                      # the paper's grid, for a GPU
python -m lesion_d2.experiments.toy_experiments --small --jobs 2     # small models, for CPUs
python -m lesion_d2.experiments.toy_experiments --plot-only

Six models are trained on three tasks with five numbers of images and three seeds each, by
train_net.py with configs/toys/MODEL.yaml (with --small MODEL_small.yaml), and tested; the score is
the mAP at an IoU of 0.1. With TEST.NUM_BEST_CHECKPOINTS, the ensemble (TEST.ENSEMBLE) of the best
checkpoints on the validation set is tested, otherwise the last checkpoint. A run is in
OUTPUT/TASK/MODEL/N/seed_SEED, and has finished if its result.json exists. Running this again after
an interruption reuses finished runs and resumes the others. Runs with other options, or with
configs that have changed, are refused.

Written to OUTPUT: figure5.csv and figure5.png, of all existing results, so a call with --seeds 4
adds to them. Printed: means and standard deviations over seeds, and the differences of the paper's
claims, paired by seed. The exit status is 1 if a run failed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lesion_d2.config.old_keys import rename_in_list
from lesion_d2.engine import load_config
from lesion_d2.tools.common.arguments import config_options, key_value_pairs, positive
from lesion_d2.tools.common.run_files import check_datasets
from lesion_d2.tools.common.trainings import collected

from detectron2.config import CfgNode

from .figure import plot_figure
from .grid import (
    ALL_IMAGES,
    MODELS,
    SIZES,
    TASKS,
    Result,
    Run,
    config_file,
    find_axes,
    make_grid,
    read_datasets,
    read_settings,
)
from .report import (
    TASK_LABELS,
    claim_tables,
    collect_scores,
    figure_title,
    model_table,
    write_csv,
)
from .running import find_program, run_all


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(
        prog="lesion_d2.experiments.toy_experiments", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--small", action="store_true", help="small models, for CPUs")
    _add_axis(parser, "--models", MODELS, choices=MODELS, metavar="MODEL")
    _add_axis(parser, "--tasks", TASKS, choices=TASKS, metavar="TASK")
    _add_axis(parser, "--sizes", SIZES, type=positive, metavar="N", text="training images: ")
    _add_axis(parser, "--seeds", (1, 2, 3), type=positive, metavar="SEED")
    parser.add_argument(
        "--output", type=Path, help="output folder (default: output/toys, or output/toys_small)"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="trainings at a time (default: 1)")
    parser.add_argument(
        "--test-images",
        type=positive,
        default=ALL_IMAGES,
        metavar="N",
        help=f"test on the first N images only (default: {ALL_IMAGES}, all)",
    )
    parser.add_argument(
        "--plot-only", action="store_true", help="only draw the figure and print the tables"
    )
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)  # in place of train_net.py
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options"
    )
    return parser


def _add_axis(
    parser: argparse.ArgumentParser, name: str, default: Sequence, *, text: str = "", **options: Any
) -> None:
    """Add an axis of the grid, whose help lists its default."""
    text = f"{text}default: {' '.join(map(str, default))}"
    parser.add_argument(name, nargs="+", default=default, help=text, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write and print; returns the exit status."""
    args = get_parser().parse_args(argv)
    output = args.output or Path("output/toys_small" if args.small else "output/toys")
    failures: list[str] = []
    with collected(failures):
        opts = rename_in_list(config_options(args.opts))
        program, configs = find_program()
        cfg = _config_of(configs / config_file(args.models[0], args.small), opts)
        kind = {"num_test": args.test_images, "small": args.small, "opts": opts}
        kind["tests_best"] = cfg.TEST.NUM_BEST_CHECKPOINTS > 0
        grid = partial(make_grid, output, read_settings(configs, args.small), **kind)
        read_results(grid(**find_axes(output)))  # refuses before hours of training
        if not args.plot_only:
            axes = {name: getattr(args, name) for name in ("models", "tasks", "sizes", "seeds")}
            runs = grid(**axes)
            failures += run_missing(runs, args.program or program, configs, args.jobs)
        report(output, grid, configs)
    print("\n".join(failures), end="\n" if failures else "", file=sys.stderr)
    return 1 if failures else 0


def read_results(runs: Sequence[Run]) -> dict[Run, Result]:
    """The existing results.

    Raises:
        ValueError: a run has other options.
    """
    return {run: result for run in runs if (result := run.result()) is not None}


def run_missing(runs: Sequence[Run], program: Path, configs: Path, jobs: int) -> list[str]:
    """Run the runs without a result; returns a line for each that failed.

    Raises:
        FileNotFoundError: a data set is missing.
        ValueError: a run has other options, or a data set has too few images.
    """
    done = read_results(runs)
    missing = [run for run in runs if run not in done]
    check_datasets(read_datasets(missing))
    return run_all(missing, program, configs, jobs=jobs, done=len(done))


def report(output: Path, grid: Callable[..., list[Run]], configs: Path) -> None:
    """Write the CSV file and the figure of all results, and print the tables.

    Args:
        output: the grid's folder.
        grid: returns the runs of axes.
        configs: the folder of the runs' configs.

    Raises:
        ValueError: there is no result, or one has other options.
    """
    axes = find_axes(output)
    runs = grid(**axes)
    results = read_results(runs)
    if not results:
        raise ValueError(f"{output}: found no result of this tool, expected at least one")
    print(f"{len(results)} of {len(runs)} runs have a result.")
    scores = collect_scores(results)
    tasks, models, sizes = axes["tasks"], axes["models"], axes["sizes"]
    for task in tasks:
        print(f"\n{TASK_LABELS[task]}: {task}\n")
        print(model_table(scores, task, models, sizes))
    for heading, table in claim_tables(scores, tasks, models, sizes):
        print(f"\n{heading}\n\n{table}")
    run = runs[0]
    title = figure_title(runs, len(results), _config_of(configs / run.config, run.opts))
    write_csv(results, output / "figure5.csv")
    plot_figure(scores, tasks, models, sizes, output / "figure5.png", title=title)
    print(f"\n{output / 'figure5.csv'}\n{output / 'figure5.png'}")


def _config_of(file: Path, opts: Sequence[str]) -> CfgNode:
    key_value_pairs(opts)
    return load_config(argparse.Namespace(config_file=str(file), opts=[*opts]))


if __name__ == "__main__":
    sys.exit(main())
