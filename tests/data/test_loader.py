import itertools

import lesion_d2
from lesion_d2.data.loader import (
    DeviceLoader,
    TrainLoader,
    build_lesion_test_loader,
    build_lesion_train_loader,
    count_workers,
)
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.pseudo_masks import ellipse_mask
from lesion_d2.data.slices.ct import hu_to_pixels
from lesion_d2.data.transforms.augmentation import build_augmentations

import cv2
import detectron2.data.build
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools import mask as mask_util


def _config(workers, seed=5):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5] * 3
    cfg.INPUT.CT.IMAGE_SIZE = 64
    cfg.DATASETS.TRAIN = ("phantom_train",)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
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


class _ToWater(T.Augmentation):
    """Makes all of an image water."""

    def get_transform(self, image):
        return T.ColorTransform(np.zeros_like)


def test_a_mapper_brings_augmentations_of_its_own(tiny_phantom):
    cfg = _config(0)
    augmentations = [*build_augmentations(cfg, True), _ToWater()]
    mapper = LesionDatasetMapper(cfg, True, augmentations=augmentations)
    batch = next(iter(build_lesion_train_loader(cfg, mapper=mapper)))
    water = hu_to_pixels(torch.zeros(1, dtype=torch.int16), cfg.INPUT.CT.HU_WINDOW)
    for sample in batch:
        assert torch.equal(sample["image"], water.expand_as(sample["image"]))
        assert sample["image"].shape == (3, 64, 64)
        assert len(sample["instances"]) > 0


def _stacks(count):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(-3024, 3000, (3, 40, 50), dtype=torch.int16, generator=generator)
        for _ in range(count)
    ]


def test_batches_arrive_windowed_in_order():
    stacks = _stacks(7)
    batches = [
        [{"image": a}, {"image": b, "name": "b"}] for a, b in zip(stacks, stacks[::-1], strict=True)
    ]
    loader = DeviceLoader(batches, "cpu", (-1024.0, 1050.0))
    seen = list(loader)
    assert len(loader) == len(seen) == 7
    for i, (first, second) in enumerate(seen):
        assert second["name"] == "b"
        for sample, stack in ((first, stacks[i]), (second, stacks[6 - i])):
            expected = hu_to_pixels(stack, (-1024.0, 1050.0))
            assert torch.equal(sample["image"], expected)


def test_an_empty_loader_gives_nothing():
    assert list(DeviceLoader([], "cpu", (0, 1))) == []


def _names(batches):
    return [[sample["image_id"] for sample in batch] for batch in batches]


def _first(loader, count):
    """The first batches of a new iterator, which then stops its workers."""
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", [5, -1])
def test_restarts_do_not_change_the_order_of_the_images(tiny_phantom, workers, seed):
    loader = build_lesion_train_loader(_config(workers, seed))
    count = 3 * len(loader.dataset) // 2  # three times over all images
    whole = _names(_first(loader, count))
    assert len({name for batch in whole for name in batch}) == len(loader.dataset) > 10
    begin = 0
    for end in (3, 4, 11, count):
        loader.restart(begin, {})
        assert _names(_first(loader, end - begin)) == whole[begin:end]
        begin = end
    loader.restart(2)  # and back
    assert _names(_first(loader, 3)) == whole[2:5]


@pytest.mark.parametrize("workers", [0, 2])
def test_restarts_go_on_with_each_processs_share(tiny_phantom, workers, monkeypatch):
    cfg = _config(workers)
    cfg.SOLVER.IMS_PER_BATCH = 4
    world_size, ends = 2, (3, 8, 9)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(detectron2.data.build, "get_world_size", lambda: world_size)
    shares = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        loader = build_lesion_train_loader(cfg)
        share = _names(_first(loader, ends[0]))
        for begin, end in itertools.pairwise(ends):
            loader.restart(begin, {})
            share += _names(_first(loader, end - begin))
        shares.append(share)
    dicts = [d["image_id"] for d in DatasetCatalog.get("phantom_train")]
    generator = torch.Generator().manual_seed(cfg.SEED)
    order = []
    while len(order) < 4 * ends[-1]:
        order += [dicts[i] for i in torch.randperm(len(dicts), generator=generator)]

    assert len(dicts) < 4 * ends[-1]  # the images are shuffled again on the way
    for i in range(ends[-1]):
        batch = order[4 * i : 4 * i + 4]
        assert [shares[0][i], shares[1][i]] == [batch[::2], batch[1::2]]


