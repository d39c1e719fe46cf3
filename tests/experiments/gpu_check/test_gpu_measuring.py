"""The measurements, on the CPU and as small as they get, and the process that does them."""

import os
import signal
from multiprocessing import active_children

from lesion_d2.config.volumetric import is_volumetric
from lesion_d2.experiments.gpu_check import measuring, waiting
from lesion_d2.experiments.gpu_check.configs import SETTINGS, read_config
from lesion_d2.experiments.gpu_check.jobs import Job
from lesion_d2.experiments.gpu_check.wheels import needed
from lesion_d2.experiments.gpu_check.worker import Options, Worker

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("quick_weights")


@pytest.fixture
def few_calls(monkeypatch):
    monkeypatch.setattr(measuring, "_MOST", 1)
    monkeypatch.setattr(measuring, "_LEAST", 1)
    monkeypatch.setattr(measuring, "_TOGETHER", 2)


@pytest.mark.parametrize("seed", range(3))
def test_time_that_kernels_cover_is_that_of_their_union(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 60, 12)
    last = first + rng.integers(0, 9, 12)
    busy = np.zeros(80, bool)
    for a, b in zip(first, last, strict=True):
        busy[a:b] = True
    intervals = list(zip(first.tolist(), last.tolist(), strict=True))
    assert waiting.covered(intervals) == busy.sum()
    assert waiting.covered([]) == 0


def test_nobody_waits_for_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert waiting.waiting_share(lambda: None, 1) is None


@pytest.mark.parametrize("name", ["uldor/uldor", "retina_unet/retinanet_3d"])
def test_a_model_trains_and_infers(few_calls, name):
    cfg = read_config(name, "cpu", tiny=True)
    SETTINGS["float32"].apply(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 1
    if is_volumetric(cfg):
        cfg.INPUT.VOLUME.PATCH_SIZE = (8, 64, 32)
    found = measuring.measure_model(cfg, seconds=0.0)
    assert found["batch"] == 1 and found["training_mib"] is None and found["waiting"] is None
    for key in ("training_per_s", "inference_ms", "inference_of_4_ms", "first_step_s"):
        assert found[key] > 0


def test_a_mean_teacher_has_pseudo_labels_and_moves(few_calls, monkeypatch):
    cfg = read_config("mean_teacher/add", "cpu", tiny=True)
    moved = []
    update = measuring.MeanTeacher.update_teacher
    monkeypatch.setattr(
        measuring.MeanTeacher,
        "update_teacher",
        lambda self: moved.append(self.counts["pseudo_labels"]) or update(self),
    )
    found = measuring.measure_model(cfg, seconds=0.0)
    assert found["training_per_s"] > 0 and moved and moved[0] > 0


def test_frozen_statistics_keep_features_in_the_range_of_half_precision():
    cfg = read_config("uldor/uldor", "cpu", tiny=True)
    torch.manual_seed(0)
    batch = measuring.made_up_batch(cfg, "cpu")
    model = measuring.Trainer.build_model(cfg)
    image = model.preprocess_image(batch[:1]).tensor
    with torch.no_grad():
        before = model.backbone.bottom_up(image)["res5"].abs().max()
        measuring.freeze_statistics(model, batch)
        after = model.backbone.bottom_up(image)["res5"].abs().max()
    assert before > torch.finfo(torch.float16).max > 100 > after > 0.1


def test_the_update_and_the_average_alone(few_calls):
    cfg = read_config("uldor/uldor", "cpu", tiny=True)
    found = measuring.measure_optimizer(cfg, seconds=0.0)
    assert found["fused_ms"] > 0 and found["not_fused_ms"] > 0
    cfg.MODEL.MEAN_TEACHER.ENABLED = True
    found = measuring.measure_teacher(cfg, seconds=0.0)
    assert found["foreach_ms"] > 0 and "tensor by tensor" in found["note"]


def test_a_job_that_breaks_or_takes_too_long_costs_itself_alone(warm_spawn, tmp_path):
    worker, before = Worker(Options("cpu", tmp_path, True, 0.0)), active_children()

    def started():
        [process] = set(active_children()) - set(before)
        return process

    try:
        worker.submit(Job("model", "no/such"))
        assert "no/such.yaml" in worker.wait(60.0)["error"]
        process = started()
        worker.submit(Job("loader", "uldor/uldor"))
        assert worker.wait(0.0) == {"error": "stopped after 0 s"} and not process.is_alive()
        worker.submit(Job("loader", "uldor/uldor"))
        os.kill(started().pid, signal.SIGKILL)
        assert worker.wait(60.0) == {"error": "its process ended with status -9"}
        worker.submit(Job("model", "no/other"))
        assert "no/other.yaml" in worker.wait(60.0)["error"]
    finally:
        left = set(active_children()) - set(before)
        worker.stop()
    assert len(left) == 1 and not any(process.is_alive() for process in left)


def test_packages_that_a_machine_needs():
    tree = {
        "lesion-d2": [
            "Torch>=2",
            "yacs",
            "scikit-image; extra == 'test'",
            "tomli; python_version < '3'",
        ],
        "torch": ["nvidia-cublas"],
        "yacs": ["PyYAML>=6"],
        "pytest": ["pluggy", "torch"],
    }
    found = needed(["lesion_d2", "pytest"], ["torch"], lambda name: tree.get(name, ()))
    assert found == ["pluggy", "pytest", "pyyaml", "yacs"]
