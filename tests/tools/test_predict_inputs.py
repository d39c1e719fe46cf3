"""Which scans the command finds, and where it may write."""

import os
import shutil
from pathlib import Path

from lesion_d2.scans.writing import write_dicom, write_nifti
from lesion_d2.tools.predict import outputs, running
from lesion_d2.tools.predict.__main__ import main
from lesion_d2.tools.predict.inputs import Inputs
from lesion_d2.tools.predict.outputs import ScanRow, check_replaceable, new_folder, write_status

import numpy as np
import pytest
from slice_files import write_slices
from tiny_prediction import SPACING, make_arguments, make_volume, read_summary, write_run

pytest.importorskip("pydicom")


@pytest.fixture
def data(tmp_path):
    """A folder with a DICOM series and a NIfTI file."""
    write_dicom(tmp_path / "data" / "ct", make_volume(0), SPACING)
    write_nifti(tmp_path / "data" / "a.nii.gz", make_volume(0), SPACING)
    return tmp_path / "data"


def find(*paths, output=Path("out"), **options):
    return Inputs(tuple(map(str, paths)), output, **options).find()


def make_results(folder):
    """What the command leaves of a scan, as far as readers of scans may take it for one."""
    with new_folder(folder) as partial:
        (partial / "findings.json").write_text("{}")
        write_nifti(partial / "labels.nii.gz", np.ones((4, 8, 8), np.int16), SPACING)
        write_status(partial, ScanRow("a", 4, 0, 1.0), "settings")


def test_results_in_an_input_folder_are_no_scans(data):
    output = data / "out"
    before = find(data, output=output)
    make_results(output / "a")
    make_results(data / "of_another_call" / "b")
    shutil.copytree(data / "ct", output / "fetched" / "0001" / "dicom")
    after = find(data, output=output)
    assert [c.source for c in after.candidates] == [c.source for c in before.candidates]
    assert len(after.candidates) == 2 and after.unreadable == after.left_out == ()
    # What was fetched is a path of its own.
    assert len(find(output / "fetched" / "0001", output=output).candidates) == 1


def test_a_scan_in_two_paths_is_one(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    paths = [data, data / "a.nii.gz", data / ".." / "data", data / "ct", tmp_path / "link"]
    found = find(*paths)
    assert [c.format for c in found.candidates] == ["nifti", "dicom"] and found.unreadable == ()
    assert len(found.left_out) == 6
    assert all("found again in another path" in line for line in found.left_out)
    # A copy of the files is another scan, by another name.
    shutil.copytree(data, tmp_path / "copy")
    names = [c.name for c in find(data, tmp_path / "copy").candidates]
    assert len(set(names)) == 4 and {"a", "a_2"} < set(names)


def test_names_do_not_collide(tmp_path):
    names = ["ä b", "_ b", "A", "a", "fetched", "index.html", "a_2"]
    for name in names:
        (tmp_path / name).mkdir()
        write_nifti(tmp_path / name / f"{name}.nii", make_volume(0), SPACING)
    found = find(*(tmp_path / name for name in names))
    assert [c.name for c in found.candidates] == [
        *("b", "b_2", "A", "a_2", "fetched_2", "index.html_2", "a_2_2")
    ]


def test_thin_series_beside_others_are_left_out(data):
    write_dicom(data / "thin", make_volume(1)[:2], SPACING, series_number=2)
    found = find(data, num_slices=3, slice_interval=2.0)
    assert len(found.candidates) == 2 and found.unreadable == ()
    [line] = found.left_out
    assert "series 2" in line and "found 2 slices of 2.5 mm, expected 3 or more" in line
    [row] = find(data / "thin", num_slices=3).unreadable
    assert row.scan == "thin" and "found 2 slices of 2.5 mm, expected 3 or more" in row.error


def test_a_folder_without_scans(tmp_path):
    (tmp_path / "empty").mkdir()
    [row] = find(tmp_path / "empty").unreadable
    assert row.scan == "empty" and "found no scan in it, expected DICOM" in row.error


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_of_this_command_stays(tmp_path, kind):
    """A folder of PNG slices beside which results are to be written has their name."""
    there = tmp_path / "000001_01_01"
    if kind == "folder":
        there.mkdir()
        (there / "001.png").write_bytes(b"a slice")
    else:
        there.write_text("notes")
    with pytest.raises(
        ValueError, match="000001_01_01: found files that this command did not write"
    ):
        check_replaceable(there)
    check_replaceable(tmp_path / "free")
    make_results(tmp_path / "done")
    check_replaceable(tmp_path / "done")


def test_the_input_is_never_replaced(tmp_path):
    """Results beside a folder of slices would have its name."""
    write_run(tmp_path / "run")
    series = write_slices(tmp_path / "000001_01_01", make_volume(0))
    before = {file: file.read_bytes() for file in series.iterdir()}
    flags = ("--spacing", "0.7,0.7,2.5", "--score-threshold", "0")
    assert main(make_arguments(tmp_path / "run", tmp_path, series, flags=flags)) == 1
    assert {file: file.read_bytes() for file in series.iterdir()} == before
    error = read_summary(tmp_path)[series.name]["error"]
    assert error.startswith(f"{series}: found files that this command did not write")


def test_other_files_are_other_settings(data):
    def digests():
        return [running.settings_of("", c) for c in find(data).candidates]

    first = digests()
    assert digests() == first
    os.utime(data / "ct" / "0002.dcm", (1, 1))
    second = digests()
    assert second[0] == first[0] and second[1] != first[1]
    os.utime(data / "a.nii.gz", (1, 1))
    assert digests()[0] != second[0]


def test_scans_that_a_process_does_not_find_are_told(data, tmp_path):
    candidates = find(data).candidates
    (tmp_path / "0.json").write_text('{"rows": [{"scan": "a", "slices": 4}], "fatal": null}')
    rows, fatal = running.gather_rows(candidates, tmp_path, 1)
    assert fatal is None and rows[0] == ScanRow("a", 4)
    assert "scan not found again" in rows[1].error
    (tmp_path / "0.json").write_text('{"rows": [], "fatal": "full"}')
    assert running.gather_rows(candidates, tmp_path, 1) == ([], "full")


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    write_run(tmp_path / "run")
    write_nifti(tmp_path / "a.nii", make_volume(0), SPACING)
    monkeypatch.setattr(outputs, "write_csv", interrupted)
    assert main(make_arguments(tmp_path / "run", tmp_path / "out", tmp_path / "a.nii")) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "interrupted: run the same command again to continue"
    assert list((tmp_path / "out").iterdir()) == []
