"""Train and test a model on every fold of a volume set, and evaluate all test sets together.

python -m lesion_d2.tools.cross_validate --config-file configs/retina_unet/retina_unet.yaml \\
    --dataset mine --folds 5 MODEL.RETINANET.NUM_CLASSES 1
python -m lesion_d2.tools.cross_validate ... --fold 2          # one fold, for one GPU or job

For each fold, train_net.py trains on mine_fold<k>_train and validates on mine_fold<k>_val (3-D
models: mine_fold<k>_volumes_train and mine_fold<k>_volumes_val), and tests the ensemble of the best
checkpoints (TEST.NUM_BEST_CHECKPOINTS, 5 if the config keeps none) on mine_fold<k>_volumes_test, in
OUTPUT/fold<k>. If the data set has no folds, they are made as by lesion_d2.tools.split_data.
Running it again after an interruption reuses finished folds and resumes the others. A fold with
other options or data is refused.

When all folds have finished, their test sets are evaluated together (Jaeger et al., section 4.3):
AP at an IoU of 0.1, AP per patient, and FROC with 95 % intervals over patients, in
OUTPUT/cross_validation.json, cross_validation.md and froc.png. The exit status is 1 if a fold
failed.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lesion_d2.config.volumetric import is_volumetric
from lesion_d2.data.roots import resolve_root
from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.form import VolumeSet, read_volume_set
from lesion_d2.data.volume_set.splits import write_splits
from lesion_d2.engine import load_config
from lesion_d2.evaluation import combine_evaluations
from lesion_d2.tools.common.arguments import config_options, data_set_folder, positive, seed
from lesion_d2.tools.common.checkout import find_in_checkout
from lesion_d2.tools.common.trainings import collected, hash_settings, run_all

from .folds import FoldOptions, FoldRun, hash_data, split_options
from .report import FIGURE_FILE, JSON_FILE, TABLE_FILE, make_table, write_report

_PROGRAM = "lesion_d2.tools.cross_validate"
_NUM_BEST = 5  # checkpoints of an ensemble: Jaeger et al., section 4.2


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--config-file", required=True, help="config of the model and its training")
    add("--dataset", required=True, metavar="NAME", help="volume set in $DETECTRON2_DATASETS")
    add("--folds", type=positive, default=5, metavar="K", help="number of folds (default: 5)")
    add("--fold", type=int, action="append", metavar="k", help="run only this fold, from 0")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="output folder (default: output/cross_validation/NAME)",
    )
    add("--train-on-volumes", action="store_true", help="also train on slices without a lesion")
    add("--split-seed", type=seed, default=0, metavar="N", help="seed of new folds (default: 0)")
    add(
        "--num-gpus",
        type=positive,
        default=1,
        metavar="N",
        help="processes per training (default: 1)",
    )
    add("--jobs", type=positive, default=1, metavar="N", help="folds at a time (default: 1)")
    add("--program", type=Path, help=argparse.SUPPRESS)  # in place of train_net.py
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the missing folds, write the report, and return the exit status."""
    args = get_parser().parse_args(argv)
    failures: list[str] = []
    with collected(failures):
        failures += run(args)
    for line in failures:
        print(f"{_PROGRAM}: {line}", file=sys.stderr)
    return 1 if failures else 0


def run(args: argparse.Namespace) -> list[str]:
    """:func:`main` for parsed arguments; returns a line for each fold that failed.

    Raises:
        ValueError, OSError, InputError: the folds cannot be run or reported.
    """
    folds = make_runs(args)
    numbers = range(len(folds)) if args.fold is None else args.fold
    for number in numbers:
        if not 0 <= number < len(folds):
            raise ValueError(f"--fold: found {number}, expected 0 to {len(folds) - 1}")
    # This refuses runs of other options before any work.
    done = {fold for fold in folds if fold.result() is not None}
    chosen = [folds[number] for number in dict.fromkeys(numbers)]
    missing = [fold for fold in chosen if fold not in done]
    program = args.program or find_in_checkout("train_net.py")
    failures = run_all(
        missing, program, jobs=args.jobs, done=len(chosen) - len(missing), description="folds"
    )
    results = {fold: result for fold in folds if (result := fold.result()) is not None}
    left = [fold.name for fold in folds if fold not in results]
    if left:
        print(f"{len(results)} of {len(folds)} folds are done, left: {', '.join(left)}")
        return failures
    output, cfg = folds[0].output, load_config(_for_config(args))
    evaluations = list(results.values())
    combined = combine_evaluations(
        evaluations,
        f"{folds[0].options.dataset}_volumes",
        num_bootstrap=cfg.TEST.NUM_BOOTSTRAP,
        seed=max(cfg.SEED, 0),
    )
    write_report(output, evaluations, combined, asdict(folds[0].options))
    print(
        f"{combined.num_lesions} lesions in {combined.num_volumes} volumes of "
        f"{combined.num_patients} patients\n\n{make_table(evaluations, combined)}\n\n"
        f"written to {output}: {JSON_FILE}, {TABLE_FILE}, {FIGURE_FILE}"
    )
    return failures


