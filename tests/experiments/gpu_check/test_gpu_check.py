"""The check from its command line to its file, with measurements that are made up."""

import json
from pathlib import Path

from lesion_d2.experiments.gpu_check import __main__ as program
from lesion_d2.experiments.gpu_check import running_tests
from lesion_d2.experiments.gpu_check.jobs import Job
from lesion_d2.experiments.gpu_check.report import Outcome, header, line, table

import pytest

PASSED = {"passed": 3, "failed": 0, "skipped": 1, "ok": True, "error": "", "output": []}
NUMBERS = {
    "batch": 4,
    "first_step_s": 1.25,
    "training_per_s": 61.51,
    "inference_ms": 12.0,
    "inference_of_4_ms": 5.0,
    "training_mib": 2048.0,
    "waiting": 0.256,
}


class FakeWorker:
    """Has numbers for every job but those of a broken config."""

    broken = ""

    def __init__(self, options):
        self.options, self.stopped = options, False

    def submit(self, job):
        self.job = job

    def wait(self, seconds):
        assert 0 < seconds < 100 and Path(self.options.folder).is_dir()
        if self.job.config == self.broken:
            return {"error": "RuntimeError: no such kernel", "seconds": 1.0}
        if self.job.kind == "step":
            return {"numbers": {"loss": 1.5}, "seconds": 1.0}
        return {"numbers": {**NUMBERS, "loader_per_s": 99.0, "note": "a note"}, "seconds": 1.0}

    def stop(self):
        self.stopped = True


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    def call(*args, tests=PASSED, broken=""):
        monkeypatch.setattr(program, "Worker", FakeWorker)
        monkeypatch.setattr(program, "run_tests", lambda *_: dict(tests))
        monkeypatch.setattr(FakeWorker, "broken", broken)
        file = tmp_path / "a" / "check.json"
        command = ["--device", "cpu", "--tiny", "--seconds", "80", "--output", str(file), *args]
        status = program.main(command)
        return status, json.loads(file.read_text()) if file.exists() else None, capsys.readouterr()

    return call


def test_one_file_and_one_table(run):
    status, found, printed = run("--rows", "uldor/uldor", "mean_teacher/add")
    assert status == 0 and found["tests"]["passed"] == 3
    assert [step["loss"] for step in found["steps"]] == [1.5] * 11
    assert {(row["kind"], row["config"]) for row in found["rows"]} == {
        *(("model", name) for name in ("uldor/uldor", "mean_teacher/add")),
        *(("loader", name) for name in ("uldor/uldor", "mean_teacher/add")),
        *(("optimizer", "uldor/uldor"), ("teacher", "mean_teacher/add")),
    }
    # Compiling is thought to take longer than there is time.
    assert {job["setting"] for job in found["skipped"]} == {"compiled"} and found["failed"] == []
    assert found["device"] == "cpu" and found["tiny"] and found["seconds_allowed"] == 80
    lines = printed.out.splitlines()
    shown = [text for text in lines if text.startswith("uldor/uldor ")]
    assert len(shown) == 2 * len([r for r in found["rows"] if r["config"] == "uldor/uldor"]) + 1
    assert "3 passed, 0 failed, 1 skipped" in lines[-1] and "2 skipped" in lines[-1]


def test_a_row_that_fails_is_told_and_the_others_go_on(run):
    status, found, printed = run(
        "--rows", "uldor/uldor", "mean_teacher/add", broken="mean_teacher/add"
    )
    assert status == 1 and len(found["rows"]) > 3 and len(found["steps"]) == 11
    assert {job["config"] for job in found["failed"]} == {"mean_teacher/add"}
    assert "FAILED: RuntimeError: no such kernel" in printed.out


def test_a_test_that_fails_is_an_error(run):
    failed = {**PASSED, "failed": 1, "ok": False, "output": ["E assert 1 == 2"]}
    status, found, printed = run("--rows", "3dce_attention/rfcn", tests=failed)
    assert status == 1 and found["failed"] == [] and "E assert 1 == 2" in printed.out


def test_chosen_rows_are_measured_alone(run):
    status, found, _ = run("--rows", "3dce_attention/rfcn", "--no-tests", tests={})
    assert status == 0 and found["tests"] == {} and found["steps"] == [] and found["rows"]


def test_what_cannot_be_checked_is_one_line(run, monkeypatch):
    status, found, printed = run("--rows", "3dce_attention/none")
    assert status == 1 and found is None
    assert printed.err.startswith(
        "gpu_check: error: --rows: found '3dce_attention/none', expected one of "
        "3dce_attention/3dce_15, "
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert program.main(["--device", "cuda"]) == 1


def test_rows_of_the_table():
    outcomes = [
        Outcome(Job("model", "uldor/uldor"), NUMBERS),
        Outcome(Job("loader", "mean_teacher/add"), {"training_per_s": 10.0, "loader_per_s": 40.0}),
        Outcome(Job("model", "mean_teacher/add", "compiled"), skipped="1 s left, expected 90"),
    ]
    assert outcomes[0].cells() == [
        *("uldor/uldor", "as it is", "61.51", "12", "5", "2048", "26%"),
        "batch 4, first step 1.2 s",
    ]
    assert outcomes[1].cells()[1:3] == ["loader", "10"]
    assert outcomes[1].cells()[-1].startswith("loader alone 40 /s")
    assert outcomes[2].cells()[1] == "compiled"
    assert outcomes[2].cells()[-1] == "skipped: 1 s left, expected 90"
    assert len(table(outcomes).splitlines()) == 2 + 3
    assert line(outcomes[0].cells()).index("61.51") == header().index("training /s")


def test_results_of_pytest(tmp_path, monkeypatch):
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text(
        "import pytest\ndef pytest_configure(config):\n"
        "    config.addinivalue_line('markers', 'gpu: of a GPU')\n"
    )
    (folder / "test_made_up.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.gpu\ndef test_good(): assert os.environ['LESION_D2_TEST_DEVICE'] == 'cpu'\n"
        "@pytest.mark.gpu\ndef test_bad(): assert 1 == 2\n"
        "@pytest.mark.gpu\ndef test_left_out(): pytest.skip('one GPU')\n"
        "def test_of_others(): assert False\n"
    )
    monkeypatch.setattr(running_tests, "find_in_checkout", lambda name: tmp_path / name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    found = running_tests.run_tests("cpu", tmp_path, 100.0)

    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert not found["ok"] and found["error"] == ""
    assert found["failures"] == {"tests.gpu.test_made_up.test_bad": "assert 1 == 2"}
    assert list(found["skips"].values()) == ["one GPU"] and any(
        "1 == 2" in x for x in found["output"]
    )


def test_tests_that_take_too_long_are_stopped(tmp_path, monkeypatch):
    def wait(command, **options):
        raise running_tests.subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(running_tests.subprocess, "run", wait)
    found = running_tests.run_tests("cpu", tmp_path, 2.0)
    assert found["error"] == "stopped after 2 s" and not found["ok"]
