import errno
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

from lesion_d2.findings import read_findings
from lesion_d2.scans.writing import write_dicom, write_nifti
from lesion_d2.tools.predict import __main__ as command
from lesion_d2.tools.predict import outputs, running
from lesion_d2.tools.predict.__main__ import main

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import warm_processes
from slice_files import write_slices
from tiny_prediction import SPACING, make_arguments, make_volume, read_summary, write_run
from tiny_run import CONFIG

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("jsonschema")

FILES = ["coco_instances_results.json", "findings.csv", "findings.json", "report.html"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scans, and a run with weights and an evaluation."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "nifti").mkdir()
    for seed, name in enumerate("abc"):
        write_nifti(folder / "nifti" / f"{name}.nii.gz", make_volume(seed), SPACING)
    write_dicom(folder / "dicom", make_volume(0), SPACING)
    write_slices(folder / "png", make_volume(0))
    bad = folder / "bad"
    bad.mkdir()
    whole = (folder / "nifti" / "a.nii.gz").read_bytes()
    (bad / "cut_off.nii.gz").write_bytes(whole[: len(whole) // 2])
    write_run(folder / "run")
    return folder


def _arguments(folder, *arguments, **options):
    return make_arguments(folder / "run", *arguments, **options)


def test_one_volume_in_three_formats(folder, tmp_path, capsys):
    inputs = [folder / "nifti" / "a.nii.gz", folder / "dicom", folder / "png"]
    flags = ("--spacing", "0.7,0.7,2.5", "--report", "full")
    assert main(_arguments(folder, tmp_path / "out", *inputs, flags=flags)) == 0

    printed, said = capsys.readouterr()
    assert "0.5 false positives per image on the data set phantom_val" in said
    rows = read_summary(tmp_path / "out")
    assert len(rows) == 3 and all(name in printed for name in rows)
    assert list(next(iter(rows.values()))) == ["scan", "slices", "findings", "seconds", "error"]

    found = {}
    for name, row in rows.items():
        made = sorted(path.name for path in (tmp_path / "out" / name).iterdir())
        findings = read_findings(tmp_path / "out" / name / "findings.json")
        kind = Path(findings.findings[0].slices[0].file).suffix
        more = {
            ".dcm": ["structured_report.dcm", "segmentation.dcm"],
            ".gz": ["labels.nii.gz"],
            ".png": [],
        }[kind]
        assert made == sorted([*FILES, "status.json", *more])
        assert (int(row["slices"]), int(row["findings"])) == (4, len(findings.findings))
        assert float(row["seconds"]) > 0 and row["error"] == ""
        found[kind] = [(f.score, f.box) for f in findings.findings]
        point = findings.operating_point
        assert (point.rate, point.unit, point.dataset) == (0.5, "image", "phantom_val")
        assert findings.algorithm.config_file == str(CONFIG)
    assert len(found) == 3 and found[".dcm"] == found[".gz"] == found[".png"] != []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*rows, "index.html", "summary.csv"]
    )


def test_a_bad_scan_is_told_and_the_others_go_on(folder, tmp_path, capsys):
    # Of a folder's scans one can be read, one not even opened; and a picture lies beside them.
    shutil.copytree(folder / "bad", tmp_path / "mixed")
    shutil.copy(folder / "nifti" / "b.nii.gz", tmp_path / "mixed")
    (tmp_path / "mixed" / "text.nii").write_bytes(b"no volume")
    (tmp_path / "mixed" / "cover.jpg").write_bytes(b"a picture")
    inputs = [tmp_path / "mixed", tmp_path / "gone"]
    flags = ("--score-threshold", "0", "--report", "none")
    assert main(_arguments(folder, tmp_path / "out", *inputs, flags=flags)) == 1

    rows = read_summary(tmp_path / "out")
    assert set(rows) == {"cut_off", "text.nii", "gone", "b"}
    assert "left out: " in capsys.readouterr().err

    errors = {name[:4]: row["error"] for name, row in rows.items()}
    assert "cut_off.nii.gz: found" in errors["cut_"] and "text.nii: found" in errors["text"]
    assert "no such file" in errors["gone"]
    assert errors["b"] == "" and rows["b"]["slices"] == "4"

    folders = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert folders == ["b"] and not (tmp_path / "out" / "b" / "report.html").exists()
    # As one that is thinner than the model's stack.
    arguments = _arguments(
        folder, tmp_path / "out", folder / "nifti" / "b.nii.gz", INPUT__CT__SLICE_INTERVAL=20.0
    )
    assert main(arguments) == 1

    expected = "found 4 slices of 2.5 mm, expected 17 or more"
    assert expected in read_summary(tmp_path / "out")["b.nii.gz"]["error"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_the_program_is_one_scans_alone(folder, tmp_path, capsys, monkeypatch):
    inputs = [folder / "nifti" / f"{name}.nii.gz" for name in "ab"]
    predict_scan = running.predict_scan

    def faulty(predictor, scan, **options):
        if scan.name == "a":
            raise RuntimeError("out of\nmemory")
        return predict_scan(predictor, scan, **options)

    monkeypatch.setattr(running, "predict_scan", faulty)
    assert main(_arguments(folder, tmp_path / "out", *inputs)) == 1
    rows = read_summary(tmp_path / "out")
    assert rows["a"]["error"] == "RuntimeError: out of memory" and rows["b"]["error"] == ""
    assert "Traceback" in capsys.readouterr().err


def test_what_is_done_stays_done(folder, tmp_path, monkeypatch, capsys):
    output, file = tmp_path / "out", folder / "nifti" / "a.nii.gz"
    plain = ("--score-threshold", "0", "--report", "none")
    write_nifti(tmp_path / "a.nii.gz", make_volume(0), SPACING)
    assert main(_arguments(folder, output, tmp_path / "a.nii.gz", flags=plain)) == 0

    loaded = []
    predictor = running.LesionPredictor
    monkeypatch.setattr(running, "LesionPredictor", lambda c: loaded.append(c) or predictor(c))
    before = read_summary(output)
    assert main(_arguments(folder, output, tmp_path / "a.nii.gz", flags=plain)) == 0
    assert not loaded and read_summary(output) == before and "(reused)" in capsys.readouterr().out

    # Each of these asks for other results.
    flags = ("--score-threshold", "0.01")
    for number, arguments in enumerate(
        (
            _arguments(folder, output, tmp_path / "a.nii.gz", flags=flags),
            _arguments(folder, output, tmp_path / "a.nii.gz", TEST__DETECTIONS_PER_IMAGE=3),
            _arguments(folder, output, file, TEST__DETECTIONS_PER_IMAGE=3),
        ),
        start=1,
    ):
        assert main(arguments) == 0 and len(loaded) == number

    write_nifti(file, make_volume(0)[:3], SPACING)
    try:
        assert main(_arguments(folder, output, file, TEST__DETECTIONS_PER_IMAGE=3)) == 0
    finally:
        write_nifti(file, make_volume(0), SPACING)
    assert len(loaded) == 4 and read_summary(output)["a"]["slices"] == "3"


def test_a_killed_call_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    inputs = [folder / "nifti" / f"{name}.nii.gz" for name in "abc"]
    arguments = _arguments(folder, tmp_path / "out", *inputs)
    script = Path(__file__).with_name("killed_prediction.py")
    killed = warm_processes.run_script(script, "2", *arguments, cwd=tmp_path)
    assert killed.returncode == -9
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"a", ".b.part", ".b.lock"}
    predicted = []
    predict_scan = running.predict_scan
    monkeypatch.setattr(
        running,
        "predict_scan",
        lambda p, scan, **o: predicted.append(scan.name) or predict_scan(p, scan, **o),
    )
    assert main(arguments) == 0 and predicted == ["b", "c"]
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"a", "b", "c", "index.html", "summary.csv"}
    assert list(read_summary(tmp_path / "out")) == ["a", "b", "c"]


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """The results of one process on three scans and a damaged one."""
    output = tmp_path_factory.mktemp("alone") / "one"
    assert main(_several(folder, output)) == 1
    return output


