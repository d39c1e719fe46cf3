import errno
import os
from pathlib import Path

from lesion_d2.data.prepared import form
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.tools.prepare_slices import main, prepare_slices
from lesion_d2.utils.shards import Shard

import cv2
import numpy as np
import pytest


@pytest.fixture
def root(tmp_path):
    """Three series of two slices."""
    for series in range(3):
        folder = tmp_path / "Images_png" / f"{series + 1:06d}_01_01"
        folder.mkdir(parents=True)
        for number in (5, 6):
            pixels = np.random.default_rng(10 * series + number).integers(0, 65536, (20, 30))
            cv2.imwrite(str(folder / f"{number:03d}.png"), pixels.astype(np.uint16))
    return tmp_path


def _files(root):
    return sorted(os.listdir(root / "Images_prepared"))


def test_all_series_are_written_and_a_second_run_writes_none(root, capsys):
    assert main([str(root), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert f"{root}/Images_prepared: 6 slices of 3 series (3 written now)" in out
    assert _files(root) == [f"{n:06d}_01_01.slices" for n in (1, 2, 3)]
    before = {f: (root / "Images_prepared" / f).stat().st_mtime_ns for f in _files(root)}
    done = prepare_slices(root, workers=1)
    assert (done.series, done.slices, done.written) == (3, 6, 0)
    assert {f: (root / "Images_prepared" / f).stat().st_mtime_ns for f in _files(root)} == before


def test_an_interrupted_run_goes_on_and_changed_series_are_written_anew(root, monkeypatch):
    written, write = [], form.write_prepared

    def write_one(file, pngs):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(Path(file).name)
        return write(file, pngs)

    monkeypatch.setattr("lesion_d2.tools.prepare_slices.write_prepared", write_one)
    with pytest.raises(KeyboardInterrupt):
        prepare_slices(root, workers=1)
    monkeypatch.undo()
    assert _files(root) == written == ["000001_01_01.slices"]
    assert prepare_slices(root, workers=1).written == 2
    cv2.imwrite(str(root / "Images_png/000002_01_01/007.png"), np.zeros((20, 30), np.uint16))
    (root / "Images_png/000003_01_01/005.png").unlink()
    half = root / "Images_prepared/000001_01_01.slices"
    half.write_bytes(half.read_bytes()[:-1])
    assert prepare_slices(root, workers=1).written == 3
    assert (read_slice(root / "Images_prepared/000002_01_01.slices/007.png") == -32768).all()


def test_parts_need_no_joining_and_give_the_same_files(root):
    whole = prepare_slices(root, workers=1)
    expected = {f: (root / "Images_prepared" / f).read_bytes() for f in _files(root)}
    for file in (root / "Images_prepared").iterdir():
        file.unlink()
    parts = [prepare_slices(root, 1, Shard(number, 2)) for number in (1, 2)]
    assert sum(part.series for part in parts) == whole.series == 3
    assert {f: (root / "Images_prepared" / f).read_bytes() for f in _files(root)} == expected


def test_a_damaged_slice_is_told_when_the_other_series_are_done(root, capsys):
    bad = root / "Images_png/000001_01_01/006.png"
    bad.write_bytes(bad.read_bytes()[:-9])
    assert main([str(root), "--workers", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {root}/Images_png: {bad}: truncated PNG" in error
    assert _files(root) == ["000002_01_01.slices", "000003_01_01.slices"]


def test_a_full_disk_leaves_no_half_file(root, monkeypatch, capsys):
    def replace(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    assert main([str(root), "--workers", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error and "000001_01_01.slices" in error
    assert not [f for f in _files(root) if f.endswith(".slices")]


@pytest.mark.parametrize(
    ("made", "words"),
    [((), "Images_png: no such folder"), (("Images_png",), "Images_png: found no folder")],
)
def test_folders_without_series_are_refused(tmp_path, made, words, capsys):
    for name in made:
        (tmp_path / name).mkdir()
    assert main([str(tmp_path)]) == 1
    assert words in capsys.readouterr().err
