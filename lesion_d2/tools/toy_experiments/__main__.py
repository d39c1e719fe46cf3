"""Run what is missing of the toy experiments (Jaeger et al., section 4.6), and draw figure 5.

python datasets/prepare_toys.py
python -m lesion_d2.tools.toy_experiments                      # the paper's grid, for a GPU
python -m lesion_d2.tools.toy_experiments --small --jobs 2     # small models, for CPUs
python -m lesion_d2.tools.toy_experiments --plot-only

Six models are trained on three tasks with five numbers of images and three seeds each, by
train_net.py with configs/toys/MODEL.yaml (with --small MODEL_small.yaml), and tested; the score is
the mAP at an IoU of 0.1 at the end of the training. A run lies in OUTPUT/TASK/MODEL/N/seed_SEED and
is done when its result.json is there. Call this again after an interruption: what is done stays,
what was begun is resumed. A run made with other options is refused.

Written to OUTPUT: figure5.csv (all runs) and figure5.png. Printed: means and standard deviations
over seeds, and the differences that the paper's claims are about, paired by seed. Exits with 1
where a run failed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import lesion_d2  # noqa: F401  (makes detectron2 importable)

from .figure import plot_figure
from .grid import ALL_IMAGES, MODELS, SIZES, TASKS, Result, Run, check_datasets, make_grid
from .report import TASK_LABELS, claim_tables, collect_scores, model_table, write_csv
from .running import find_program, run_all


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.toy_experiments", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--small", action="store_true", help="configs of small models, for CPUs")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK")
    parser.add_argument("--sizes", nargs="+", type=_positive, default=SIZES, metavar="N")
    parser.add_argument("--seeds", nargs="+", type=_positive, default=(1, 2, 3), metavar="SEED")
    parser.add_argument(
        "--output", type=Path, help="folder of the grid (output/toys, or output/toys_small)"
    )
    parser.add_argument("--jobs", type=_positive, default=1, help="trainings at a time (1)")
    parser.add_argument(
        "--test-images",
        type=_positive,
        default=ALL_IMAGES,
        metavar="N",
        help=f"test on the first N images alone ({ALL_IMAGES}: all)",
    )
    parser.add_argument("--plot-only", action="store_true", help="run nothing")
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)  # in place of train_net.py
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the configs"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write and print; returns the exit code."""
    args = get_parser().parse_args(argv)
    output = args.output or Path("output/toys_small" if args.small else "output/toys")
    opts = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    failures: list[str] = []
    try:
        runs = make_grid(
            output,
            models=args.models,
            tasks=args.tasks,
            sizes=args.sizes,
            seeds=args.seeds,
            num_test=args.test_images,
            small=args.small,
            opts=opts,
        )
        if not args.plot_only:
            failures = run_missing(runs, args.jobs, args.program)
        report(runs, args)
    except (ValueError, OSError) as error:
        failures.append(f"error: {error}")
    except KeyboardInterrupt:
        failures.append("interrupted: the same command goes on from here")
    print("\n".join(failures), end="\n" if failures else "", file=sys.stderr)
    return 1 if failures else 0


def run_missing(runs: Sequence[Run], jobs: int, program: Path | None = None) -> list[str]:
    """Run those without a result; returns a line for each that failed.

    Raises:
        FileNotFoundError: the program or a data set is missing.
        ValueError: a run was made with other options, or a data set has too few images.
    """
    missing = [run for run in runs if run.result() is None]
    default_program, configs = find_program()
    if missing:
        check_datasets(missing)
    done = len(runs) - len(missing)
    return run_all(missing, program or default_program, configs, jobs=jobs, done=done)


def report(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Write the CSV file and the figure, and print the tables.

    Raises:
        ValueError: no run has a result, or one was made with other options.
    """
    results: dict[Run, Result] = {run: r for run in runs if (r := run.result()) is not None}
    output = runs[0].output
    if not results:
        raise ValueError(f"{output}: found no result of these {len(runs)} runs")
    print(f"{len(results)} of {len(runs)} runs have a result.")
    scores = collect_scores(results)
    for task in args.tasks:
        print(f"\n{TASK_LABELS[task]}: {task}\n")
        print(model_table(scores, task, args.models, args.sizes))
    for heading, table in claim_tables(scores, args.tasks, args.models, args.sizes):
        print(f"\n{heading}\n\n{table}")
    title = "Toy experiments, small grid" if args.small else "Toy experiments"
    title += f": {args.test_images} test images, {len(args.seeds)} seeds"
    if len(results) < len(runs):
        title += f" ({len(results)} of {len(runs)} runs)"
    write_csv(results, output / "figure5.csv")
    plot_figure(scores, args.tasks, args.models, args.sizes, output / "figure5.png", title=title)
    print(f"\n{output / 'figure5.csv'}\n{output / 'figure5.png'}")


if __name__ == "__main__":
    sys.exit(main())
