import lesion_d2
from lesion_d2.data.ct import hu_to_pixels
from lesion_d2.data.loader import DeviceLoader, build_lesion_test_loader, build_lesion_train_loader
from lesion_d2.data.mapper import LesionDatasetMapper

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog


def _config(workers, seed=5):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5] * 3
    cfg.INPUT.CT.IMAGE_SIZE = 64
    cfg.DATASETS.TRAIN = ("phantom_train",)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = seed
    return cfg


def _batches(cfg, count=4):
    np.random.seed(cfg.SEED)
    loader = iter(build_lesion_train_loader(cfg))
    return [
        (sample["image_id"], sample["image"], sample["instances"])
        for _ in range(count)
        for sample in next(loader)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_and_workers_give_the_same_batches(tiny_phantom, workers):
    first, again = _batches(_config(workers)), _batches(_config(workers))
    other = _batches(_config(workers, seed=6))
    for (name, image, instances), (name_2, image_2, instances_2) in zip(first, again, strict=True):
        assert name == name_2 and torch.equal(image, image_2)
        assert torch.equal(instances.gt_boxes.tensor, instances_2.gt_boxes.tensor)
        assert torch.equal(instances.gt_masks.tensor, instances_2.gt_masks.tensor)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_inference_gives_every_image_once_as_the_mapper_does(tiny_phantom, workers):
    cfg = _config(workers)
    loader = build_lesion_test_loader(cfg, "phantom_train")
    mapper = LesionDatasetMapper(cfg, False)
    dicts = DatasetCatalog.get("phantom_train")
    batches = list(loader)
    assert len(batches) == len(loader) == len(dicts)
    for [sample], dataset_dict in zip(batches, dicts, strict=True):
        expected = mapper(dataset_dict)
        assert sample["image_id"] == expected["image_id"]
        assert sample["image"].dtype == torch.float32
        assert torch.equal(sample["image"], expected["image"])


def _stacks(count):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(-3024, 3000, (3, 40, 50), dtype=torch.int16, generator=generator)
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_batches_arrive_windowed_in_order_on_the_device(device):
    stacks = _stacks(7)
    batches = [
        [{"image": a}, {"image": b, "name": "b"}] for a, b in zip(stacks, stacks[::-1], strict=True)
    ]
    loader = DeviceLoader(batches, device, (-1024.0, 1050.0))
    seen = list(loader)
    assert len(loader) == len(seen) == 7
    for i, (first, second) in enumerate(seen):
        assert first["image"].device.type == device and second["name"] == "b"
        for sample, stack in ((first, stacks[i]), (second, stacks[6 - i])):
            expected = hu_to_pixels(stack, (-1024.0, 1050.0))
            torch.testing.assert_close(sample["image"].cpu(), expected)


def test_an_empty_loader_gives_nothing():
    assert list(DeviceLoader([], "cpu", (0, 1))) == []
