"""Options, cases and folds of task folders, for nnDetection and nnU-Net."""

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
    """Options for reading a task folder.

    Args:
        modality: index of the modality to read, from 0; None for the only one.
        values: conversion of values to HU.
        labels_by_voxel: whether label maps match their images voxel for voxel although their
            matrices differ.
        splits: file with folds; None for that of the task, if any.
        fold_tests: see :func:`~lesion_d2.importers.task_folders.split_files.folds_of`; None for
            "as-is" if there is a test split, otherwise "rotate".
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
        image: path of the image.
        label: path of the label map, or None.
        notes: path of a JSON file, or None.
        split: see ``Case.split``.
        holds_all: whether the image file has all modalities, along a fourth axis.
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
    """The parsed options of :func:`add_task_arguments`."""
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
    """List the cases of a task.

    Args:
        cases: case -> its files.
        read: reads a case from its files, name and patient; must be picklable.
        classes: see :class:`Listing`.
        options: options of the task, with a chosen modality.
        dataset_file: ``dataset.json``; if it changes, cases are read again.
        split_folders: folders in which to look for a file of folds.
        left_out, damaged: see :class:`Listing`, but ``left_out`` does not include ``damaged``.
        more_options: additional options of the format for ``Listing.options``.

    Raises:
        FileNotFoundError, ValueError: the pattern of patients or the file of folds is invalid.
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
    """The index of the modality to read.

    Args:
        file: path of ``dataset.json``, for messages.
        names: index -> name of the data set's modalities.
        modality: the chosen index, or None.
        values: conversion of values to HU.

    Raises:
        ValueError: there are several modalities and none is chosen, the chosen one does not exist,
            or it is not named CT and ``values`` has no option.
    """
    listed = ", ".join(f"{number} {name!r}" for number, name in names.items())
    if modality is None:
        if len(names) != 1:
            raise ValueError(
                f"{file}: found {len(names)} modalities ({listed}), expected one; choose it "
                "with --modality K"
            )
        (modality,) = names
    if modality not in names:
        raise ValueError(f"{file}: found the modalities {listed}, expected a modality {modality}")
    if not _CT.search(names[modality]) and not values.are_told:
        raise ValueError(
            f"{file}: found the modality {names[modality]!r}, expected CT; pass "
            "--percentiles-to-hu LOW HIGH for other modalities, or --hu-offset 0 for values in HU"
        )
    return modality
