"""What is measured, and that the time for it is kept."""

from collections import Counter

from lesion_d2 import get_lesion_config
from lesion_d2.experiments.gpu_check import __main__ as program
from lesion_d2.experiments.gpu_check.configs import (
    CONFIGS,
    SETTINGS,
    SMALL,
    main_configs,
    read_config,
)
from lesion_d2.experiments.gpu_check.jobs import FIRST_GUESS, Job, plan, steps

import pytest


def test_every_model_at_full_width_is_measured_and_each_row_once():
    names = main_configs()
    assert len(names) == len(set(names)) > 35
    assert all((CONFIGS / f"{name}.yaml").exists() for name in (*names, *SMALL))
    jobs = plan()
    assert max(Counter(jobs).values()) == 1
    for kind, setting in (("model", "as it is"), ("model", "float32"), ("loader", "as it is")):
        found = [j.config for j in jobs if (j.kind, j.setting) == (kind, setting)]
        assert sorted(found) == sorted(names)
    assert {j.setting for j in jobs} == set(SETTINGS)
    assert {j.kind for j in jobs} | {"step", "compiled"} == set(FIRST_GUESS)
    # Whatever a model is worth comes before what only fills the table.
    assert [j.setting for j in jobs[:16]] == ["as it is"] * 16


def test_small_configs_are_of_every_kind_of_model():
    assert len(steps()) == 11
    kinds = set()
    for name in SMALL:
        cfg = get_lesion_config()
        cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
        kinds.add(cfg.MODEL.META_ARCHITECTURE)
        kinds.add("MeanTeacher" if cfg.MODEL.MEAN_TEACHER.ENABLED else "")
        kinds.add(cfg.MODEL.ROI_HEADS.NAME)
    assert kinds >= {
        *("RetinaUNet", "LesionRCNN", "RFCN3DCE", "DetUNet", "MeanTeacher", "ULDorROIHeads"),
        *("RetinaUNet3D", "LesionRCNN3D", "DetUNet3D"),
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_what_they_are_called(name):
    cfg = read_config("uldor/uldor", "cpu", tiny=True)
    SETTINGS[name].apply(cfg)
    found = cfg.SOLVER.AMP.ENABLED, cfg.MODEL.CHANNELS_LAST, cfg.SOLVER.FUSED, cfg.SOLVER.COMPILE
    assert (
        found
        == {
            "as it is": (True, True, True, False),
            "float32": (False, False, True, False),
            "channels first": (True, False, True, False),
            "not fused": (True, True, False, False),
            "compiled": (True, True, True, True),
        }[name]
    )
    if name == "as it is":  # what the config itself has
        plain = read_config("uldor/uldor", "cpu", tiny=True)
        assert plain == cfg


class Clock:
    """Time that passes where a worker works."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class FakeWorker:
    """Takes the time that a job's config tells; one that is asked for too much is stopped."""

    def __init__(self, clock):
        self.clock, self.done = clock, []

    def submit(self, job):
        self.job = job

    def wait(self, seconds):
        needs = float(self.job.config)
        self.clock.now += min(needs, seconds)
        self.done.append(self.job)
        if needs > seconds:
            return {"error": f"stopped after {seconds:.0f} s"}
        return {"numbers": {"training_per_s": 1.0, "batch": 1, "first_step_s": 1.0}}


def run(monkeypatch, jobs, seconds):
    clock = Clock()
    monkeypatch.setattr(program, "time", clock)
    worker = FakeWorker(clock)
    outcomes = list(program.do_jobs(worker, jobs, clock.now + seconds))
    return outcomes, worker, clock.now - 100.0


def test_jobs_that_would_not_fit_are_listed_and_smaller_ones_still_done(monkeypatch):
    model, compiled = ("model", "as it is"), ("model", "compiled")
    jobs = [
        Job(model[0], "10", model[1]),
        Job(compiled[0], "50", compiled[1]),  # thought to take 90
        Job(model[0], "20", model[1]),
        Job(model[0], "25", model[1]),  # the last one took 20, and 15 are left
        Job("optimizer", "4"),
        Job(model[0], "1", model[1]),
    ]
    outcomes, worker, passed = run(monkeypatch, jobs, 45.0)
    assert [each.job for each in outcomes] == jobs
    assert worker.done == [jobs[0], jobs[2], jobs[4]] and passed == 34.0
    assert [bool(each.skipped) for each in outcomes] == [False, True, False, True, False, True]
    assert outcomes[1].skipped == "35 s left, expected 90"
    assert outcomes[3].skipped == "15 s left, expected 20"
    assert not any(each.error for each in outcomes)
    assert [each.seconds for each in outcomes if not each.skipped] == [10.0, 20.0, 4.0]


def test_what_hangs_costs_a_part_of_the_time(monkeypatch):
    outcomes, _, passed = run(monkeypatch, [Job("model", "1000"), Job("model", "10")], 300.0)
    assert passed == 110.0 and outcomes[0].error == "stopped after 100 s"
    assert not outcomes[1].error and not outcomes[1].skipped


def test_what_is_not_done_when_the_time_is_up_is_skipped(monkeypatch):
    outcomes, _, passed = run(monkeypatch, [Job("model", "1000"), Job("teacher", "1")], 30.0)
    assert passed == 30.0 and outcomes[0].skipped == "not finished in the 30 s that were left"
    assert outcomes[1].skipped == "0 s left, expected 5"
