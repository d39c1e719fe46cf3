import itertools
from collections import Counter

import lesion_d2
from lesion_d2.data.loader import build_lesion_train_loader
from lesion_d2.data.samplers import BalancedSampler, SkippingSampler, count_epoch, make_pools
from lesion_d2.engine import InputError
from lesion_d2.engine.checks.inputs import check_training
from lesion_d2.engine.checks.values import check_values

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from tiny_run import tiny_config


def _images(*classes):
    """One an entry: the classes of its lesions; a negative number is a region to ignore."""
    return [
        {
            "image_id": i,
            "annotations": [{"category_id": abs(c), "iscrowd": int(c < 0)} for c in found],
        }
        for i, found in enumerate(classes)
    ]


# Six with lesions, of which the last class is rare; three without, one of them with a region.
IMAGES = _images([0], [], [0], [0, 1], [-1], [0], [], [0, 0], [2])
EMPTY = {1, 4, 6}


def _draw(sampler, count):
    return list(itertools.islice(iter(sampler), count))


def _slow_order(pools, counts, seed, count):
    """Epoch by epoch: the next images of each pool's own shuffled rounds, shuffled together."""
    generator = torch.Generator().manual_seed(seed)
    left, order = [[] for _ in pools], []
    while len(order) < count:
        epoch = []
        for pool, rest, number in zip(pools, left, counts, strict=True):
            for _ in range(number):
                if not rest:
                    rest += [pool[k] for k in torch.randperm(len(pool), generator=generator)]
                epoch.append(rest.pop(0))
        order += [epoch[k] for k in torch.randperm(len(epoch), generator=generator)]
    return order[:count]


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 0.8])
def test_an_epoch_has_every_lesion_once_and_the_wanted_share_of_empty_images(share):
    pools, counts = make_pools(IMAGES, empty_share=share)
    size = sum(counts)
    expected = {0.0: 6, 0.1: 7, 1 / 3: 9, 0.5: 12, 0.8: 30}[share]
    assert size == expected
    order = _draw(BalancedSampler(pools, counts, seed=3), 4 * size)
    assert order == _slow_order(pools, counts, 3, 4 * size)
    for start in range(0, 4 * size, size):
        lesions = [i for i in order[start : start + size] if i not in EMPTY]
        assert sorted(lesions) == [0, 2, 3, 5, 7, 8]
    drawn = Counter(i for i in order if i in EMPTY)
    assert sum(drawn.values()) == 4 * (size - 6)
    assert max(drawn.values(), default=0) - min(drawn.values(), default=0) <= 1


def test_classes_are_drawn_equally_often():
    pools, counts = make_pools(IMAGES, empty_share=0.25, class_balance=True)
    assert pools == [[0, 2, 3, 5, 7], [3], [8], [1, 4, 6]] and counts == [2, 2, 2, 2]
    order = _draw(BalancedSampler(pools, counts, seed=0), 80)
    assert order == _slow_order(pools, counts, 0, 80)
    drawn = Counter(order)
    assert drawn[8] == 20 and sum(drawn[i] for i in EMPTY) == 20
    assert drawn[3] == 24 and drawn[0] == drawn[2] == drawn[5] == drawn[7] == 4
    # Empty images are kept as they are without a share.
    assert make_pools(IMAGES, class_balance=True)[1] == [2, 2, 2, 3]
    assert make_pools(_images([0], [1], [2], [0]), class_balance=True)[1] == [1, 1, 2]