def _several(folder, output, *flags):
    inputs = [folder / "nifti", folder / "bad" / "cut_off.nii.gz"]
    flags = ("--score-threshold", "0", "--report", "none", *flags)
    return _arguments(folder, output, *inputs, flags=flags)


def _check_same(one, two):
    ones, twos = read_summary(one), read_summary(two)
    assert list(ones) == list(twos) and len(ones) == 4
    for name, row in ones.items():
        assert {**row, "seconds": 0} == {**twos[name], "seconds": 0}
        if not row["error"]:
            for file in ("findings.json", "labels.nii.gz"):
                assert (one / name / file).read_bytes() == (two / name / file).read_bytes()


def test_two_processes_find_the_same(folder, alone, tmp_path):
    with mock.patch.object(mp, "start_processes", warm_processes.start_processes):
        assert main(_several(folder, tmp_path / "two", "--num-gpus", "2")) == 1
    _check_same(alone, tmp_path / "two")


def _predict_part(rank, arguments, folder):
    status = main([*arguments, "--shard", f"{rank + 1}/2"])
    (folder / f"status_{rank}").write_text(str(status))


def test_two_parts_at_a_time_find_the_same(folder, alone, tmp_path, capsys):
    output = tmp_path / "two"
    warm_processes.start_processes(_predict_part, (_several(folder, output), tmp_path), nprocs=2)
    _check_same(alone, output)
    # The damaged file is the last one of four scans.
    assert [(tmp_path / f"status_{rank}").read_text() for rank in (0, 1)] == ["0", "1"]

    # Queued once more: nothing is predicted, and the summary is the same.
    before = (output / "summary.csv").read_bytes()
    (output / "summary.csv").unlink()
    with mock.patch.object(running, "predict_scan"):
        assert main(_several(folder, output, "--shard", "1/2")) == 0
    assert (output / "summary.csv").read_bytes() == before

    # Other settings are other results, of which a part is missing.
    (output / "summary.csv").unlink()
    changed = [*_several(folder, output, "--shard", "1/2"), "TEST.DETECTIONS_PER_IMAGE", "3"]
    capsys.readouterr()
    assert main(changed) == 0
    assert "part 1/2 has finished" in capsys.readouterr().out
    assert not (output / "summary.csv").exists()

    (output / ".parts" / "2-of-2.json").write_text("[]")
    assert main(changed) == 1
    assert (
        "2-of-2.json: found other content, expected the rows of a part; remove"
        in capsys.readouterr().err
    )


