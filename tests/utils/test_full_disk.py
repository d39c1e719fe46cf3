"""What is written to a full disk: one line that names the file, and no part of it.

Findings and reports are tested beside their writers, as far as these are not here.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from lesion_d2.data.pseudo_masks.files import write_mask_file
from lesion_d2.data.volume_set.voxels import write_voxels
from lesion_d2.data_checks.faults import Fault
from lesion_d2.data_checks.page import write_page
from lesion_d2.data_checks.report import DataReport
from lesion_d2.engine.checkpoint_files.checkpointer import LesionCheckpointer
from lesion_d2.evaluation import froc_curve, plot_froc
from lesion_d2.experiments.toy_experiments.figure import plot_figure
from lesion_d2.importers.case import Listing
from lesion_d2.importers.running import run_import
from lesion_d2.scans.writing import write_dicom, write_nifti
from lesion_d2.tools import export_coco, prepare_masks
from lesion_d2.tools.common import run_files
from lesion_d2.utils.files import atomic_write
from lesion_d2.visualization import save_picture

import numpy as np
import pytest
import torch
from full_disk import SIZE, check_refused, full_disk, left
from made_up_format import list_npz, write_cases
from made_up_scans import make_volume

DATASETS = Path(__file__).parents[2] / "datasets"


def picture(file: Path) -> None:
    save_picture(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8), file)


def froc(file: Path) -> None:
    box = np.array([[0.0, 0, 10, 10]])
    plot_froc({"a": froc_curve([box], [np.array([0.5])], [box])}, file)


def data_check(file: Path) -> None:
    faults = [Fault(kind, "error", 3, "what it means" * 9, ()) for kind in ("a", "b", "c", "d")]
    report = DataReport((), {}, tuple(faults))
    report.write(file) if file.suffix == ".json" else write_page(file, report, None)


def toy_figure(file: Path) -> None:
    scores = {"donuts_shape": {"retinanet": {50: {1: 10.0, 2: 20.0}}}}
    plot_figure(scores, ["donuts_shape"], ["retinanet"], [50], file)


def checkpoint(file: Path) -> None:
    LesionCheckpointer(torch.nn.Linear(100, 100), str(file.parent)).save(file.stem)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", picture),
        ("a.png", froc),
        ("a.nii", lambda file: write_nifti(file, make_volume(), (1, 1, 1))),
        ("a.nii.gz", lambda file: write_nifti(file, make_volume(), (1, 1, 1))),
        ("0000.dcm", lambda file: write_dicom(file.parent, make_volume(), (1, 1, 1))),
        ("a.b2nd", lambda file: write_voxels(file, make_volume())),
        ("a.json", lambda file: write_mask_file(str(file), {"text": "x" * SIZE}, [])),
        ("a.pth", checkpoint),
        ("data_check.json", data_check),
        ("data_check.html", data_check),
        ("figure5.png", toy_figure),
        ("table1.csv", lambda file: run_files.write_rows([{"a": "x" * SIZE}], file)),
    ],
)
def test_a_file_is_named_and_the_old_one_stays(tmp_path, name, write):
    check_refused(tmp_path / name, write)


def test_journals_and_large_texts_too(tmp_path):
    with (
        full_disk(),
        pytest.raises(OSError, match=r"File too large: '.*/a'$"),
        atomic_write(tmp_path / "a") as partial,
        open(partial, "w") as opened,
    ):
        opened.write("x" * (SIZE + 1))
    assert left(tmp_path) == []


def test_what_is_imported_meanwhile_is_not_kept_half_compiled(tmp_path, monkeypatch):
    """The next process would not be able to import it."""
    (tmp_path / "module_of_this_test.py").write_text(f"text = {'x' * SIZE!r}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with full_disk():
        importlib.import_module("module_of_this_test")
    assert left(tmp_path) == ["module_of_this_test.py"] and not sys.dont_write_bytecode


def script(name: str) -> Callable[[list[str]], int]:
    """``main`` of a script in ``datasets/``."""
    spec = importlib.util.spec_from_file_location(name, DATASETS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prepare_phantom", ["--patients", "3", "--size", "64", "--workers", "1"]),
        ("prepare_toys", ["--train", "2", "--val", "2", "--test", "2", "--workers", "1"]),
        ("prepare_toys", ["--volumes", "--train", "2", "--val", "2", "--test", "2"]),
    ],
)
def test_generated_data_sets(tmp_path, capsys, name, options):
    with full_disk():
        assert script(name)(["--root", str(tmp_path / "new" / "set"), *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: [Errno 27] File too large: '")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert not list(tmp_path.rglob(".*.part"))


def test_an_import_and_what_it_has_finished(tmp_path):
    write_cases(tmp_path / "source")
    listing: Listing = list_npz(tmp_path / "source")
    with full_disk(), pytest.raises(OSError, match=r"File too large: '.*\.b2nd'$"):
        run_import(listing, tmp_path / "mine", format="npz", workers=1)
    assert not (tmp_path / "mine").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".part", ".b2nd"))]
    assert run_import(listing, tmp_path / "mine", format="npz", workers=1).written


def test_prepared_masks_and_exports_of_a_data_set(tiny_phantom, tmp_path, capsys):
    masks = ["--dataset", "phantom_val", "--method", "ellipse", "--workers", "1"]
    coco = ["phantom_val", "--workers", "1"]
    for tool, arguments, output, place in (
        (prepare_masks, masks, "masks.json", "masks.json.partial"),
        (export_coco, coco, "coco", "annotations.json"),
    ):
        with full_disk(), contextlib.suppress(SystemExit):
            assert tool.main([*arguments, "--output", str(tmp_path / output)]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert "[Errno 27] File too large: '" in last and last.endswith(f"{place}'")
        assert not (tmp_path / output).exists() and not list(tmp_path.glob(".*"))
    assert prepare_masks.main([*masks, "--output", str(tmp_path / "masks.json")]) == 0
