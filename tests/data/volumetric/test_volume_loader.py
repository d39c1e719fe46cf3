from itertools import islice

from lesion_d2.config import add_lesion_config
from lesion_d2.data.volumetric.augmentation import RandomVolumePatch
from lesion_d2.data.volumetric.loader import (
    build_volume_test_loader,
    build_volume_train_loader,
    load_volume_records,
)
from lesion_d2.data.volumetric.mapper import VolumePatchMapper
from lesion_d2.data.volumetric.reading import array_record

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import InferenceSampler

PATCH = (6, 32, 40)


@pytest.fixture
def cfg(tiny_phantom) -> CfgNode:
    cfg = get_cfg()
    add_lesion_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ("phantom_volumes_train",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.VOLUME.PATCH_SIZE = PATCH
    cfg.INPUT.VOLUME.SPACING = (0.0, 0.0, 1.5)
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SEED = 5
    return cfg


def signatures(batches) -> list[tuple[str, float]]:
    return [(s["image_id"], s["image"].sum().item()) for batch in batches for s in batch]


def take(loader, number: int, seed: int = 0) -> list:
    np.random.seed(seed)
    return list(islice(iter(loader), number))


def test_batches_have_patches_with_boxes_and_masks(cfg):
    cfg.MODEL.MASK_ON = True
    batches = take(build_volume_train_loader(cfg), 6)
    num_lesions = 0
    for sample in (s for batch in batches for s in batch):
        image, instances = sample["image"], sample["instances"]
        assert image.shape == (1, *PATCH) and image.dtype == torch.float32
        assert image.min() >= 0 and image.max() <= 255
        assert instances.image_size == PATCH and instances.gt_masks.tensor.shape[1:] == PATCH
        boxes = instances.gt_boxes.tensor
        assert (boxes[:, :3] < boxes[:, 3:]).all() and (boxes >= -0.5).all()
        assert (boxes[:, 3:] <= torch.tensor(PATCH[::-1]) - 0.5).all()
        num_lesions += (instances.gt_classes == 0).sum().item()
    assert all(len(batch) == 3 for batch in batches) and num_lesions > 9


def test_the_same_seed_gives_the_same_batches_from_any_iteration_on(cfg):
    first = signatures(take(build_volume_train_loader(cfg), 4))
    assert signatures(take(build_volume_train_loader(cfg), 4)) == first
    loader = build_volume_train_loader(cfg)
    loader.restart(2)
    again = signatures(take(loader, 2))
    assert [name for name, _ in again] == [name for name, _ in first[6:]]
    cfg.SEED = 6
    assert signatures(take(build_volume_train_loader(cfg), 4)) != first


def test_classes_come_equally_often(cfg):
    cfg.DATASETS.TRAIN = ("phantom_volumes_train_types",)
    cfg.DATALOADER.CLASS_BALANCE = True
    loader = build_volume_train_loader(cfg)
    records = load_volume_records(cfg.DATASETS.TRAIN)
    drawn = list(islice(iter(loader.sampler), len(records)))
    classes = {a["category_id"] for r in records for a in r["annotations"]}
    counts = [
        sum(any(a["category_id"] == k for a in records[i]["annotations"]) for i in drawn)
        for k in classes
    ]
    assert len(classes) > 2 and min(counts) >= len(records) // len(classes)


def test_every_run_comes_once_for_inference(cfg):
    loader = build_volume_test_loader(cfg, "phantom_volumes_test")
    dicts = DatasetCatalog.get("phantom_volumes_test")
    found = [volume for (volume,) in loader]
    assert [v["volume"] for v in found] == list(dict.fromkeys(d["volume"] for d in dicts))
    assert sum(v["shape"][0] for v in found) == len(dicts) and len(loader) == len(found)
    for volume in found:
        first = next(d for d in dicts if d["volume"] == volume["volume"])
        assert volume["first_slice"] == first["slice_index"]
        reader = volume["reader"]
        depth = round(volume["shape"][0] * first["spacing"][2] / 1.5)
        assert reader.shape == (max(1, depth), 64, 64) and "annotations" not in volume
        assert reader.load((0, 0, 0), (2, 64, 64)).max() > 100
    assert isinstance(loader.batch_sampler.sampler, InferenceSampler)  # a share for each process


def test_volumes_without_a_lesion_are_left_out_if_asked_for(cfg, monkeypatch):
    dicts = DatasetCatalog.get("phantom_volumes_train")
    empty = dicts[0]["volume"]
    changed = [{**d, "annotations": []} if d["volume"] == empty else d for d in dicts]
    monkeypatch.setattr(type(DatasetCatalog), "get", lambda self, name: changed)
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    kept = load_volume_records("phantom_volumes_train", filter_empty=True)
    every = load_volume_records("phantom_volumes_train")
    assert len(kept) == len(every) - 1 and empty not in {r["volume"] for r in kept}
    # Slices without a lesion stay: a volume is whole.
    assert sum(r["shape"][0] for r in every) == len(dicts)


def test_single_slices_are_refused(cfg):
    cfg.DATASETS.TRAIN = ("phantom_train",)
    message = (
        "data set 'phantom_train': found single slices, expected .* as in phantom_volumes_train"
    )
    with pytest.raises(ValueError, match=message):
        build_volume_train_loader(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.AUG.RESIZE_RANGE", (0.8, 1.2), r"RESIZE_RANGE: found \(0\.8, 1\.2\), expected"),
        ("INPUT.CT.CROP_TO_BODY", True, r"INPUT\.CT\.CROP_TO_BODY: found True, expected False"),
        ("INPUT.PSEUDO_MASK", "grabcut", r"INPUT\.PSEUDO_MASK: found 'grabcut' with 0 files"),
        ("INPUT.VOLUME.SPACING", (-1, 0, 0), r"INPUT\.VOLUME\.SPACING: found \(-1, 0, 0\), exp"),
        ("INPUT.CT.HU_WINDOW", (5.0, 5.0), r"INPUT\.CT\.HU_WINDOW: found \(5\.0, 5\.0\), expected"),
    ],
)
def test_bad_options_name_their_key(cfg, key, value, message):
    cfg.MODEL.MASK_ON = True
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        VolumePatchMapper(cfg)