def _negatives(image, count, category):
    """Ellipses around the image's middle, which no augmentation takes out of the image."""
    size, found = (image["height"], image["width"]), []
    for i in range(count):
        x, y = size[1] / 2 - 8 + 5 * i, size[0] / 2 + 6 - 4 * i
        half_width, half_height = 7 + i, 5
        ends = [x - half_width, y, x + half_width, y, x, y - half_height, x, y + half_height]
        mask = ellipse_mask(ends, *size)
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        found.append(
            {
                "bbox": [x - half_width, y - half_height, x + half_width, y + half_height],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            }
        )
    return found


def _mined_set(dicts, category):
    """0 to 3 negatives an image, other numbers for each category."""
    counts = [(i + category) % 4 for i in range(len(dicts))]
    return {
        d["image_id"]: _negatives(d, count, category)
        for d, count in zip(dicts, counts, strict=True)
        if count > 0
    }


def _check_mined(batch, mined, category):
    """All negatives of the batch's images are there, of this category alone, on their masks."""
    for sample in batch:
        instances = sample["instances"]
        is_mined = instances.gt_classes > 0
        expected = mined.get(sample["image_id"], [])
        assert instances.gt_classes[is_mined].tolist() == [category] * len(expected)
        for negative in range(len(expected)):
            mask = instances[is_mined].gt_masks.tensor[negative]
            box = instances[is_mined].gt_boxes.tensor[negative]
            y, x = torch.nonzero(mask, as_tuple=True)
            extent = torch.stack([x.min(), y.min(), x.max(), y.max()])
            torch.testing.assert_close(extent.float(), box, atol=2.5, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_batch_after_a_restart_has_the_new_negatives_alone(tiny_phantom, workers):
    cfg = _config(workers)
    cfg.INPUT.CT.IMAGE_SIZE = 96  # through a resize, and the flips and warps of the defaults
    cfg.INPUT.AUG.RESIZE_RANGE = (0.8, 1.2)
    cfg.SOLVER.IMS_PER_BATCH = 4
    np.random.seed(0)
    loader = build_lesion_train_loader(cfg)
    dicts = DatasetCatalog.get("phantom_train")
    mined, batches = {}, iter(loader)
    _check_mined(next(batches), mined, 0)
    for category in (1, 2, 3):
        mined = _mined_set(dicts, category)
        loader.restart(category, mined)
        # What the old iterator still holds, in its workers or ahead, is thrown away with it.
        batches = iter(loader)
        for _ in range(3):
            _check_mined(next(batches), mined, category)
    loader.restart(4)
    _check_mined(next(iter(loader)), mined, 3)
    loader.restart(4, {})
    _check_mined(next(iter(loader)), {}, 0)

    # The data set itself knows nothing of them.
    assert DatasetCatalog.get("phantom_train") == dicts
    assert len(build_lesion_test_loader(cfg, "phantom_train")) == len(dicts)


def test_a_restarted_loader_equals_a_resumed_one(tiny_phantom):
    loader = build_lesion_train_loader(_config(2))
    mined = _mined_set(DatasetCatalog.get("phantom_train"), 1)
    _first(loader, 3)
    loader.restart(3, mined)
    resumed = build_lesion_train_loader(_config(2))
    resumed.restart(3, mined)
    for batch, batch_2 in zip(_first(loader, 2), _first(resumed, 2), strict=True):
        for sample, sample_2 in zip(batch, batch_2, strict=True):
            assert torch.equal(sample["image"], sample_2["image"])
            boxes, boxes_2 = sample["instances"].gt_boxes, sample_2["instances"].gt_boxes
            assert torch.equal(boxes.tensor, boxes_2.tensor)


def _made_up_dict(root, number, height, width):
    folder = root / f"{number:06d}_01_01"
    folder.mkdir()
    pixels = np.random.default_rng(number).integers(32000, 33500, (height, width))
    cv2.imwrite(str(folder / "010.png"), pixels.astype(np.uint16))
    return {
        "file_name": str(folder / "010.png"),
        "image_id": f"{folder.name}_010",
        "height": height,
        "width": width,
        "spacing": (0.8, 0.8, 2.0),
        "slice_range": (10, 10),
        "slice_index": 10,
        "window": (-175.0, 275.0),
        "annotations": [],
    }


@pytest.mark.parametrize("seed", [5, None])
def test_restarts_draw_new_augmentations(tmp_path, seed):
    cfg = _config(1)
    dataset = [_made_up_dict(tmp_path, 1, 64, 64)]
    loader = TrainLoader(
        dataset,
        LesionDatasetMapper(cfg, True),
        "cpu",
        total_batch_size=1,
        seed=seed,
        num_workers=1,
        aspect_ratio_grouping=False,
    )
    images = []
    for iteration in range(3):
        loader.restart(iteration)
        images.append(_first(loader, 1)[0][0]["image"])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(images, 2))


