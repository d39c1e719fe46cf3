"""Detections on a GPU: those of a CPU, alone and in batches; volumes in tiles."""

import copy

from lesion_d2.inference import OneSizeBatches, VolumeEnsemble

import pytest
import torch
from detectron2.modeling import build_model
from made_up_patches import Reader, tiny_model
from tiny_run import tiny_config
from torch import nn

pytestmark = pytest.mark.gpu


def check_close(found, expected):
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores.cpu(), expected.scores.cpu(), rtol=1e-3, atol=1e-5)
    boxes = found.pred_boxes.tensor.cpu(), expected.pred_boxes.tensor.cpu()
    torch.testing.assert_close(*boxes, rtol=1e-3, atol=1e-2)


def _spread(model):
    """Give scores that differ by more than by rounding."""
    torch.manual_seed(0)
    nn.init.normal_(model.head.cls_score.weight, std=0.5)
    return model.eval()


@torch.no_grad()
def test_slices_alone_in_batches_and_on_the_cpu_have_the_same_detections(device, exact):
    options = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, "TEST__DETECTIONS_PER_IMAGE": 10}
    torch.manual_seed(0)
    model = _spread(build_model(tiny_config(MODEL__DEVICE=device, **options)))
    images = [255 * torch.rand(3, *size) for size in ((64, 64), (64, 96), (64, 64), (96, 64))]
    alone = [model([{"image": image}])[0]["instances"] for image in images]
    together = OneSizeBatches(model)([{"image": image} for image in images])
    on_cpu = build_model(tiny_config(**options)).eval()
    on_cpu.load_state_dict(model.state_dict())
    for image, found, output in zip(images, alone, together, strict=True):
        assert found.scores.device.type == device
        check_close(output["instances"], found)
        check_close(found, on_cpu([{"image": image}])[0]["instances"])


@pytest.mark.parametrize("tiles_per_batch", [1, 3])
def test_volumes_have_the_detections_of_the_cpu(device, exact, tiles_per_batch):
    model = _spread(tiny_model("RetinaNet3D", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0))
    model.max_detections_per_image = 3
    reader = {"reader": Reader(255 * torch.rand(8, 16, 48))}
    options = {"tile_size": (6, 16, 16), "mirrors": False}
    expected = VolumeEnsemble([copy.deepcopy(model)], **options).views(reader).instances
    ensemble = VolumeEnsemble([model.to(device)], tiles_per_batch=tiles_per_batch, **options)
    check_close(ensemble.views(reader).instances, expected)