def test_nothing_to_balance_is_detectron2s_order():
    assert make_pools(IMAGES) is None
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    assert count_epoch(IMAGES, cfg) == len(IMAGES)
    assert _draw(SkippingSampler(9, seed=4), 40) == _draw(TrainingSampler(9, seed=4), 40)
    cfg.DATALOADER.EMPTY_IMAGE_RATIO = 0.5
    assert count_epoch(IMAGES, cfg) == 12


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_order_and_go_on_anywhere(processes, monkeypatch):
    pools, counts = make_pools(IMAGES, empty_share=0.5)
    order = _slow_order(pools, counts, 7, 60)
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    for rank in range(processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        share = order[rank::processes]
        sampler = BalancedSampler(pools, counts, seed=7)
        assert _draw(sampler, len(share)) == share
        for skipped in (1, 5, 13):
            sampler.num_skipped = skipped
            assert _draw(sampler, 4) == share[skipped : skipped + 4]


def test_without_a_seed_all_processes_have_the_same_order(monkeypatch):
    pools, counts = make_pools(IMAGES, empty_share=0.5)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 17)
    found = _draw(BalancedSampler(pools, counts), 30)
    assert found == _slow_order(pools, counts, 17, 30)


@pytest.mark.parametrize(
    "images, share, message",
    [
        (_images([], [-1]), 0.5, "found no lesion in 2 images, expected at least one"),
        (
            _images([0], [0]),
            0.5,
            "found a lesion in all 2 images, expected images without .* 0.5",
        ),
    ],
)
def test_what_cannot_be_balanced_is_told(images, share, message):
    with pytest.raises(ValueError, match=message):
        make_pools(images, empty_share=share)
    cfg = tiny_config(DATALOADER__EMPTY_IMAGE_RATIO=share)
    with pytest.raises(ValueError, match=f"DATASETS.TRAIN: {message}.*EMPTY_IMAGE_RATIO is 0.5"):
        count_epoch(images, cfg)


def test_a_share_of_images_that_are_filtered_out_is_refused():
    message = (
        r"FILTER_EMPTY_ANNOTATIONS: found True.*expected False.*\(DATALOADER.EMPTY_IMAGE_RATIO is"
    )
    with pytest.raises(InputError, match=message):
        check_training(tiny_config(DATALOADER__EMPTY_IMAGE_RATIO=0.5), 1)
    with pytest.raises(
        InputError, match=r"EMPTY_IMAGE_RATIO: found 1.0, expected .* a share below 1"
    ):
        check_values(tiny_config(DATALOADER__EMPTY_IMAGE_RATIO=1.0))
    check_training(
        tiny_config(DATALOADER__EMPTY_IMAGE_RATIO=0.5, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False),
        1,
    )


class _Names:
    """In place of the mapper."""

    hu_window = (0.0, 1.0)

    def load(self, record):
        return {"image_id": record["image_id"], "image": torch.zeros(1, 1, 1, dtype=torch.int16)}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_loader_goes_by_the_config_and_begins_anew_anywhere(workers, monkeypatch):
    name = "images_to_balance"
    images = [{**image, "height": 1, "width": 1} for image in IMAGES]
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(thing_classes=list("abc"))
    monkeypatch.setattr("lesion_d2.data.loader.LesionDatasetMapper", lambda *args: _Names())
    monkeypatch.setattr("lesion_d2.data.loader.count_cores", lambda: 2)
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN, cfg.SEED = "cpu", (name,), 11
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.EMPTY_IMAGE_RATIO = workers, 0.5
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, cfg.SOLVER.IMS_PER_BATCH = False, 2
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    try:
        loader = build_lesion_train_loader(cfg)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    order = _slow_order(*make_pools(IMAGES, empty_share=0.5), 11, 40)
    expected = [list(order[k : k + 2]) for k in range(0, 40, 2)]

    for start in (0, 7, 3):
        loader.restart(start)
        batches = [[x["image_id"] for x in b] for b in itertools.islice(loader, 5)]
        assert batches == expected[start : start + 5]

    resumed, loader.order_seed = loader, 12  # of another run
    resumed.restart(2)
    [batch] = itertools.islice(resumed, 1)
    other = _slow_order(*make_pools(IMAGES, empty_share=0.5), 12, 6)
    assert [x["image_id"] for x in batch] == other[4:6]
