"""The loader of a GPU, on a device that is made up; tests/gpu has it on one that is there."""

import contextlib

from lesion_d2.data.loader import DeviceLoader
from lesion_d2.data.slices.ct import hu_to_pixels
from lesion_d2.data.transfer import annotation_tensors
from lesion_d2.structures import BitMasks3D, Boxes3D
from lesion_d2.structures.ignore_regions import mark_regions

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from two_devices import GPU, TwoDevices, on_gpu

WINDOW = (-1024.0, 1050.0)


class _Stream:
    """A side stream: its events, and who waited for them."""

    waited = 0

    def __init__(self, device=None):
        pass

    def record_event(self):
        return self

    def wait_event(self, event):
        type(self).waited += 1


@pytest.fixture
def recorded(monkeypatch):
    """Tensors whose memory the consumer holds, where streams are made up."""
    tensors = []
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, _: tensors.append(self))
    monkeypatch.setattr(_Stream, "waited", 0)
    return tensors


def sample_of_slices(number):
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.full((3, 4), float(number)))
    instances.gt_classes = torch.tensor([-1, 0, 1])
    instances.gt_masks = BitMasks(torch.rand(3, 4, 6) > 0.5)
    mark_regions(instances, 1)
    image = torch.full((3, 4, 6), number, dtype=torch.int16)
    return {
        "image": image,
        "weak_image": image + 1,
        "slice_to_image": torch.eye(2, 3),
        "hidden_boxes": Boxes(torch.ones(2, 4)),
        "instances": instances,
        "image_id": f"image {number}",
        "volume_boxes": [[1.0, 2.0, 3.0, 4.0]],
    }


def sample_of_a_volume(number):
    instances = Instances((2, 4, 6))
    instances.gt_boxes = Boxes3D(torch.full((1, 6), float(number)))
    instances.gt_classes = torch.tensor([0])
    instances.gt_masks = BitMasks3D(torch.rand(1, 2, 4, 6) > 0.5)
    return {
        "image": torch.full((1, 2, 4, 6), number, dtype=torch.int16),
        "instances": instances,
        "image_id": f"patch {number}",
    }


def fields_of(sample):
    fields = sample["instances"].get_fields()
    return {
        name: torch.as_tensor(getattr(value, "tensor", value)) for name, value in fields.items()
    }


@pytest.mark.parametrize("make, number", [(sample_of_slices, 7), (sample_of_a_volume, 4)])
def test_all_that_a_model_takes_is_on_the_device_before_it_asks(recorded, make, number):
    torch.manual_seed(0)
    given = [[make(2 * i), make(2 * i + 1)] for i in range(3)]
    plain = [[dict(sample) for sample in batch] for batch in given]
    with TwoDevices() as devices:
        batches = list(DeviceLoader(given, "cuda:0", WINDOW))
        assert devices.mixed == [] and _Stream.waited == len(given)
        for batch, expected in zip(batches, plain, strict=True):
            for sample, before in zip(batch, expected, strict=True):
                moved = [sample["image"], *annotation_tensors(sample)]
                assert all(map(on_gpu, moved)) and sample["instances"].gt_boxes.device == GPU
                assert len(moved) == number - ("weak_image" in sample)
                assert sample["image_id"] == before["image_id"]

    # Whatever was allocated on the side stream is held for the model, each tensor once.
    assert len(recorded) == len({id(t) for t in recorded}) == number * 2 * len(given)
    for batch, expected in zip(batches, plain, strict=True):
        for sample, before in zip(batch, expected, strict=True):
            assert torch.equal(sample["image"], hu_to_pixels(before["image"], WINDOW))
            found, right = fields_of(sample), fields_of(before)
            assert found.keys() == right.keys()
            assert all(torch.equal(found[name], right[name]) for name in right)
            if "volume_boxes" in before:
                assert sample["instances"].is_region == [True, False, False]  # on the host
                assert sample["volume_boxes"] is before["volume_boxes"]


def test_on_the_cpu_annotations_stay_what_they_are(recorded):
    sample = sample_of_slices(1)
    instances = sample["instances"]
    [[found]] = DeviceLoader([[sample]], "cpu", WINDOW)
    assert found["instances"] is instances and recorded == []