def test_a_full_disk_is_one_line_and_leaves_nothing_half(folder, tmp_path, capsys, monkeypatch):
    def full(file, *args, **options):
        file.write_text("half a")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    inputs = [folder / "nifti" / f"{name}.nii.gz" for name in "ab"]
    monkeypatch.setattr(outputs, "write_coco", full)
    assert main(_arguments(folder, tmp_path / "out", *inputs)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error:" in last and "out/a: cannot be written: [Errno 28] No space left" in last
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "flags, changes, message",
    [
        ((), {"MODEL__WEIGHTS": ""}, "MODEL.WEIGHTS: found none, expected the weights"),
        ((), {"MODEL__WEIGHTS": "gone.pth"}, "MODEL.WEIGHTS: gone.pth: no such weight file"),
        ((), {"TEST__LINKING": "sort"}, "TEST.LINKING: found 'sort', expected one of"),
        (("--fps-per-image", "3"), {}, r"froc.json: found 3 false .*, expected one of 0.5, 1 on"),
        (("--fps-per-image", "16"), {}, "froc.json: .* which the curve on phantom_val does not"),
        (("--fps-per-volume", "1"), {}, "found no volumes.json of an evaluation in .*inference"),
        (
            ("--operating-points", "gone.json"),
            {},
            r"error: gone.json: no such file, expected the froc.json",
        ),
        (
            ("--operating-points", "FROC", "--fps-per-volume", "1"),
            {},
            "froc.json: found false positives per image, expected false positives per vo",
        ),
        (
            ("--operating-points", "FROC", "--score-threshold", "0.5"),
            {},
            "found --score-threshold and --operating-points",
        ),
    ],
)
def test_what_cannot_be_predicted_is_one_line(folder, tmp_path, capsys, flags, changes, message):
    froc = str(folder / "run" / "inference" / "phantom_val" / "froc.json")
    flags = [froc if flag == "FROC" else flag for flag in flags]
    output = tmp_path / "out"
    assert main(_arguments(folder, output, folder / "nifti", flags=flags, **changes)) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert not output.exists()
    assert re.search(message, line)


