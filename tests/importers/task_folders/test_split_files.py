import json
import pickle
from collections import OrderedDict

from lesion_d2.importers.task_folders.split_files import folds_of, patient_names, read_splits

import numpy as np
import pytest

CASES = {case: case for case in "abcdef"}
SPLITS = [("cdef", "ab"), ("abef", "cd"), ("abcd", "ef")]


def write(folder, splits, kind):
    file = folder / f"splits_final.{kind}"
    if kind == "json":
        file.write_text(json.dumps([{"train": list(t), "val": list(v)} for t, v in splits]))
    else:  # as nnU-Net's and nnDetection's do
        folds = [OrderedDict(train=np.array(list(t)), val=np.array(list(v))) for t, v in splits]
        file.write_bytes(pickle.dumps(folds))
    return file


@pytest.mark.parametrize("kind", ["json", "pkl"])
def test_val_is_tested_and_the_next_folds_val_is_validated_on(tmp_path, kind):
    folds, notes = folds_of(write(tmp_path, SPLITS, kind), CASES)
    assert folds == (
        {"train": ("e", "f"), "val": ("c", "d"), "test": ("a", "b")},
        {"train": ("a", "b"), "val": ("e", "f"), "test": ("c", "d")},
        {"train": ("c", "d"), "val": ("a", "b"), "test": ("e", "f")},
    )
    assert notes == ()


def test_folds_as_they_are_and_a_single_one(tmp_path):
    file = write(tmp_path, SPLITS, "json")
    folds, _ = folds_of(file, CASES, tests="as-is", test_patients=["t"])
    assert folds[0] == {"train": ("c", "d", "e", "f"), "val": ("a", "b"), "test": ("t",)}
    folds, _ = folds_of(file, CASES, tests="as-is")
    assert folds[0] == {"train": ("c", "d", "e", "f"), "val": ("a", "b")}
    # other scans of those that are tested
    folds, _ = folds_of(file, CASES, tests="as-is", test_patients=["a", "c"])
    assert folds[0] == {"train": ("d", "e", "f"), "val": ("b",), "test": ("a", "c")}
    folds, _ = folds_of(write(tmp_path, SPLITS[:1], "json"), CASES)
    assert folds == ({"train": ("c", "d", "e", "f"), "val": ("a", "b")},)


@pytest.mark.parametrize("tests", ["rotate", "as-is"])
def test_folds_that_say_their_test_stay(tmp_path, tests):
    file = tmp_path / "splits_final.json"
    folds = [{"train": ["a"], "val": ["b"], "test": ["c", "d"]}, {"train": ["c"], "val": ["d"]}]
    file.write_text(json.dumps([{**fold, "test": fold.get("test", [])} for fold in folds]))
    found, _ = folds_of(file, CASES, tests=tests, test_patients=["e"])
    assert found == tuple({s: tuple(n) for s, n in fold.items()} for fold in folds)
    folds[0]["test"] = ["a"]
    file.write_text(json.dumps(folds))
    with pytest.raises(ValueError, match="fold 0: found the patient 'a' in train and test"):
        folds_of(file, CASES, tests=tests)


def test_no_patient_is_in_two_splits_of_a_fold_that_overlaps_the_next(tmp_path):
    splits = [("cdef", "ab"), ("adef", "bc")]
    folds, _ = folds_of(write(tmp_path, splits, "pkl"), CASES)
    assert folds[0] == {"train": ("d", "e", "f"), "val": ("c",), "test": ("a", "b")}


def test_cases_that_are_not_there_are_told_and_patients_are_kept_together(tmp_path):
    file = write(tmp_path, SPLITS, "json")
    folds, (note,) = folds_of(file, {"a": "p", "b": "p", "c": "q", "f": "r"})
    assert folds[0] == {"train": ("r",), "val": ("q",), "test": ("p",)}
    assert note.endswith("2 cases of the folds do not exist, such as 'd'")
    with pytest.raises(ValueError, match="fold 0: found the patient 'p' in train and val"):
        folds_of(file, {"a": "p", "c": "p", "d": "q"})
    with pytest.raises(ValueError, match="found the case 'a', expected names such as 'x'"):
        folds_of(file, {"x": "x"})


@pytest.mark.parametrize(
    "content, message",
    [
        ([], r"found \[\], expected a list of folds"),
        ({"train": []}, "found .*expected a list of folds"),
        ([{"train": ["a"]}], "fold 0: found .*expected the cases of 'train' and 'val'"),
        ([{"train": ["a"], "val": [1]}], r"fold 0, val: found \[1\], expected names of cases"),
        ([{"train": print, "val": []}], "found builtins.print in the pickle"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, content, message):
    file = tmp_path / "splits_final.pkl"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"splits_final\.pkl: {message}") as error:
        read_splits(file)
    assert "\n" not in str(error.value)


def test_patterns_of_patients():
    assert patient_names(["p1_a", "p2_b"], r"^(p\d)_") == {"p1_a": "p1", "p2_b": "p2"}
    for pattern, message in (("(", "unterminated"), ("p", "expected a group in parentheses")):
        with pytest.raises(ValueError, match=f"--patient-pattern: found .*{message}"):
            patient_names(["p1"], pattern)