def make_runs(args: argparse.Namespace) -> list[FoldRun]:
    """The runs of all folds; makes the folds of the data set if it has none.

    Raises:
        ValueError, OSError, InputError: a wrong argument, config or data set.
    """
    opts, free_opts = split_options(config_options(args.opts))
    cfg = load_config(_for_config(args))
    known = Path(resolve_root(f"$DETECTRON2_DATASETS/{Path(args.dataset).name}"))
    if "/" in args.dataset and Path(args.dataset).resolve() != known.resolve():
        # The trainings would not find it, or would find another data set.
        raise ValueError(
            f"--dataset: found {args.dataset}, expected a folder in $DETECTRON2_DATASETS "
            f"({known.parent})"
        )
    root = data_set_folder(args.dataset)
    volume_set = read_volume_set(root)
    if not volume_set.folds:
        volume_set = write_splits(root, args.folds, seed=args.split_seed)
    _check_folds(root, volume_set, args.folds)
    register_volume_set(root)
    options = FoldOptions(
        root.name,
        args.folds,
        hash_data(root),
        hash_settings(Path(args.config_file)),
        opts,
        args.train_on_volumes or is_volumetric(cfg),
        cfg.TEST.NUM_BEST_CHECKPOINTS or _NUM_BEST,
    )
    output = args.output or Path("output/cross_validation", root.name)
    rest = {
        "num_gpus": args.num_gpus,
        "free_opts": free_opts,
        "validates_volumes": is_volumetric(cfg),
    }
    return [FoldRun(output, k, args.config_file, options, **rest) for k in range(args.folds)]


def _check_folds(root: Path, volume_set: VolumeSet, num_folds: int) -> None:
    found = len(volume_set.folds)
    if found != num_folds:
        raise ValueError(
            f"{root}: found {found} folds, expected {num_folds}: pass --folds {found}, or make "
            "new folds with lesion_d2.tools.split_data --overwrite"
        )
    with_lesion = {
        volume.patient
        for volume in volume_set.volumes
        if not all(lesion.ignore for lesion in volume.lesions)
    }
    for number, fold in enumerate(volume_set.folds):
        missing = [split for split in ("train", "val", "test") if not fold.get(split)]
        if missing:
            raise ValueError(
                f"{root}: found no patient in {' and '.join(missing)} of fold {number}, expected "
                "at least one: make new folds with lesion_d2.tools.split_data --overwrite"
            )
        bare = [split for split in ("train", "val") if not with_lesion & set(fold[split])]
        if bare:  # otherwise refused only by the training of that fold, after the previous folds
            raise ValueError(
                f"{root}: found no lesion in {' and '.join(bare)} of fold {number}, expected at "
                "least one: make new folds with lesion_d2.tools.split_data --overwrite (--seed, "
                "--folds)"
            )
    tested = Counter(patient for fold in volume_set.folds for patient in fold["test"])
    for patient, number in tested.most_common(1):
        if number > 1:
            raise ValueError(
                f"{root}: found patient {patient} in the test splits of {number} folds, expected "
                "each patient in only one: make new folds with lesion_d2.tools.split_data "
                "--overwrite"
            )


def _for_config(args: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(config_file=args.config_file, opts=config_options(args.opts))


if __name__ == "__main__":
    sys.exit(main())
