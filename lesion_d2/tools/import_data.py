"""Import annotated images in a public format as a volume set.

python -m lesion_d2.tools.import_data nndetection TASK_DIR --output $DETECTRON2_DATASETS/mine

The data set's name is that of its folder. In $DETECTRON2_DATASETS it is registered automatically,
as mine_train, mine_val, mine_test, mine_volumes_test and so on. Running it again after an
interruption reuses finished cases. A case that cannot be read is reported in one line, and does not
stop the others. At the end, the data set is checked as by lesion_d2.tools.check_data: DIR/check has
pictures and all faults.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.roots import resolve_root
from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data_checks import PAGE_FILE, check_data_set
from lesion_d2.importers import FORMATS, Listing
from lesion_d2.importers.running import (
    ImportSummary,
    is_registered_from,
    run_import,
    working_folder,
)
from lesion_d2.utils.errors import InputError, run_program

from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from .common.arguments import add_shard, add_shares, positive, seed

_PROGRAM = "lesion_d2.tools.import_data"
#: Maximum number of lines about cases that are left out; the rest is in a file.
MAX_SHOWN = 50


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool, with a subcommand for each format."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, module in FORMATS.items():
        text = module.__doc__.strip()
        own = formats.add_parser(
            name,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(own)
        add_common_arguments(own)
    return parser


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`run_listing` reads."""
    group = parser.add_argument_group("the data set")
    add = group.add_argument
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the data set, which also gives its name",
    )
    add("--workers", type=positive, metavar="N", help="processes (default: all cores)")
    add("--dry-run", action="store_true", help="only list what would be imported")
    add("--overwrite", action="store_true", help="replace an existing data set")
    add("--skip-damaged", action="store_true", help="leave out cases that cannot be read")
    add("--no-check", action="store_true", help="do not check the data set at the end")
    add("--new-split", action="store_true", help="discard the source's splits and folds")
    add_shares(add, "percentages of patients, if the source has no splits (default: 60 20 20)")
    add_shard(add)
    add("--seed", type=seed, default=0, metavar="N", help="seed of the split (default: 0)")


def describe(summary: ImportSummary, classes: Sequence[str]) -> str:
    """The contents as a table, and a line for each case that was left out."""
    parts = [_table(summary, classes)] if summary.volume_set is not None else []
    if summary.left_out:
        lines = [f"  {line}" for line in summary.left_out]
        if len(lines) > MAX_SHOWN and summary.left_out_file.is_file():
            more = len(lines) - MAX_SHOWN
            lines[MAX_SHOWN:] = [f"  and {more} more: {summary.left_out_file}"]
        parts.append("\n".join([f"left out: {len(summary.left_out)}", *lines]))
    return "\n\n".join(parts)


def _table(summary: ImportSummary, classes: Sequence[str]) -> str:
    volume_set = summary.volume_set
    split_of = {p: split for split, names in volume_set.splits.items() for p in names}
    rows = []
    for split in (*volume_set.splits, None):
        volumes = [v for v in volume_set.volumes if split_of.get(v.patient) == split]
        if volumes:
            rows.append([split or "no split", *_counts(volumes, len(classes))])
    rows.append(["all", *_counts(volume_set.volumes, len(classes))])
    headers = ["", "patients", "volumes", "slices", "without lesion", *classes, "ignored"]
    return tabulate(rows, headers, tablefmt="pipe")


def _counts(volumes: Sequence, num_classes: int) -> list[int]:
    lesions = [lesion for volume in volumes for lesion in volume.lesions]
    by_class = Counter(lesion.category for lesion in lesions if not lesion.ignore)
    return [
        len({volume.patient for volume in volumes}),
        len(volumes),
        sum(volume.shape[0] for volume in volumes),
        sum(all(lesion.ignore for lesion in volume.lesions) for volume in volumes),
        *(by_class[number] for number in range(num_classes)),
        sum(lesion.ignore for lesion in lesions),
    ]


def run(args: argparse.Namespace) -> int:
    """List, import and check.

    Returns:
        The exit status: 1 if there is no data set, or if the check found an error.

    Raises:
        ValueError, OSError, ImportError: the source cannot be listed; or see :func:`run_import`.
    """
    return run_listing(FORMATS[args.format].list_cases(args), args, args.format)


def run_listing(
    listing: Listing, args: argparse.Namespace, format: str, program: str = _PROGRAM
) -> int:
    """Import what was listed, and check it.

    Args:
        listing: of the format.
        args: of :func:`add_common_arguments`.
        format: its name.
        program: the command, in messages.

    Returns:
        See :func:`run`.

    Raises:
        ValueError, OSError: see :func:`run_import`.
    """
    summary = _import(listing, args, format)
    if summary.stood:
        print(f"{summary.root} already exists: nothing to do")
        return 0
    print(f"found: {summary.num_cases} cases, classes: {', '.join(listing.classes)}")
    if summary.num_resumed:
        print(f"{summary.num_resumed} of them were imported by an earlier call")
    text = describe(summary, listing.classes)
    if text:
        print(f"\n{text}\n")
    if args.dry_run:
        return 0
    if summary.is_part:
        print(f"part {args.shard} has finished: the last part writes the data set")
        return 1 if summary.damaged and not args.skip_damaged else 0
    if not summary.written:
        print(
            f"{program}: error: found {len(summary.damaged)} cases that cannot be read, expected "
            "none: no data set was written; repair them and run the same command again, or pass "
            "--skip-damaged",
            file=sys.stderr,
        )
        return 1
    print(f"{summary.root} is complete\n")
    datasets = Path(os.path.abspath(resolve_root("$DETECTRON2_DATASETS")))
    if os.path.realpath(summary.root.parent) != os.path.realpath(datasets):
        print(f"it is not in $DETECTRON2_DATASETS ({datasets}), so it is not registered\n")
    return 0 if args.no_check else _check(summary.root, args.workers)


def _import(listing: Listing, args: argparse.Namespace, format: str) -> ImportSummary:
    try:
        return run_import(
            listing,
            args.output,
            format=format,
            workers=args.workers,
            dry_run=args.dry_run,
            overwrite=args.overwrite,
            skip_damaged=args.skip_damaged,
            new_split=args.new_split,
            shares=args.shares,
            seed=args.seed,
            shard=args.shard,
        )
    except BrokenProcessPool:
        raise InputError(
            "a process was killed, possibly because memory ran out: run the same command again, "
            "with fewer --workers if needed; finished cases are in "
            f"{working_folder(args.output)}"
        ) from None


def _check(root: Path, workers: int | None) -> int:
    """Check the data set; returns the exit status: 1 if there is an error."""
    for name in DatasetCatalog.list():  # registered with the data set that it replaces
        if is_registered_from(name, root):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    register_volume_set(root)
    folder = root / "check"
    report = check_data_set(root.name, output=folder, workers=workers)
    print(f"{report.text()}\n\npictures and details: {folder / PAGE_FILE}")
    return 1 if report.has_errors else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Import, print the summary, and return the exit status: 130 after Ctrl-C."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: run(args), _PROGRAM, interrupted=lambda: interrupted(args.output))


def interrupted(output: Path) -> str:
    """The message after Ctrl-C."""
    goes_on = working_folder(output).exists()
    return "interrupted" + (": run the same command again to continue" if goes_on else "")


if __name__ == "__main__":
    sys.exit(main())
