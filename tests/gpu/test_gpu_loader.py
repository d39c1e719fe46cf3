"""Batches on a side stream, from pinned memory."""

from lesion_d2.data.loader import DeviceLoader
from lesion_d2.data.slices.ct import hu_to_pixels
from lesion_d2.data.transfer import annotation_tensors
from lesion_d2.structures.ignore_regions import mark_regions

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

pytestmark = pytest.mark.gpu
WINDOW = (-1024.0, 1050.0)


def _batch(number, size=128):
    """Two samples whose every value is their number."""
    batch = []
    for value in (number, number + 1):
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(torch.full((4, 4), float(value)))
        instances.gt_classes = torch.full((4,), value)
        masks = torch.zeros(4, size, size, dtype=torch.bool)
        masks[:, : 1 + value % size] = True
        instances.gt_masks = BitMasks(masks)
        mark_regions(instances, 1)
        image = torch.full((3, size, size), value, dtype=torch.int16)
        batch.append({"image": image, "weak_image": image + 1, "instances": instances})
    return batch


def test_hu_to_pixels_on_the_device(device):
    hu = torch.arange(-3024, 3024, dtype=torch.int16)
    pixels = hu_to_pixels(hu.to(device), WINDOW)
    assert pixels.device.type == device
    torch.testing.assert_close(pixels.cpu(), hu_to_pixels(hu, WINDOW))


def test_batches_arrive_whole_while_the_model_is_slow(device):
    """What is copied ahead must not lie where the model still reads."""
    count, size = 24, 128
    work = torch.rand(2048 if device == "cuda" else 32, 2048 if device == "cuda" else 32).to(device)
    kept = []

    for batch in DeviceLoader([_batch(i, size) for i in range(count)], device, WINDOW):
        for _ in range(10):  # the device lags behind the host
            work = (work @ work).softmax(dim=1)
        sums = []
        for sample in batch:
            instances = sample["instances"]
            tensors = [sample["image"], sample["weak_image"], *annotation_tensors(sample)]
            assert {tensor.device.type for tensor in tensors} == {device}
            assert instances.is_region == [True, False, False, False]
            sums.append(torch.stack([tensor.double().sum() for tensor in tensors]))
        kept.append(torch.stack(sums))
        del batch, sample, instances, tensors  # so that their memory is free for the next ones
    for number, sums in enumerate(kept):
        for value, found in zip((number, number + 1), sums.tolist(), strict=True):
            pixels = [hu_to_pixels(torch.tensor(v), WINDOW).item() for v in (value, value + 1)]
            rows = 4 * size * (1 + value % size)
            expected = [3 * size**2 * pixels[0], 3 * size**2 * pixels[1], 16 * value, 4 * value]
            assert found == pytest.approx([*expected, rows], rel=1e-5)


def test_copies_do_not_hold_up_the_host(device):
    """The loader hands a batch over while the device still works on what came before."""
    if device == "cpu":
        pytest.skip("the host is the device")
    work = torch.rand(4096, 4096, device=device)
    loader = iter(DeviceLoader([_batch(i) for i in range(6)], device, WINDOW))
    next(loader)
    next(loader)  # pinned memory is there
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    for _ in range(200):
        work = (work @ work).softmax(dim=1)
    done.record()
    next(loader)
    next(loader)
    assert not done.query()
    torch.cuda.synchronize()
