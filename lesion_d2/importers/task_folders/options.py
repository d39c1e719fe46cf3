"""What the task folders of nnDetection and nnU-Net have in common: options, cases, folds."""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from ...scans.names import safe_name, unique_names
from ..case import Case, ImportedVolume, Listing
from .images import Values, add_value_arguments, values_of
from .split_files import add_split_arguments, find_splits, folds_of, patient_names

_CT = re.compile(r"(?<![a-z])ct(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class TaskOptions:
    """How to read a task folder.

    Args:
        modality: which one to read, from 0; None for the only one.
        values: what the images' values stand for.
        labels_by_voxel: whether label maps lie on their images voxel for voxel though their
            matrices differ.
        splits: a file of folds; None for that of the task, if any.
        fold_tests: see :func:`~lesion_d2.importers.task_folders.split_files.folds_of`; None for
            "as-is" where there is a test split, and "rotate" where not.
        patient_pattern: see :func:`~lesion_d2.importers.task_folders.split_files.patient_names`.
    """

    modality: int | None = None
    values: Values = field(default_factory=Values)
    labels_by_voxel: bool = False
    splits: str | os.PathLike | None = None
    fold_tests: str | None = None
    patient_pattern: str | None = None


class CaseFiles(NamedTuple):
    """The files of a case.

    Args:
        image: its path.
        label: of its label map, or None.
        notes: of what else is read, or None.
        split: as ``Case.split``.
        holds_all: whether the image's file has all modalities, along a fourth axis.
    """

    image: str
    label: str | None
    notes: str | None = None
    split: str | None = None
    holds_all: bool = False


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`TaskOptions`; :func:`task_options` reads them."""
    parser.add_argument(
        "--modality",
        type=int,
        metavar="K",
        help="modality to read, from 0, if there are several",
    )
    add_value_arguments(parser)
    parser.add_argument(
        "--labels-by-voxel",
        action="store_true",
        help="label maps match their images voxel for voxel, although their matrices differ",
    )
    add_split_arguments(parser)


def task_options(args: argparse.Namespace) -> TaskOptions:
    """The options that :func:`add_task_arguments` added."""
    return TaskOptions(
        args.modality,
        values_of(args),
        args.labels_by_voxel,
        args.splits,
        args.fold_tests,
        args.patient_pattern,
    )


def list_task(
    cases: Mapping[str, CaseFiles],
    read: Callable[[CaseFiles, str, str], ImportedVolume],
    classes: tuple[str, ...],
    options: TaskOptions,
    *,
    dataset_file: str | os.PathLike,
    split_folders: Iterable[str | os.PathLike],
    left_out: Iterable[str] = (),
    damaged: Iterable[str] = (),
    more_options: Mapping[str, object] | None = None,
) -> Listing:
    """The listing of a task's cases.

    Args:
        cases: case -> its files.
        read: gives a case from its files, its name and its patient; can be pickled.
        classes: see :class:`Listing`.
        options: of the task; its modality is chosen.
        dataset_file: that the cases' meaning depends on.
        split_folders: where a file of folds may be.
        left_out, damaged: lines of what is no case; ``damaged`` is not in ``left_out``.
        more_options: of the format, for ``Listing.options``.

    Raises:
        FileNotFoundError, ValueError: of patients and folds.
    """
    patients = patient_names(cases, options.patient_pattern)
    names = unique_names(map(safe_name, cases))
    listed = tuple(
        Case(
            name,
            patients[case],
            partial(read, files, name, patients[case]),
            (*filter(None, files[:3]), str(dataset_file)),
            files.split,
        )
        for name, (case, files) in zip(names, cases.items(), strict=True)
    )
    folds, notes = (), ()
    splits = options.splits or find_splits(split_folders)
    if splits:
        tests = [case.patient for case in listed if case.split == "test"]
        kind = options.fold_tests or ("as-is" if tests else "rotate")
        folds, notes = folds_of(splits, patients, tests=kind, test_patients=tests)
    told = {
        "modality": options.modality,
        **options.values.as_options(),
        "labels_by_voxel": options.labels_by_voxel,
        "patient_pattern": options.patient_pattern,
        "fold_tests": options.fold_tests if splits else None,
        **(more_options or {}),
    }
    damaged = tuple(damaged)
    return Listing(classes, listed, (*left_out, *notes, *damaged), damaged, folds, told)


def choose_modality(
    file: str | os.PathLike, names: Mapping[int, str], modality: int | None, values: Values
) -> int:
    """The number of the modality to read.

    Args:
        file: of the data set, for messages.
        names: number -> name, as the data set has them.
        modality: as chosen, or None.
        values: what the images' values stand for.

    Raises:
        ValueError: there are several and none is chosen; there is none of this number; or it is no
            CT by its name, and ``values`` does not tell what it is.
    """
    listed = ", ".join(f"{number} {name!r}" for number, name in names.items())
    if modality is None:
        if len(names) != 1:
            raise ValueError(
                f"{file}: found {len(names)} modalities ({listed}), expected one: --modality K "
                "chooses it"
            )
        (modality,) = names
    if modality not in names:
        raise ValueError(
            f"{file}: found the modalities {listed}, expected one of number {modality}"
        )
    if not _CT.search(names[modality]) and not values.are_told:
        raise ValueError(
            f"{file}: found the modality {names[modality]!r}, expected CT: --percentiles-to-hu LOW "
            "HIGH takes images of others, --hu-offset 0 those whose values are HU nonetheless"
        )
    return modality
