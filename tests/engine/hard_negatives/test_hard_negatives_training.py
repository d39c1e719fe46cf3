"""Hard negatives in a whole training: loader workers, resumed runs, several processes."""

import json
import shutil
from collections import Counter

from lesion_d2.engine import Trainer
from lesion_d2.engine.hard_negatives import HardNegativeMiner, MinedSet

import numpy as np
import pytest
from distributed_run import mine_hard_negatives
from pycocotools import mask as mask_util
from tiny_run import uldor_args
from warm_processes import launch_two

import train_net

_UNSEEN = {"DATASETS__TEST": (), "TEST__EVAL_PERIOD": 0}
_FEW_IMAGES = {"DATASETS__TRAIN": ("phantom_val", "phantom_test")}


class Recorder:
    """Notes each iteration's images and how many lesions and false positives they came with."""

    def __init__(self, trainer):
        self.batches = {}
        self.trainer = trainer
        trainer.model.register_forward_pre_hook(self._note)

    def _note(self, model, args):
        if model.training:
            self.batches[self.trainer.iter] = [
                (sample["file_name"], sorted(sample["instances"].gt_classes.tolist()), sample)
                for sample in args[0]
            ]

    def names(self, iteration):
        return [(name, classes) for name, classes, _ in self.batches[iteration]]


def build(args):
    trainer = Trainer(train_net.setup(args))
    trainer.resume_or_load(resume=args.resume)
    return trainer, Recorder(trainer)


def negatives_of(trainer):
    """The hard negatives by image that the trainer would save."""
    return trainer.state_dict()["hooks"]["HardNegativeMiningHook"]["negatives"]


def square(x1, y1, x2, y2):
    """A hard negative whose mask fills its box, on a slice of 64 x 64."""
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    rle = mask_util.encode(mask)
    return {
        "bbox": [x1, y1, x2, y2],
        "category_id": 1,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "score": 0.9,
        "mask_iou": 0.0,
    }


@pytest.fixture
def made_up_minings(monkeypatch):
    """Each mining finds the same on all images: after iteration 1 one square, after 3 two."""
    found = {1: [square(20, 24, 40, 38)], 3: [square(10, 10, 18, 20), square(40, 40, 52, 50)]}

    def mine(self, model, iteration):
        mined = MinedSet(num_images=1)
        for dataset, loader in self.loaders().items():
            samples = [sample for batch in loader for sample in batch]
            mined.negatives[dataset] = {s["image_id"]: found[iteration] for s in samples}
        return mined

    monkeypatch.setattr(HardNegativeMiner, "mine", mine)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_batch_after_a_mining_has_the_new_instances_and_none_of_the_old(
    workers, made_up_minings, tiny_phantom, tmp_path
):
    args = uldor_args(
        tmp_path,
        DATALOADER__NUM_WORKERS=workers,
        HARD_NEGATIVES__PERIOD=2,
        SOLVER__MAX_ITER=6,
        INPUT__AUG__HFLIP_PROB=0.5,
        INPUT__AUG__VFLIP_PROB=0.5,
        INPUT__AUG__MAX_ROTATION=0.1,
        INPUT__AUG__MAX_SHEAR=0.1,
        INPUT__AUG__MAX_SCALE=0.1,
        INPUT__AUG__RESIZE_RANGE=(0.8, 1.2),
        INPUT__CT__IMAGE_SIZE=96,
        **_UNSEEN,
    )
    trainer, recorder = build(args)
    trainer.train()

    for iteration, number in enumerate([0, 0, 1, 1, 2, 2]):
        assert len(recorder.batches[iteration]) == 4
        for _, classes, sample in recorder.batches[iteration]:
            assert classes.count(1) == number
            assert classes.count(0) >= 1
            check_masks(sample)