@pytest.mark.parametrize("seed", range(4))
def test_grouping_by_aspect_ratio_keeps_no_old_negatives(tmp_path, seed):
    sizes = [(48, 80), (80, 48), (80, 48), (48, 80), (80, 48)]
    dataset = [_made_up_dict(tmp_path, i, *size) for i, size in enumerate(sizes)]
    cfg = _config(0)
    cfg.INPUT.CT.IMAGE_SIZE = 0
    loader = TrainLoader(
        dataset,
        LesionDatasetMapper(cfg, True),
        "cpu",
        total_batch_size=2,
        seed=seed,
        aspect_ratio_grouping=True,
    )
    old, new = ({d["image_id"]: _negatives(d, 2, c) for d in dataset} for c in (1, 2))
    loader.restart(0, old)
    _first(loader, 2)
    loader.restart(2, new)

    for batch in _first(loader, 4):
        _check_mined(batch, new, 2)
        (a, b) = (sample["image"].shape for sample in batch)
        assert a == b


@pytest.mark.parametrize("workers", [0, 2])
def test_inference_with_masks_gives_those_of_the_slices_on_disk(tiny_phantom, workers):
    cfg = _config(workers)
    cfg.INPUT.CT.IMAGE_SIZE = 96
    dicts = DatasetCatalog.get("phantom_train")
    batches = list(build_lesion_test_loader(cfg, "phantom_train", with_masks=True))
    for [sample], d in zip(batches, dicts, strict=True):
        assert sample["image"].shape[1:] == (96, 96)
        masks = [ellipse_mask(a["recist"], d["height"], d["width"]) for a in d["annotations"]]
        assert np.array_equal(sample["lesion_masks"], masks)
    assert all("lesion_masks" not in s for [s] in build_lesion_test_loader(cfg, "phantom_train"))


@pytest.mark.parametrize(
    "asked, cores, processes, expected",
    [
        (-1, 1, 1, 1),
        (-1, 2, 1, 1),
        (-1, 4, 1, 3),
        (-1, 9, 1, 8),
        (-1, 17, 1, 16),
        (-1, 64, 1, 16),
        (-1, 16, 4, 3),
        (-1, 64, 8, 7),
        (-1, 2, 4, 1),
        (0, 64, 1, 0),
        (5, 64, 2, 5),
        (12, 64, 1, 12),
        (12, 8, 1, 8),
        (12, 16, 4, 4),
    ],
)
def test_workers_share_the_cores(asked, cores, processes, expected, monkeypatch):
    monkeypatch.setattr("lesion_d2.data.loader.count_cores", lambda: cores)
    monkeypatch.setattr(comm, "get_local_size", lambda: processes)
    assert count_workers(asked) == expected
