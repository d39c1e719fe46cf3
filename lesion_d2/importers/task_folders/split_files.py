"""Reading of nnDetection's and nnU-Net's split files, and of patients from names of cases."""

import argparse
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...data.formats.problems import short_repr
from ...data.formats.restricted_pickle import load_pickle
from ...data.volume_set.form import SPLITS
from ...utils.files import read_json

SPLIT_FILES = ("splits_final.json", "splits_final.pkl")
#: Ways to convert the source's folds, see :func:`folds_of`.
FOLD_TESTS = ("rotate", "as-is")


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for patients and folds."""
    parser.add_argument(
        "--splits",
        metavar="FILE",
        help="splits_final.json or .pkl (default: that of the task folder or its folder "
        "preprocessed, if there is one)",
    )
    parser.add_argument(
        "--fold-tests",
        choices=FOLD_TESTS,
        help="rotate: test a fold on its val cases, and validate on the next one's, which are "
        "removed from its train cases; as-is: keep train and val, and test on the cases of "
        "imagesTs (default: as-is if these have labels, otherwise rotate)",
    )
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="pattern whose first group is the patient in a case's name: '(.+)_scan.*' (default: "
        "each case is a patient)",
    )


def find_splits(folders: Iterable[str | os.PathLike]) -> str | None:
    """The first split file in these folders; None if there is none."""
    files = (Path(folder) / name for folder in folders for name in SPLIT_FILES)
    return next((str(file) for file in files if file.is_file()), None)


def read_splits(file: str | os.PathLike) -> list[dict[str, list[str]]]:
    """Read ``splits_final.json`` or ``.pkl``: a list of folds, each with its cases.

    Pickles are read with a restricted unpickler, see :func:`load_pickle`.

    Returns:
        ``{"train": [...], "val": [...]}`` with names of cases for each fold, and "test" if the fold
        has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has other content.
    """
    is_json = os.fspath(file).lower().endswith(".json")
    content = read_json(file, "folds of cases") if is_json else load_pickle(file)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{file}: found {short_repr(content)}, expected a list of folds")
    folds = []
    for number, fold in enumerate(content):
        if not isinstance(fold, dict) or not {"train", "val"} <= fold.keys():
            raise ValueError(
                f"{file}: fold {number}: found {short_repr(fold)}, expected the cases of "
                "'train' and 'val'"
            )
        cases = {s: _names(file, number, s, fold[s]) for s in SPLITS if s in fold}
        folds.append({s: names for s, names in cases.items() if names or s != "test"})
    return folds


def folds_of(
    file: str | os.PathLike,
    patients: Mapping[str, str],
    *,
    tests: str = "rotate",
    test_patients: Sequence[str] = (),
) -> tuple[tuple[dict[str, tuple[str, ...]], ...], tuple[str, ...]]:
    """Convert the folds of a split file to patients.

    - ``rotate``: the val cases of a fold become its test split, as both frameworks report them, so
      that the folds together test each case once. The val cases of the next fold become its val
      split, and are removed from its train split. If there is only one fold, it is unchanged.
    - ``as-is``: each fold is tested on ``test_patients``, who are removed from train and val.

    Folds with their own test cases are unchanged.

    Args:
        file: see :func:`read_splits`.
        patients: case -> patient, for cases that can be imported.
        tests: "rotate" or "as-is".
        test_patients: patients of the cases with test labels (``labelsTs``).

    Returns:
        Folds as in :class:`Listing`, and lines on cases of the file that do not exist.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_splits`; or a patient is in two splits of a
            fold, or none of the file's cases exists.
    """
    splits = read_splits(file)
    named = {case for fold in splits for cases in fold.values() for case in cases}
    unknown = sorted(named - patients.keys())
    if len(unknown) == len(named):
        raise ValueError(
            f"{file}: found the case "
            f"{short_repr(unknown[0]) if unknown else 'names of none'}, expected "
            f"names such as {short_repr(next(iter(patients), 'none'))}"
        )
    folds = _by_patients(file, splits, patients)
    own_tests = any("test" in fold for fold in folds)
    if tests == "rotate" and len(folds) > 1 and not own_tests:
        folds = [
            _rotated(fold, following["val"])
            for fold, following in zip(folds, folds[1:] + folds[:1], strict=True)
        ]
    elif tests == "as-is" and test_patients and not own_tests:
        tested = set(test_patients)  # all cases of these patients are tested
        folds = [
            {"train": fold["train"] - tested, "val": fold["val"] - tested, "test": tested}
            for fold in folds
        ]
    notes = ()
    if unknown:
        notes = (
            f"{file}: {len(unknown)} cases of the folds do not exist, such as "
            f"{short_repr(unknown[0])}",
        )
    ordered = ({s: tuple(sorted(names)) for s, names in fold.items()} for fold in folds)
    return tuple(ordered), notes


def patient_names(cases: Iterable[str], pattern: str | None) -> dict[str, str]:
    """The patient of each case.

    Args:
        cases: names of cases.
        pattern: regular expression whose first group is the patient; None if each case is a
            patient.

    Returns:
        Case -> patient.

    Raises:
        ValueError: the pattern is not a regular expression with a group, or does not match a case.
    """
    if pattern is None:
        return {case: case for case in cases}
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--patient-pattern: found {short_repr(pattern)}, expected a regular expression "
            f"({error})"
        ) from None
    if compiled.groups < 1:
        raise ValueError(
            f"--patient-pattern: found {short_repr(pattern)}, expected a group in parentheses"
        )
    found = {}
    for case in cases:
        match = compiled.search(case)
        if match is None or not match[1]:
            raise ValueError(
                f"--patient-pattern: found no patient in the case {short_repr(case)}, expected "
                f"a match of {short_repr(pattern)}"
            )
        found[case] = match[1]
    return found


def _by_patients(
    file: str | os.PathLike, splits: list[dict[str, list[str]]], patients: Mapping[str, str]
) -> list[dict[str, set[str]]]:
    folds = []
    for number, fold in enumerate(splits):
        found = {s: {patients[c] for c in cases if c in patients} for s, cases in fold.items()}
        for one, other in itertools.combinations(found, 2):
            both = sorted(found[one] & found[other])
            if both:
                raise ValueError(
                    f"{file}: fold {number}: found the patient {short_repr(both[0])} in {one} and "
                    f"{other}, expected each patient in one of them"
                )
        folds.append(found)
    return folds


def _rotated(fold: Mapping[str, set[str]], following: set[str]) -> dict[str, set[str]]:
    test = fold["val"]
    val = following - test
    return {"train": fold["train"] - val - test, "val": val, "test": set(test)}


def _names(file: str | os.PathLike, number: int, split: str, cases: object) -> list[str]:
    if isinstance(cases, np.ndarray):
        cases = cases.tolist()
    if not isinstance(cases, (list, tuple)) or not all(isinstance(case, str) for case in cases):
        raise ValueError(
            f"{file}: fold {number}, {split}: found {short_repr(cases)}, expected names of cases"
        )
    return list(map(str, cases))
