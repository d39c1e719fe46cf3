import json

from lesion_d2.tools.visualize.__main__ import main
from lesion_d2.tools.visualize.sizes import Point, pool

import pytest


def write_fold(folder, name, lesions, sensitivity):
    target = folder / "inference" / name
    target.mkdir(parents=True)
    row = {"stratum": "all lesions", "lesions": lesions, "images": 9, "mean_sens": 1.0}
    content = {"dataset": name, "rows": [row | {"sens@4": sensitivity}]}
    (target / "froc.json").write_text(json.dumps(content))


def test_folds_count_together(tmp_path):
    # Given 5 of 13 in one fold, and 6 of 11 in the other
    write_fold(tmp_path / "a_1", "one", 13, 100 * 5 / 13)
    write_fold(tmp_path / "a_2", "other", 11, 100 * 6 / 11)
    # Then 11 of 24 are found, with the interval of Clopper and Pearson from their table
    point = pool(12, f"{tmp_path}/a_*", 4)
    assert point == Point(12, 11, 24) and point.sensitivity == pytest.approx(45.83, abs=0.01)
    assert point.interval == pytest.approx((25.55, 67.18), abs=0.01)


def test_a_figure_and_its_numbers(tmp_path, capsys):
    write_fold(tmp_path / "a_1", "one", 10, 50.0)
    write_fold(tmp_path / "b_1", "one", 10, 20.0)
    output = str(tmp_path / "sizes.png")
    series = [f"scratch=12:{tmp_path}/b_*", f"both=0:{tmp_path}/a_*,12:{tmp_path}/a_1"]
    assert main(["sizes", *series, "--output", output]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scratch, 12 images: 2 of 10, 20.0 % (3 to 56)"
    assert lines[3:] == [output, str(tmp_path / "sizes.pdf")]
    assert (tmp_path / "sizes.png").stat().st_size > 5000


def test_what_is_missing_is_one_line(tmp_path, capsys):
    output = str(tmp_path / "sizes.png")
    assert main(["sizes", f"a=1:{tmp_path}/none", "--output", output]) == 1
    assert "none: found no inference/*/froc.json, expected evaluations" in capsys.readouterr().err
    write_fold(tmp_path / "a", "one", 10, None)
    with pytest.raises(ValueError, match=r"found no sens@4, expected"):
        pool(1, f"{tmp_path}/a", 4)
    with pytest.raises(SystemExit):
        main(["sizes", "a=x:b", "--output", output])
    assert "found 'a=x:b', expected NAME=IMAGES:PATTERN" in capsys.readouterr().err
