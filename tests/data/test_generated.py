"""Data sets whose options got new fields after the first ones had been written."""

import json
from dataclasses import dataclass, field

from lesion_d2.data.generated import LATER, write_data_set

import pytest


@dataclass(frozen=True)
class Options:
    seed: int = 0
    unit: str = field(default="mm", metadata={"help": "of lengths"})
    extra: float = field(default=0.5, metadata={**LATER, "help": "came later"})


def write(root, options, **arguments):
    """Write a data set of one file, and return whether it was written and its stored options."""

    def fill(folder):
        (folder / "content").write_text(str(options))

    written = write_data_set(root, "toy", options, fill, **arguments)
    return written, json.loads((root / "toy.json").read_text())


def test_defaults_of_later_fields_are_not_stored_whatever_else_their_metadata_say(tmp_path):
    before = {"seed": 0, "unit": "mm"}
    assert write(tmp_path / "set", Options()) == (True, before)
    assert write(tmp_path / "set", Options()) == (False, before)
    assert write(tmp_path / "other", Options(extra=2.0)) == (True, {**before, "extra": 2.0})


def test_a_stored_default_is_the_same_as_none(tmp_path):
    write(tmp_path / "set", Options())
    stored = {"seed": 0, "unit": "mm", "extra": 0.5}
    (tmp_path / "set" / "toy.json").write_text(json.dumps(stored))
    assert write(tmp_path / "set", Options()) == (False, stored)


def test_differences_are_told_with_the_defaults_that_hold(tmp_path):
    write(tmp_path / "set", Options())
    with pytest.raises(FileExistsError, match=r"options \(extra 0\.5 instead of 2\.0\)"):
        write(tmp_path / "set", Options(extra=2.0))
    assert write(tmp_path / "set", Options(seed=3, extra=2.0), overwrite=True)[0]
    with pytest.raises(
        FileExistsError, match=r"options \(extra 2\.0 instead of 0\.5, seed 3 instead of 0\)"
    ):
        write(tmp_path / "set", Options())


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", "{"])
def test_a_folder_without_readable_options_is_never_replaced(tmp_path, text):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "toy.json").write_text(text)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"a toy data set \(no readable toy\.json\)"):
            write(tmp_path / "set", Options(), overwrite=overwrite)


def test_a_second_call_to_the_same_place_is_refused_and_leftovers_are_removed(tmp_path):
    def fill(folder):
        with pytest.raises(BlockingIOError, match=r"/set: another process is using this folder$"):
            write(tmp_path / "set", Options())

    assert write_data_set(tmp_path / "set", "toy", Options(), fill)
    for name in (".set.part", ".set.trash"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "toy.json").write_text("{}")
    (tmp_path / ".set.lock").touch()
    assert not write(tmp_path / "set", Options())[0]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
