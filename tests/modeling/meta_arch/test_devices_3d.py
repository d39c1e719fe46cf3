"""Where the tensors of detectors in 3-D are, in training and in inference."""

from lesion_d2.inference import VolumeEnsemble, volume_ensemble
from lesion_d2.structures import Boxes3D

import pytest
import torch
from made_up_patches import losses_of, patch, tiny_model
from torch import nn
from two_devices import GPU, TwoDevices, on_gpu

SIZE = (6, 24, 24)
BOXES = [[2.5, 3.5, 0.5, 11.5, 13.5, 3.5], [12.5, 9.5, 1.5, 21.5, 20.5, 4.5]]
ALL = (
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.SEG_HEAD.PREDICT_MASKS", True),
)
NNDETECTION = (
    *("MODEL.RETINANET.ATSS_CANDIDATES", 4, "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"),
    *("MODEL.RETINA_UNET.SHEM_NEGATIVES", 2, "MODEL.RETINA_UNET.SOFTMAX", False),
)
MASKS = (
    *("MODEL.MASK_ON", True, "MODEL.LESION_RCNN.SHEM_POOL", 10),
    *("MODEL.LESION_RCNN.SEG_LOSS_WEIGHT", 0.5),
)


class _Reader:
    """A volume in memory."""

    def __init__(self, volume):
        self.volume, self.shape = volume, tuple(volume.shape)
        self.source_shape = (2 * self.shape[0], *self.shape[1:])

    def load(self, start, size, device):
        (z, y, x), (d, h, w) = start, size
        return self.volume[z : z + d, y : y + h, x : x + w].to(device)

    def to_source(self, boxes):
        return boxes * boxes.new_tensor([1, 1, 2, 1, 1, 2])


@pytest.mark.parametrize(
    ("name", "options", "waits"),  # of the first step, in which the deltas' weights are copied
    [
        ("RetinaUNet3D", (), 2),
        ("RetinaUNet3D", NNDETECTION, 2),
        ("RetinaNet3D", ("MODEL.RETINA_UNET.SHEM_POOL", 0), 1),
        ("LesionRCNN3D", MASKS, 18),
        ("DetUNet3D", (), 0),
    ],
)
def test_no_call_mixes_devices_and_few_wait_in_3d(monkeypatch, name, options, waits):
    monkeypatch.setattr(volume_ensemble, "prefetch", iter)  # a thread knows one device alone
    model = tiny_model(name, *ALL, *options)
    if name == "DetUNet3D":
        nn.init.zeros_(model.head.bias)  # it would find no lesion
    batch = [patch(BOXES, SIZE, classes=[1, 0]), patch([], SIZE, seed=1)]
    with TwoDevices() as devices:
        devices.place(model, *batch)
        losses = losses_of(model, batch)
        assert devices.own_waits().total() <= waits, devices.own_waits()
        ensemble = VolumeEnsemble([model], tile_size=(6, 24, 16), mirrors=False)
        [found] = ensemble([{"reader": _Reader(batch[0]["image"][0])}])
    assert all(map(on_gpu, losses.values())) and len(losses) > 0
    assert len(found["instances"]) > 0 and on_gpu(found["instances"].scores)
    assert devices.mixed == []


def test_mixed_devices_are_found_out():
    with TwoDevices() as devices:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device == GPU and here.device.type == "cpu" and (there + 1).device == GPU
        assert there.to("cpu").device.type == "cpu" and here.to(there.device).device == GPU
        assert there[torch.tensor([1])].device == GPU and not devices.mixed  # as on a GPU
        boxes = Boxes3D(torch.zeros(2, 6, device="cuda"))
        assert boxes.get_centers().device == GPU and not devices.mixed
        there + here
        here[there > 0]
        torch.cat([here, there])
    assert [each.split()[0] for each in devices.mixed] == ["add", "__getitem__", "cat"]
