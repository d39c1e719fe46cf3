"""What the benchmark measures of detectors in 3-D on whole volumes."""

from lesion_d2.experiments.benchmark import configs
from lesion_d2.experiments.benchmark.models import volumes
from lesion_d2.experiments.benchmark.timing import Times

import pytest
from detectron2.config import CfgNode

pytestmark = pytest.mark.usefixtures("quick_weights")


def thin_config(file, device) -> CfgNode:
    """A config of the same meta-architecture, thin, with few layers and small tiles."""
    cfg = load_config(file, "cpu")
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.INPUT.VOLUME.PATCH_SIZE, cfg.TEST.VOLUME_TILE_SIZE = (8, 32, 32), (0, 0, 0)
    cfg.INPUT.VOLUME.SPACING = (0.0, 0.0, 0.0)
    cfg.MODEL.RETINANET.NORM, cfg.TEST.DETECTIONS_PER_IMAGE = "", 7
    return cfg


load_config = configs.load_config


@pytest.fixture
def small(monkeypatch):
    """Volumes of 24 and 12 slices, which are asked for in this process."""
    monkeypatch.setattr(volumes, "load_config", thin_config)
    for name, number in (("NUM_SLICES", 24), ("FEWER_SLICES", 12)):
        monkeypatch.setattr(volumes, name, number)
    monkeypatch.setattr(volumes, "SIZES", {"cpu": 32, "cuda": 32})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_are_of_both_models(small, monkeypatch, tmp_path, device):
    asked, found, expected_device = [], [], device

    def peak_memory(work, cfg):
        asked.append(work.args[0]["shape"][0])
        return 10.0 * len(asked)

    monkeypatch.setattr(volumes, "peak_memory", peak_memory)

    def time_calls(calls, *, device, **_):
        assert device == expected_device
        found.append(calls[0]())  # on the CPU all the same
        return [Times([0.5], [0.25])]

    monkeypatch.setattr(volumes, "time_calls", time_calls)
    rows = list(volumes.measure_volumes(device, tmp_path))
    assert [row.name for row in rows] == [
        f"{name}, {device}: {what}"
        for name in ("RetinaNet3D", "RetinaUNet3D")
        for what in ("a volume of 24 slices", "memory of 24 slices / 12")
    ]
    assert [row.unit for row in rows] == ["ms", "x"] * 2
    assert rows[0].measured == (250 if device == "cpu" else 500)  # processor time or the clock's
    assert asked == [24, 12] * 2 and rows[1].measured == 0.5 and rows[1].limit == 1.15
    assert found == [7, 7]
    folder = "retina_unet/small/3d/" if device == "cpu" else "retina_unet/"
    assert f"slices of 32 x 32, {folder}retina" in rows[1].note


def test_a_volume_is_read_from_disk(tmp_path):
    record = volumes.write_record(tmp_path, 5, 16)
    assert "voxels" not in record and record["shape"] == (5, 16, 16)
    assert len(record["files"]) == 5 and all(".b2nd" in file for file in record["files"])


def test_the_work_of_memory_is_the_inference(small, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(volumes, "predict", lambda model, mapper, record: calls.append(record))
    cfg = thin_config(configs.VOLUMES_CPU_CONFIGS[0], "cpu")
    record = volumes.write_record(tmp_path, 5, 16)
    volumes.predict_once(record, cfg)
    assert calls == [record]