def test_a_lesion_without_a_mask_is_refused_where_boxes_do_not_do():
    record = array_record(np.zeros((4, 8, 8), np.int16), None, "v")
    record["annotations"] = [{"bbox": [1, 1, 0.5, 4, 4, 2.5], "category_id": 0, "lesion_id": 3}]
    patches = RandomVolumePatch(size=(4, 8, 8))
    mapper = VolumePatchMapper(patches, with_masks=True, pseudo_mask_from_box=False)
    with pytest.raises(ValueError, match="volume v: found lesion 3 without a mask on all its"):
        mapper(record)
    sample = VolumePatchMapper(patches, with_masks=True)(record)
    assert sample["instances"].gt_masks.tensor.sum() == 8
    assert torch.equal(sample["image"], torch.full((1, 4, 8, 8), 255 * 1024 / 2074))


def test_a_patch_reads_no_more_than_it_shows(monkeypatch):
    from lesion_d2.data.volumetric import mapper as module

    volume = np.zeros((40, 60, 60), np.int16)
    record, asked = array_record(volume, (1.0, 1.0, 1.0)), []
    original = module.read_block
    monkeypatch.setattr(
        module, "read_block", lambda *args: asked.append(args[2]) or original(*args)
    )
    mapper = VolumePatchMapper(RandomVolumePatch(size=(8, 16, 16)), spacing=(1.0, 1.0, 0.5))
    mapper(record)
    assert all(side <= n for side, n in zip(asked[0], (8, 20, 20), strict=True))
