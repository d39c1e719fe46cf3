from lesion_d2.experiments.benchmark.models import monai as against_monai

import pytest
import torch
from detectron2.modeling import build_model


def test_ours_has_the_anchors_and_levels_that_the_comparison_names():
    cfg = against_monai.volume_config("cpu")
    cfg.INPUT.VOLUME.PATCH_SIZE = (16, 32, 32)
    model = build_model(cfg).eval()
    (first, second) = against_monai.random_volumes(cfg)
    assert first["image"].shape == (1, 16, 32, 32)
    instances = second["instances"]
    inside = instances.gt_boxes.inside_box((16, 32, 32))
    assert inside.all() and instances.gt_masks.tensor.any(dim=3).any(dim=2).any(dim=1).all()
    with torch.no_grad():
        features = model.backbone(first["image"][None])
    assert [tuple(f.shape[2:]) for f in features.values()][::-1] == [
        (8, 8, 8),
        (4, 4, 4),
        (2, 2, 2),
        (1, 1, 1),
    ]
    assert model.anchor_generator.num_cell_anchors == [9] * 4


def test_without_monai_there_are_no_rows(monkeypatch):
    monkeypatch.setattr(against_monai, "find_spec", lambda name: None)
    assert list(against_monai.measure_monai("cpu")) == []


def test_monais_detector_is_set_up_alike(monkeypatch):
    pytest.importorskip("monai")
    pytest.importorskip("monai.apps.detection.networks.retinanet_detector")
    cfg = against_monai.volume_config("cpu")
    cfg.INPUT.VOLUME.PATCH_SIZE = (16, 32, 32)
    ours, theirs = build_model(cfg).eval(), against_monai.build_monai(cfg).eval()
    batch = against_monai.random_volumes(cfg)[:1]
    with torch.no_grad():
        (found,) = theirs(batch)
    anchors = torch.cat([a.tensor for a in ours.anchor_generator(_maps())])
    (monais,) = theirs.detector.anchors
    assert len(found["instances"]) > 0 and len(monais) == len(anchors)
    # MONAI rounds the half sides of an anchor, in voxels.
    expected = (anchors[:, 3:] - anchors[:, :3]).sort(dim=0).values
    sides = (monais[:, 3:] - monais[:, :3]).sort(dim=0).values
    torch.testing.assert_close(sides, expected, rtol=0, atol=1)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def _maps():
    return [torch.zeros(1, 1, 8 // n, 8 // n, 8 // n) for n in (1, 2, 4, 8)]