def check_masks(sample):
    """A false positive's mask is a square in its box, as large as it is there."""
    instances = sample["instances"]
    is_negative = instances.gt_classes == 1
    boxes = instances.gt_boxes.tensor[is_negative]
    for (x1, y1, x2, y2), mask in zip(
        boxes.tolist(), instances.gt_masks.tensor[is_negative].numpy(), strict=True
    ):
        rows, columns = mask.nonzero()
        assert columns.mean() == pytest.approx((x1 + x2) / 2, abs=1.5)
        assert rows.mean() == pytest.approx((y1 + y2) / 2, abs=1.5)
        assert 0.9 < mask.sum() / ((x2 - x1) * (y2 - y1)) < 1.6  # the box is between pixel centers


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_trains_on_the_same_sets_and_images(workers, tiny_phantom, tmp_path):
    options = {
        "DATALOADER__NUM_WORKERS": workers,
        "HARD_NEGATIVES__PERIOD": 2,
        "SOLVER__MAX_ITER": 7,
        "SOLVER__CHECKPOINT_PERIOD": 1,
        "SOLVER__CHECKPOINT_MAX_TO_KEEP": 0,
        **_FEW_IMAGES,
        **_UNSEEN,
    }
    whole, recorder = build(uldor_args(tmp_path / "whole", **options))
    whole.train()

    assert sum(map(len, negatives_of(whole).values())) > 0
    for last in (3, 4):  # after a mining, and between two
        folder = tmp_path / f"from_{last}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "last_checkpoint").write_text(f"model_{last:07d}.pth")
        resumed, seen = build(
            uldor_args(folder, "--resume", **{**options, "SOLVER__CHECKPOINT_PERIOD": 7})
        )
        resumed.train()
        assert min(seen.batches) == last + 1
        for iteration in range(last + 1, 6):  # up to the next mining
            assert seen.names(iteration) == recorder.names(iteration)
        assert [name for name, _ in seen.names(6)] == [name for name, _ in recorder.names(6)]
    assert any(1 in classes for _, classes in recorder.names(2))


def test_a_run_killed_before_it_mined_mines_when_it_is_resumed(tiny_phantom, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def die(self, model, iteration):
        raise Killed

    options = {"HARD_NEGATIVES__PERIOD": 2, "SOLVER__MAX_ITER": 4, **_FEW_IMAGES, **_UNSEEN}
    whole, recorder = build(uldor_args(tmp_path / "whole", **options))
    whole.train()
    args = uldor_args(tmp_path / "killed", **options)
    killed, _ = build(args)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(HardNegativeMiner, "mine", die)
        killed.train()
    args.resume = True
    resumed, seen = build(args)
    resumed.train()
    assert seen.names(2) == recorder.names(2)
    assert negatives_of(resumed) == negatives_of(whole)


def test_a_model_without_masks_learns_from_the_set_that_is_mined(tiny_phantom, tmp_path):
    args = uldor_args(
        tmp_path,
        MODEL__MASK_ON=False,
        DATASETS__TRAIN=("phantom_train", "phantom_val"),
        HARD_NEGATIVES__DATASETS=("phantom_val",),
        HARD_NEGATIVES__PERIOD=1,
        SOLVER__MAX_ITER=2,
        SOLVER__IMS_PER_BATCH=28,
        **_UNSEEN,
    )
    trainer, recorder = build(args)
    trainer.train()
    assert not (tmp_path / "inference" / "phantom_train").exists()

    file = tmp_path / "inference" / "phantom_val" / "hard_negatives.json"
    entries = json.loads(file.read_text())
    assert entries and {"segmentation", "mask_iou"}.isdisjoint(entries[0])
    assert all(0 <= entry["box_iou"] <= 1 for entry in entries)

    numbers = Counter(entry["image_id"] for entry in entries)
    assert any(classes.count(1) for _, classes in recorder.names(1))
    for _, classes, sample in recorder.batches[1]:
        assert classes.count(1) == numbers[sample["image_id"]]
        assert not sample["instances"].has("gt_masks")


def test_nothing_is_detected(tiny_phantom, tmp_path):
    args = uldor_args(
        tmp_path,
        HARD_NEGATIVES__PERIOD=1,
        SOLVER__MAX_ITER=2,
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=1.0,
        **_UNSEEN,
    )
    trainer, recorder = build(args)
    trainer.train()
    assert all(1 not in classes for _, classes in recorder.names(1))
    file = tmp_path / "inference" / "phantom_train" / "hard_negatives.json"
    assert json.loads(file.read_text()) == []


def test_two_processes_end_with_the_set_of_one(tiny_phantom, tmp_path):
    found = {}
    for number in (1, 2):
        args = uldor_args(
            tmp_path / str(number),
            HARD_NEGATIVES__PERIOD=1,
            SOLVER__MAX_ITER=2,
            SOLVER__OPTIMIZER="SGD",
            SOLVER__BASE_LR=1e-12,  # the weights that both begin with are those that they mine with
            **_UNSEEN,
        )
        file = tmp_path / f"{number}.json"
        if number == 1:
            mine_hard_negatives(args, str(file))
        else:
            launch_two(mine_hard_negatives, args, str(file))
        found[number] = json.loads(file.read_text())
    [one], two = found[1], found[2]

    assert len(two) == 2
    assert two[0] == two[1]
    assert one["negatives"]
    assert two[0]["counts"] == one["counts"]

    files = [
        tmp_path / number / "inference" / "phantom_train" / "hard_negatives.json"
        for number in ("1", "2")
    ]
    files = [json.loads(file.read_text()) for file in files]
    assert [r["image_id"] for r in files[0]] == [r["image_id"] for r in files[1]]
    for a, b in zip(*files, strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-2)
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)
