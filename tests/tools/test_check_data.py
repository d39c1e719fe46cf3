import json
import os
import shutil

from lesion_d2.data.deeplesion.key_slices import register_deeplesion
from lesion_d2.tools.check_data import main

import pandas as pd
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def copied(tiny_phantom, tmp_path):
    """A copy of the tiny phantoms, ``copied_train``, ``copied_val`` and ``copied_test``."""
    shutil.copytree(tiny_phantom / "phantom", tmp_path / "copied")
    names = [f"copied_{split}" for split in ("train", "val", "test")]
    for name in names:
        register_deeplesion(name, os.fspath(tmp_path / "copied"), name[7:])
    yield tmp_path / "copied"
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def check(name, tmp_path, *more):
    """Exit status, and what was written."""
    output = tmp_path / "out"
    status = main([name, "--output", os.fspath(output), "--workers", "1", "--no-pictures", *more])
    file = output / "data_check.json"
    return status, json.loads(file.read_text()) if file.is_file() else None


def test_phantoms_are_clean(copied, tmp_path, capsys):
    status, content = check("copied", tmp_path)
    assert status == 0 and content["errors"] == 0
    assert content["data_sets"] == ["copied_train", "copied_val", "copied_test"]
    frame = pd.read_csv(copied / "DL_info.csv")
    assert sum(one["lesions"] for one in content["counts"].values()) == len(frame)
    out = capsys.readouterr().out
    assert "copied_train" in out and "lesion size, mm" in out
    assert "data_check.html, data_check.json" in out


def test_missing_files_are_told_by_row_and_the_rest_is_checked(copied, tmp_path, capsys):
    frame = pd.read_csv(copied / "DL_info.csv")
    in_train = frame[frame["Train_Val_Test"] == 1]
    folder, slice_number = in_train["File_name"].iloc[-1][:-4].rsplit("_", 1)
    (copied / "Images_png" / folder / f"{slice_number}.png").unlink()
    status, content = check("copied", tmp_path)
    rows = frame.index[frame["File_name"] == in_train["File_name"].iloc[-1]] + 2
    (fault,) = (one for one in content["faults"] if one["severity"] == "error")
    assert status == 1 and fault["kind"] == "missing_file" and fault["count"] == len(rows)
    assert f"row {rows[0]}, column File_name" in fault["places"][0]
    assert content["counts"]["copied_train"]["lesions"] == len(in_train) - len(rows)
    times = "once" if len(rows) == 1 else f"{len(rows)} times"
    assert f"error: missing_file, {times}: there is no such file" in capsys.readouterr().out
    assert check("copied", tmp_path, "--allow-missing")[0] == 0


def test_rows_that_the_loader_refuses_are_told_and_other_splits_checked(copied, tmp_path):
    frame = pd.read_csv(copied / "DL_info.csv", dtype=str)
    row = frame.index[frame["Train_Val_Test"] == "2"][0]
    frame.loc[row, "Bounding_boxes"] = "900, 900, 950, 950"
    frame.to_csv(copied / "DL_info.csv", index=False)
    status, content = check("copied", tmp_path)
    (fault,) = (one for one in content["faults"] if one["severity"] == "error")
    assert status == 1 and fault["kind"] == "refused"
    assert f"row {row + 2}, column Bounding_boxes: found '900, 900" in fault["places"][0]
    assert content["counts"]["copied_train"]["lesions"] > 0


@pytest.mark.parametrize("name", ["copied", "kopied"])
def test_what_cannot_be_read_at_all_is_one_line(copied, tmp_path, capsys, name):
    (copied / "DL_info.csv").write_bytes(b"\xff\xfe\x00 no text")
    status, content = check(name, tmp_path)
    assert status == 2 and content is None
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ") and ("DL_info.csv" if name == "copied" else name) in line
