from pathlib import Path

from lesion_d2.data.volume_set.form import read_volume_set
from lesion_d2.importers import FORMATS
from lesion_d2.tools import import_data
from lesion_d2.tools.import_data import get_parser, main

import made_up_format
import pytest


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made_up_format.__doc__ = "NumPy files.\n\nOf tests."
    monkeypatch.setitem(FORMATS, "npz", made_up_format)
    made_up_format.write_cases(tmp_path / "source")
    return tmp_path / "source"


def _main(source: Path, output: Path, *options: str) -> int:
    return main(["npz", str(source), "--output", str(output), "--workers", "1", *options])


def test_a_format_is_a_subcommand_and_the_result_is_a_table(source, tmp_path, capsys):
    assert _main(source, tmp_path / "mine", "--shares", "2", "1", "1") == 0
    assert len(read_volume_set(tmp_path / "mine").volumes) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "found: 4 cases, classes: small, large"
    counted = ["patients", "volumes", "slices", "without lesion"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert rows[0][1:] == [*counted, "small", "large", "ignored"]
    assert rows[-1] == ["all", "4", "4", "24", "2", "2", "2", "0"]
    assert [row[:2] for row in rows[2:-1]] == [["train", "2"], ["val", "1"], ["test", "1"]]
    assert "left out: 2" in lines and f"  {source}/case_0.npz: no lesion" in lines


def test_damaged_cases_end_it_with_status_1_unless_they_are_skipped(source, tmp_path, capsys):
    (source / "case_2.npz").write_bytes(b"")
    assert _main(source, tmp_path / "mine") == 1
    said = capsys.readouterr()
    assert "case case_2: " in said.out and "1 cases cannot be read" in said.err
    assert not (tmp_path / "mine").exists()
    assert _main(source, tmp_path / "mine", "--skip-damaged") == 0
    said = capsys.readouterr()
    assert "an earlier call had imported 3 of them" in said.out and "case case_2: " in said.out


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
    assert "the same command goes on" in capsys.readouterr().err


def test_every_format_has_a_help_of_its_own(capsys):
    for name in FORMATS:
        with pytest.raises(SystemExit) as ended:
            get_parser().parse_args([name, "--help"])
        assert ended.value.code == 0
        assert "--output" in capsys.readouterr().out
