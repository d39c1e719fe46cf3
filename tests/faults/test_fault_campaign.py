"""A share of the campaign (``make faults`` runs all of it), and that it finds what it looks for."""

import ctypes
import os
import time

import numpy as np
import pytest

from .campaign import as_markdown, bad, count, draw_cases, share_of
from .case import ANY, REFUSED, VERDICTS, Case, same
from .kinds import all_kinds
from .sandbox import run_cases

_DRAWN = 6  # of each kind


def _take_time(folder):
    while True:
        time.process_time()


def _open_outside(folder):
    return (folder / "outside" / "secret").read_text()


# What a reader does, and the verdict that it has to get.
_READERS = {
    "right": lambda folder: (folder / "a.txt").read_text(),
    "one-line": lambda folder: _refuse("a.txt: found x, expected y"),
    "unnamed": lambda folder: _refuse("found x, expected y"),
    "traceback": lambda folder: [][0],
    "crash": lambda folder: ctypes.string_at(0),
    "hang": _take_time,
    "memory": lambda folder: np.ones(2**31),
    "silent": lambda folder: "another text",
    "run": lambda folder: os.system("true"),
}


def _refuse(text):
    raise ValueError(text)


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.name)
def test_malformed_files_are_read_right_or_refused_in_one_line(kind):
    cases = share_of(kind, _DRAWN, seed=0)
    failed = [f"{x.verdict}: {x.case}: {x.text}" for x in bad(list(run_cases(kind.name, cases)))]
    assert not failed, "\n".join(failed)


def test_each_verdict_is_found(monkeypatch):
    monkeypatch.setattr("faults.sandbox.CPU_SECONDS", 1)
    files = {"a.txt": b"a text", "outside/secret": b"x"}
    cases = [
        Case(name, files, read, "a text", name == "one-line") for name, read in _READERS.items()
    ]
    assert [x.verdict for x in run_cases("readers", cases)] == list(_READERS)


def test_a_good_file_that_is_refused_and_one_outside_that_is_read_are_found():
    files = {"a.txt": b"a text", "outside/secret": b"x"}
    cases = [
        Case("refused", files, _READERS["one-line"], "a text"),
        Case("accepted", files, _READERS["right"], REFUSED),
        Case("outside", files, _open_outside, ANY),
        Case("several lines", files, lambda folder: _refuse("a.txt: 2 problems\n  x\n  y")),
        Case("a traceback's lines", files, lambda folder: _refuse("a.txt\nx")),
        Case("unprintable, which is not shown", files, lambda folder: _refuse("a.txt: \x1b[2J")),
        Case("no place", files, _READERS["one-line"], place="row 5"),
    ]
    found = list(run_cases("readers", cases))
    verdicts = ["refused", "silent", "run", "one-line", "unnamed", "one-line", "unnamed"]
    assert [one.verdict for one in found] == verdicts
    table = as_markdown(count(found))
    assert table.splitlines()[-1] == "| all | 7 | 0 | 2 | 1 | 2 | 0 | 0 | 0 | 0 | 1 | 1 |"
    assert len(table.splitlines()[0].split("|")) == len(VERDICTS) + 4


def test_the_same_seed_draws_the_same_cases():
    kind = all_kinds()[0]
    first, again, other = (draw_cases(kind, 60, seed)[-10:] for seed in (3, 3, 4))
    assert [case.name for case in first] == [case.name for case in again]
    assert all(a.files == b.files for a, b in zip(first, again, strict=True))
    assert [case.name for case in first] != [case.name for case in other]


def test_values_are_compared_whole():
    array = np.array([1.0, np.nan])
    assert same([array, {"a": (1, "x")}], [array.copy(), {"a": [1, "x"]}])
    assert not same(array, array.astype(np.float32)) and not same(array, array[:1])
    assert not same({"a": 1}, {"a": 1, "b": 2}) and not same([1, 2], [1, 3])
