"""Split the patients of a volume set, or make folds for a cross-validation.

python -m lesion_d2.tools.split_data mine                      # mine_train, mine_val, mine_test
python -m lesion_d2.tools.split_data mine --folds 5 --seed 0   # mine_fold0_train and so on

No patient is in two splits. Splits are stratified by the classes and sizes of lesions, and by
patients without lesions. Existing splits are kept unless --overwrite is given.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.volume_set.form import VolumeSet
from lesion_d2.data.volume_set.splits import describe_strata, write_splits
from lesion_d2.utils.errors import run_program

import numpy as np
from tabulate import tabulate

from .common.arguments import add_shares, data_set_folder, positive, seed

_PROGRAM = "lesion_d2.tools.split_data"


def make_table(volume_set: VolumeSet, splits: Mapping[str, Sequence[str]], label: str = "") -> str:
    """The numbers of patients and lesions in each split, as a Markdown table."""
    patients = sorted({volume.patient for volume in volume_set.volumes})
    names, counts = describe_strata(volume_set)
    rows = [
        [split, *counts[np.isin(patients, list(chosen))].sum(axis=0)]
        for split, chosen in splits.items()
    ]
    rows.append(["all", *counts.sum(axis=0)])
    return tabulate(
        [[name, *column] for name, *column in zip([label, *names], *rows, strict=True)][1:],
        [label, *(row[0] for row in rows)],
        tablefmt="pipe",
    )


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the data set in $DETECTRON2_DATASETS, or its folder")
    add("--folds", type=positive, metavar="K", help="make K folds, and keep the splits")
    add("--seed", type=seed, default=0, metavar="N", help="seed of the split (default: 0)")
    add_shares(add, "percentages of patients (default: 60 20 20); in folds, test is 1 / K")
    add("--overwrite", action="store_true", help="replace existing splits or folds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Split, print the table of splits, and return the exit status."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: _run(args), _PROGRAM)


def _run(args: argparse.Namespace) -> None:
    root = data_set_folder(args.name)
    volume_set = write_splits(
        root, args.folds, shares=args.shares, seed=args.seed, overwrite=args.overwrite
    )
    made = [volume_set.splits] if args.folds is None else volume_set.folds
    labels = [""] if args.folds is None else [f"fold {k}" for k in range(len(made))]
    tables = [make_table(volume_set, *pair) for pair in zip(made, labels, strict=True)]
    print("\n\n".join(tables))


if __name__ == "__main__":
    sys.exit(main())
