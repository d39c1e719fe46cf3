"""Run the experiments of Table 1 (Jaeger et al., section 4.4) at a small size, and print it.

python datasets/prepare_phantom.py --preset quickstart-v1 --root /data/phantom_source \\
    --extent-mm 20 --distractors 1
python -m lesion_d2.tools.import_data phantom /data/phantom_source \\
    --output $DETECTRON2_DATASETS/phantom_3d --classes lung=5 other=1,2,3,4,6,7,8 --resample 2 2 3
python -m lesion_d2.experiments.volume_experiments --jobs 2
python -m lesion_d2.experiments.volume_experiments --jobs 2 --seeds 2 3 \\
    --models retina_unet retinanet
python -m lesion_d2.experiments.volume_experiments --table-only

Five models in 3-D, on slices with their neighbors as channels (2Dc) and on slices (2D) are trained
by train_net.py on DATASET_volumes_train with configs/retina_unet/small/DIMENSION/MODEL.yaml, and
then tested in 3-D on DATASET_volumes_test: mAP at an IoU of 0.1, AP per patient, and FROC. With
--split val they are tested on the validation patients, for instance to choose iterations.

A run is in OUTPUT/DIMENSION/MODEL/seed_SEED, and has finished if its result.json exists. Running
this again after an interruption reuses finished runs and resumes the others. Runs with other
options, or with configs that have changed, are refused.

Written to OUTPUT: table1.csv, one line per run, and table1.md, which is also printed: the table of
all results with the paper's, and the differences of the paper's claims, paired by seed. The exit
status is 1 if a run failed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from lesion_d2.config.old_keys import rename_in_list
from lesion_d2.tools.common.arguments import config_options, positive
from lesion_d2.tools.common.checkout import find_in_checkout
from lesion_d2.tools.common.run_files import check_datasets
from lesion_d2.tools.common.trainings import collected, run_all
from lesion_d2.utils.files import atomic_write

from .grid import DIMENSIONS, MODELS, Run, find_places, make_grid, read_settings
from .report import claim_tables, collect_scores, make_table, write_csv

_CONFIGS = "configs/retina_unet/small"


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(
        prog="lesion_d2.experiments.volume_experiments", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    models, dimensions = (f"default: {' '.join(names)}" for names in (MODELS, DIMENSIONS))
    add("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL", help=models)
    add(
        "--dimensions",
        nargs="+",
        choices=DIMENSIONS,
        default=DIMENSIONS,
        metavar="DIM",
        help=dimensions,
    )
    add("--seeds", nargs="+", type=positive, default=(1,), metavar="SEED", help="default: 1")
    add("--dataset", default="phantom_3d", metavar="NAME", help="volume set (default: phantom_3d)")
    add("--split", default="test", metavar="SPLIT", help="split to test on (default: test)")
    add(
        "--configs",
        type=Path,
        metavar="DIR",
        help=f"folder of DIM/MODEL.yaml (default: {_CONFIGS})",
    )
    add("--output", type=Path, default=Path("output/table1"), help="default: output/table1")
    add("--jobs", type=positive, default=1, help="trainings at a time (default: 1)")
    add("--table-only", action="store_true", help="only print the table")
    add("--program", type=Path, help=argparse.SUPPRESS)  # in place of train_net.py
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write and print; returns the exit status."""
    args = get_parser().parse_args(argv)
    failures: list[str] = []
    with collected(failures):
        run(args, failures)
    print("\n".join(failures), end="\n" if failures else "", file=sys.stderr)
    return 1 if failures else 0


def run(args: argparse.Namespace, failures: list[str]) -> None:
    """:func:`main` for parsed arguments.

    Args:
        failures: a line is appended for each run that failed.

    Raises:
        ValueError, OSError: runs cannot be started or reported.
    """
    configs = args.configs or find_in_checkout(_CONFIGS)
    grid = partial(
        make_grid,
        args.output,
        configs,
        read_settings(configs),
        dataset=args.dataset,
        split=args.split,
        opts=rename_in_list(config_options(args.opts)),
    )
    for run in grid(places=find_places(args.output)):
        run.result()  # refuses before hours of training
    if not args.table_only:
        places = [(d, m, s) for s, m, d in product(args.seeds, args.models, args.dimensions)]
        runs = grid(places=places)
        missing = [run for run in runs if run.result() is None]
        check_datasets(name for run in missing for name in run.datasets)
        program = args.program or find_in_checkout("train_net.py")
        done = len(runs) - len(missing)
        failures += run_all(missing, program, jobs=args.jobs, done=done)
    report(args.output, grid)


def report(output: Path, grid: Callable[..., list[Run]]) -> None:
    """Write and print the tables of all results.

    Args:
        output: the grid's folder.
        grid: returns the runs at positions.

    Raises:
        ValueError: there is no result, or one was made with other options.
    """
    runs = grid(places=find_places(output))
    results = {run: result for run in runs if (result := run.result()) is not None}
    if not results:
        raise ValueError(f"{output}: found no result of this tool, expected at least one")
    iterations = sorted({result.iterations for result in results.values()})
    train, test = runs[0].datasets
    title = f"{len(results)} runs of {' or '.join(map(str, iterations))} iterations"
    parts = [f"{title}, trained on {train}, tested on {test}", make_table(results)]
    for heading, table in claim_tables(collect_scores(results)):
        parts += [heading, table]
    text = "\n\n".join(parts)
    print(text)
    write_csv(results, output / "table1.csv")
    with atomic_write(output / "table1.md") as whole:
        whole.write_text(f"{text}\n")
    print(f"\n{output / 'table1.csv'}\n{output / 'table1.md'}")


if __name__ == "__main__":
    sys.exit(main())
