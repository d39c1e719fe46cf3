from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from lesion_d2.data.volume_set.form import read_volume_set
from lesion_d2.importers import FORMATS
from lesion_d2.tools import import_data
from lesion_d2.tools.import_data import get_parser, main

import made_up_format
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made_up_format.__doc__ = "NumPy files.\n\nOf tests."
    monkeypatch.setitem(FORMATS, "npz", made_up_format)
    made_up_format.write_cases(tmp_path / "source")
    return tmp_path / "source"


@contextmanager
def registered_anew() -> Iterator[None]:
    """What is registered in the block is not known after it."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _main(source: Path, output: Path, *options: str) -> int:
    return main(["npz", str(source), "--output", str(output), "--workers", "1", *options])


def test_a_format_is_a_subcommand_and_the_result_is_a_table(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert _main(source, tmp_path / "mine", "--shares", "2", "1", "1", "--no-check") == 0
    assert len(read_volume_set(tmp_path / "mine").volumes) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "found: 4 cases, classes: small, large"
    counted = ["patients", "volumes", "slices", "without lesion"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert rows[0][1:] == [*counted, "small", "large", "ignored"]
    assert rows[-1] == ["all", "4", "4", "24", "2", "2", "2", "0"]
    assert [row[:2] for row in rows[2:-1]] == [["train", "2"], ["val", "1"], ["test", "1"]]
    assert not any("not registered" in line for line in lines)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(source))
    assert _main(source, tmp_path / "mine", "--overwrite", "--no-check") == 0
    assert f"not in $DETECTRON2_DATASETS ({source})" in capsys.readouterr().out
    assert "left out: 2" in lines and f"  {source}/case_0.npz: no lesion" in lines


def test_damaged_cases_end_it_with_status_1_unless_they_are_skipped(source, tmp_path, capsys):
    (source / "case_2.npz").write_bytes(b"")
    assert _main(source, tmp_path / "mine") == 1
    said = capsys.readouterr()
    assert "case case_2: " in said.out and "found 1 cases that cannot be read" in said.err
    assert not (tmp_path / "mine").exists()
    assert _main(source, tmp_path / "mine", "--skip-damaged", "--no-check") == 0
    said = capsys.readouterr()
    assert "3 of them were imported by an earlier call" in said.out and "case case_2: " in said.out


def test_parts_say_that_they_are_parts(source, tmp_path, capsys):
    output = tmp_path / "mine"
    assert _main(source, output, "--shard", "1/2", "--no-check") == 0
    said = capsys.readouterr().out
    assert "part 1/2 has finished: the last part writes the data set" in said
    assert _main(source, output, "--shard", "2/2", "--no-check") == 0
    assert f"{output} is complete" in capsys.readouterr().out
    assert _main(source, output, "--shard", "1/2") == 0
    assert capsys.readouterr().out == f"{output} already exists: nothing to do\n"


def test_lines_beyond_the_first_ones_are_in_a_file(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_data, "MAX_SHOWN", 1)
    (source / "case_2.npz").write_bytes(b"")
    assert _main(source, tmp_path / "mine") == 1
    file = tmp_path / "mine.partial" / "left_out.txt"
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("left out: 3")
    assert lines[place + 1].startswith("  case case_2: ")
    assert lines[place + 2] == f"  and 2 more: {file}"
    assert len(file.read_text().splitlines()) == 3


def test_it_ends_with_the_check_whose_errors_are_its_status(source, tmp_path, capsys, monkeypatch):
    output = tmp_path / "mine_of_test_import"
    with registered_anew():
        assert _main(source, output, "--shares", "1", "0", "0") == 0
        said = capsys.readouterr().out
        assert (
            str(output / "check" / "data_check.html") in said and "lesions of class small" in said
        )
        assert (output / "check" / "data_check.json").is_file()
        # A data set that takes its place has its own classes and splits.
        monkeypatch.setattr(import_data, "check_data_set", _checked_with_errors)
        (tmp_path / "link").symlink_to(tmp_path)
        linked = tmp_path / "link" / output.name
        assert _main(source, linked, "--overwrite", "--shares", "0", "0", "1") == 1
        assert "what is wrong" in capsys.readouterr().out
        names = [name for name in DatasetCatalog.list() if name.startswith(output.name)]
        assert f"{output.name}_test" in names and f"{output.name}_train" not in names


def _checked_with_errors(name: str, **options: object) -> SimpleNamespace:
    assert name == "mine_of_test_import"
    return SimpleNamespace(has_errors=True, text=lambda: "what is wrong")


def test_a_dry_run_says_what_would_be_imported(source, tmp_path, capsys):
    assert _main(source, tmp_path / "mine", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == ["found: 4 cases, classes: small, large"]
    assert not (tmp_path / "mine").exists()


def test_errors_are_one_line_and_ctrl_c_is_130(source, tmp_path, capsys, monkeypatch):
    assert _main(source, tmp_path / "phantom") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected another name" in line

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_data, "run_import", interrupted)
    assert _main(source, tmp_path / "mine") == 130
    assert capsys.readouterr().err == "interrupted\n"
    (tmp_path / "mine.partial").mkdir()
    assert _main(source, tmp_path / "mine") == 130
    assert "run the same command again" in capsys.readouterr().err


def test_every_format_has_a_help_of_its_own(capsys):
    for name in FORMATS:
        with pytest.raises(SystemExit) as ended:
            get_parser().parse_args([name, "--help"])
        assert ended.value.code == 0
        assert "--output" in capsys.readouterr().out
