from pathlib import Path

from lesion_d2.data.volume_set.form import (
    Lesion,
    Volume,
    VolumeSet,
    read_volume_set,
    write_volume_set,
)
from lesion_d2.data.volume_set.splits import make_folds, split_patients
from lesion_d2.tools.split_data import main

import pytest


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    volumes = tuple(
        Volume(
            f"v{i}",
            f"p{i}",
            f"images/v{i}.b2nd",
            (1, 64, 64),
            lesions=(Lesion(i + 1, 0, (1.0, 2.0, 0.0, 3.0 + i, 4.0, 0.0)),) * (i % 4 > 0),
        )
        for i in range(10)
    )
    write_volume_set(tmp_path / "mine", VolumeSet(("nodule",), volumes))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "mine"


def test_splits_and_folds_are_written_and_told_of(root, capsys):
    before = read_volume_set(root)
    assert main(["mine", "--seed", "3"]) == 0
    assert read_volume_set(root).splits == split_patients(before, seed=3)
    table = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert rows[0] == ["", "train", "val", "test", "all"]
    assert rows[2] == ["patients", "6", "2", "2", "10"]
    assert (rows[3][0], rows[3][-1]) == ("patients without a lesion", "3")
    assert main([str(root), "--folds", "4", "--shares", "1", "1", "0"]) == 0
    found = read_volume_set(root)
    assert found.folds == make_folds(before, 4, (1, 1, 0))
    assert found.splits == split_patients(before, seed=3) and found.volumes == before.volumes
    assert capsys.readouterr().out.count("| fold ") == 4


def test_others_are_replaced_only_where_that_is_asked_for(root, capsys):
    assert main(["mine", "--folds", "2"]) == 0
    content = (root / "volume_set.json").read_bytes()
    assert main(["mine", "--folds", "2"]) == 0
    assert main(["mine", "--folds", "3"]) == 1
    assert (root / "volume_set.json").read_bytes() == content
    error = capsys.readouterr().err
    assert "found 2 folds that differ from the new ones; pass --overwrite" in error
    assert main(["mine", "--folds", "3", "--overwrite"]) == 0
    assert len(read_volume_set(root).folds) == 3


def test_errors_are_one_line(root, capsys):
    for arguments, message in (
        (["mine", "--folds", "11"], "found 11 folds, expected 2 to 10, the number of patients"),
        (["miner"], "miner/volume_set.json: no such file, expected a data set of volumes such as"),
        (
            ["theirs"],
            "theirs/volume_set.json: no such file, expected a data set of volumes such as",
        ),
        (["mine", "--shares", "0", "0", "0"], "found shares [0.0, 0.0, 0.0], expected"),
    ):
        assert main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert line.endswith(" mine") or "volumes such as" not in line


def test_a_seed_that_is_none_is_an_argument_error(root, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["mine", "--seed", "-1"])
    assert "argument --seed: found '-1', expected 0 to 2^32 - 1" in capsys.readouterr().err
