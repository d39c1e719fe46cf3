"""What configs say of GPUs: those of models at full width alone."""

import functools
from pathlib import Path

from lesion_d2 import get_lesion_config
from lesion_d2.engine import Trainer

import pytest
import torch
from tiny_run import tiny_config

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    file.relative_to(CONFIGS).with_suffix("").as_posix(): file
    for file in sorted(CONFIGS.rglob("*.yaml"))
    if file.parent.name != "parts" and not file.name.startswith("Base-")
}


@functools.cache
def _settings(name):
    cfg = get_lesion_config()
    cfg.merge_from_file(str(FILES[name]))
    return cfg.SOLVER.AMP.ENABLED, cfg.CUDNN_BENCHMARK


def _is_small(name):
    return (
        name.endswith(("_phantom", "_small"))
        or "/small/" in name
        or name.startswith(("quickstart/", "toys/volumes/"))
    )


def test_models_at_full_width_train_in_mixed_precision():
    full = {name: _settings(name) for name in FILES if not _is_small(name)}
    assert len(full) > 30 and all(amp for amp, _ in full.values())
    # Images of one size; those of Tao et al. and of Bai et al. have many.
    assert {name for name, (_, benchmark) in full.items() if not benchmark} == {
        name for name in full if name.startswith(("3dce_attention/", "mean_teacher/"))
    }


def test_models_that_a_cpu_trains_keep_the_precision_of_their_tables():
    small = {name: _settings(name) for name in FILES if _is_small(name)}
    assert len(small) > 30 and not any(benchmark for _, benchmark in small.values())
    assert {name for name, (amp, _) in small.items() if amp} == {
        name for name in small if name.startswith(("3dce_attention/", "mean_teacher/"))
    }


@pytest.mark.parametrize(
    "device, asked, expected",
    [("cpu", False, True), ("cpu", True, True), ("cuda", False, False), ("cuda", True, True)],
)
def test_channels_are_last_on_a_cpu_and_where_a_gpu_is_asked_for_them(
    monkeypatch, device, asked, expected
):
    def build(cfg):
        assert device == cfg.MODEL.DEVICE
        return torch.nn.Conv2d(4, 4, 3)

    monkeypatch.setattr("detectron2.engine.DefaultTrainer.build_model", build)
    model = Trainer.build_model(tiny_config(MODEL__DEVICE=device, MODEL__CHANNELS_LAST=asked))
    assert model.weight.is_contiguous(memory_format=torch.channels_last) == expected


@pytest.mark.parametrize("device, expected", [("cpu", False), ("cuda", True)])
def test_layout_of_a_model_of_volumes(monkeypatch, device, expected):
    monkeypatch.setattr(
        "detectron2.engine.DefaultTrainer.build_model", lambda cfg: torch.nn.Conv3d(4, 4, 3)
    )
    changes = {"MODEL__DEVICE": device, "MODEL__CHANNELS_LAST": True}
    cfg = tiny_config(**changes, INPUT__VOLUME__PATCH_SIZE=(8, 16, 16))
    weight = Trainer.build_model(cfg).weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) == expected