def test_output_that_cannot_be_written(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(command, "predict_all", pytest.fail)  # nothing is predicted before
    monkeypatch.setattr(command.os, "access", lambda path, mode: path != tmp_path)
    for output in (tmp_path / "file" / "out", tmp_path):
        assert main(_arguments(folder, output, folder / "nifti")) == 1
        assert f"--output: {output} cannot be" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_processes_share_the_cores(folder, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(command, "predict_all", lambda job, *_: jobs.append(job) or ([], None))
    main(_arguments(folder, tmp_path, folder / "nifti", MODEL__DEVICE="cuda"))
    assert jobs[0].cfg.MODEL.DEVICE == "cpu"  # by which their number of threads is chosen


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--score-threshold", "x"), "found 'x', expected a score from 0 to 1"),
        (("--score-threshold", "nan"), "found 'nan', expected a score"),
        (("--fps-per-image", "0"), "found '0', expected a number above 0"),
        (("--fps-per-image", "1", "--score-threshold", "0"), "not allowed with"),
        (("--spacing", "1,2"), "found '1,2', expected three numbers"),
        (("--num-gpus", "0"), "found 0, expected at least 1"),
        (("--shard", "0/2"), "found '0/2', expected I/N"),
        (("--study", "1", "--shard", "1/2"), "found --study with --shard"),
        (("--input", "a.nii"), "found MODEL.DEVICE among the scans of --input, expected KEY"),
    ],
)
def test_arguments_that_are_none(folder, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main(_arguments(folder, tmp_path, folder / "nifti", flags=flags))
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_damaged_dicom_is_an_error_and_what_is_no_ct_is_none(folder, tmp_path, capsys):
    shutil.copytree(folder / "dicom", tmp_path / "study" / "whole")
    other = pydicom.dcmread(folder / "dicom" / "0000.dcm")
    other.Modality, other.SOPInstanceUID, other.SeriesInstanceUID = "MR", "1.2.3", "1.2.4"
    other.save_as(tmp_path / "study" / "mr.dcm")
    flags = ("--score-threshold", "0.9", "--report", "none")
    arguments = _arguments(folder, tmp_path / "out", tmp_path / "study", flags=flags)
    assert main(arguments) == 0
    assert "mr.dcm (series 1, 1.2.4): found the modality 'MR'" in capsys.readouterr().err

    # Two series more: one with a gap, one whose last file is cut off.
    volume = np.concatenate([make_volume(1), make_volume(2)])
    files = write_dicom(tmp_path / "study" / "gap", volume, SPACING, series_number=2)
    files[3].unlink()
    files[4].unlink()
    cut = write_dicom(tmp_path / "study" / "cut", make_volume(2), SPACING, series_number=3)[-1]
    cut.write_bytes(cut.read_bytes()[:-100])
    assert main(arguments) == 1

    errors = [row["error"] for row in read_summary(tmp_path / "out").values()]
    assert sum("found a gap of 7.5 mm" in error for error in errors) == 1
    assert sum("found a truncated file" in error for error in errors) == 1

    rows = read_summary(tmp_path / "out")
    assert sorted(row["slices"] for row in rows.values() if not row["error"]) == ["3", "4"]


def test_without_the_package_for_reports_the_rest_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lesion_d2.findings.dicom", None)
    flags = ("--score-threshold", "0", "--report", "none")
    assert main(_arguments(folder, tmp_path / "out", folder / "dicom", flags=flags)) == 1
    [(name, row)] = read_summary(tmp_path / "out").items()
    assert row["error"].startswith("structured_report.dcm cannot be created: ")
    assert int(row["findings"]) > 0 and (tmp_path / "out" / name / "findings.json").is_file()
