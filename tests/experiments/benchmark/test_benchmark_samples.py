"""What the benchmark measures from files to training samples."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.experiments.benchmark import inputs
from lesion_d2.experiments.benchmark.samples import patches, slices, start, sweeps, voxels
from lesion_d2.experiments.benchmark.timing import Times

import numpy as np
from detectron2.data import DatasetCatalog


def test_made_up_rows_load(tmp_path):
    root = tmp_path / "rows"
    inputs.write_rows(root, 50)
    dicts = load_deeplesion(root / "DL_info.csv", root / "Images_png", None)
    assert sum(len(d["annotations"]) for d in dicts) == 50


def test_samples_are_read_from_either_kind_of_file(tiny_phantom, tmp_path, monkeypatch):
    root = shutil.copytree(tiny_phantom / "phantom", tmp_path / "phantom")
    monkeypatch.setattr(slices, "prepare_phantom", lambda folder, **options: root)
    loaded = []
    load = slices.LesionDatasetMapper.load
    monkeypatch.setattr(
        slices.LesionDatasetMapper,
        "load",
        lambda self, record: loaded.append(record["file_name"]) or load(self, record),
    )
    monkeypatch.setattr(slices, "time_calls", _call_first)
    monkeypatch.setattr(slices, "load_deeplesion", lambda *args: load_deeplesion(*args)[:2])
    rows = {row.name: row for row in slices.measure_slices(tmp_path)}

    assert {os.path.basename(os.path.dirname(os.path.dirname(file))) for file in loaded} == {
        "Images_png",
        "Images_prepared",
    }
    assert rows["training sample, ellipses / imread"].limit == 1.6
    assert rows["training sample, ellipses, prepared slices / PNG files"].limit == 0.5
    assert all(row.measured > 0 for row in rows.values()) and len(rows) == 7


def _call_first(calls, *, repeats):
    for call in calls[:3]:  # a sample of either kind of file among them
        call()
    return [Times([1.0], [1.0]) for _ in calls]


def test_masks_are_compared_on_a_data_set_that_is_gone_afterwards(tmp_path, warm_spawn):
    names = DatasetCatalog.list()
    phantom = {"num_patients": 3, "size": 128}
    grabcut, ellipse = slices.compare_masks(tmp_path, ("grabcut", "ellipse"), **phantom)
    assert len(grabcut.dice) == len(ellipse.dice) > 0
    assert grabcut.milliseconds > ellipse.milliseconds > 0
    assert DatasetCatalog.list() == names


def test_formats_of_voxels_are_measured_alike(tmp_path, monkeypatch):
    volume = np.random.default_rng(0).integers(-1000, 1000, (65, 130, 140)).astype(np.int16)
    monkeypatch.setattr(voxels, "real_volume", lambda folder: volume)
    monkeypatch.setattr(voxels, "_OTHERS", (("LZ4", 1, (1, 64, 64), (1, 32, 32)),))
    monkeypatch.setattr(voxels, "_READ", 1)
    rows = voxels.measure_voxels(tmp_path)
    assert [row.name.removeprefix("slice from ") for row in rows] == [
        "PNG files",
        "NIfTI (.nii.gz)",
        "npy memory map",
        "blosc2, LZ4 1, 1x64x64 of 1x32x32",
        "write_voxels",
    ]
    assert rows[2].note.startswith("size 1.000; ")


def test_patches_are_measured_with_and_without_a_deformation(tmp_path, monkeypatch):
    volume = np.random.default_rng(0).integers(-1000, 500, (12, 48, 48)).astype(np.int16)
    monkeypatch.setattr(patches, "real_volume", lambda folder: volume)
    monkeypatch.setattr(patches, "PATCH", (4, 16, 16))
    monkeypatch.setattr(patches, "_REPEATS", 1)
    monkeypatch.setitem(sys.modules, "monai.transforms", None)  # not installed
    rows = patches.measure_patches(tmp_path)
    assert [row.name for row in rows] == ["patches of volumes", "patches of volumes, elastic"]
    assert all(row.measured > 0 and row.unit == "/s" for row in rows)
    assert "4 x 16 x 16, three lesions" in rows[0].note


def test_sweeps_are_measured_against_images_on_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "NUM_SLICES", 12)
    monkeypatch.setattr(sweeps, "LIMITS", {3: 0.59})
    monkeypatch.setattr(sweeps, "NIFTI_SLICES", 6)
    monkeypatch.setattr(sweeps, "MANY_SLICES", 6)
    monkeypatch.setattr(sweeps, "FEW_SLICES", 3)
    monkeypatch.setattr(sweeps, "_REPEATS", 1)
    monkeypatch.setattr(sweeps, "peak_memory", lambda work, cfg: work(cfg) or 2.0)
    reads, time, nifti, memory = sweeps.measure_sweeps(tmp_path, size=32)
    assert reads.name == "volume, 3 channels: reads of a slice" and reads.measured == 1
    assert time.measured > 0 and nifti.measured > 0
    assert memory.measured == 1 and memory.ok


def test_the_start_is_held_against_its_imports(tmp_path, monkeypatch):
    calls = []

    def run(command, *, env, **_):
        assert (Path(env["DETECTRON2_DATASETS"]) / "DeepLesion" / "DL_info.csv").exists()
        calls.append(command[1])
        return SimpleNamespace(stdout=f'{{"seconds": {2.0 * len(calls)}, "mebibytes": 800.0}}\n')

    monkeypatch.setattr(start.subprocess, "run", run)
    whole, ratio = start.measure_start(tmp_path, num_rows=5)
    assert calls == ["-c", "-m"] and (whole.measured, whole.limit) == (4.0, None)
    assert (ratio.measured, ratio.limit) == (2.0, 2.5) and "800 MiB" in whole.note


def test_rows_of_several_files_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "NUM_ROWS", 40)
    monkeypatch.setattr(slices, "_FEWER_ROWS", (10, 5))
    whole, growth = slices.measure_csv(tmp_path)
    assert whole.unit == "x" and whole.measured > 1 and growth.unit == "x" and growth.measured > 0
    assert all(f"{n}: " in growth.note for n in (40, 10, 5))
