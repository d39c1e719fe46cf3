import itertools
import json
import logging
import weakref

from lesion_d2.engine import LesionCheckpointer
from lesion_d2.engine.hard_negatives import (
    HardNegativeMiner,
    HardNegativeMiningHook,
    best_mask_ious,
    read_lesion_boxes,
    read_region_boxes,
    select_hard_negatives,
)
from lesion_d2.modeling.pseudo_labels import best_box_ious
from lesion_d2.utils.errors import InputError

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import TrainerBase, hooks
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_util
from slow_boxes import slow_iou
from torch import nn


def candidates(scores, mask_ious, good_iou=0.3, min_score=0.7):
    """E of the paper, word by word."""
    good = [
        (s, i) for i, (s, iou) in enumerate(zip(scores, mask_ious, strict=True)) if iou > good_iou
    ]
    if good:
        best_score = max(s for s, _ in good)
        return [j for j, s in enumerate(scores) if s > best_score]
    return [j for j, s in enumerate(scores) if s > min_score]


def select(scores, mask_ious, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return select_hard_negatives(scores, mask_ious, rng=rng, **kwargs).tolist()


def test_a_good_detection_outscored_by_more_than_three():
    """Fig. 3 (a): three of those above it, never the others."""
    scores = [0.99, 0.98, 0.97, 0.96, 0.95, 0.9, 0.89]
    mask_ious = [0.0, 0.3, 0.1, 0.0, 0.2, 0.8, 0.9]
    drawn = [select(scores, mask_ious, seed) for seed in range(60)]
    assert all(len(set(d)) == 3 and set(d) <= {0, 1, 2, 3, 4} for d in drawn)
    assert {tuple(d) for d in drawn} == set(itertools.combinations(range(5), 3))


def test_no_good_detection_and_more_than_three_above_the_score():
    """Fig. 3 (b)."""
    scores = [0.99, 0.95, 0.9, 0.8, 0.71, 0.7, 0.3]
    mask_ious = [0.0, 0.3, 0.0, 0.29, 0.0, 0.1, 0.0]
    drawn = {tuple(select(scores, mask_ious, seed)) for seed in range(60)}
    assert drawn == set(itertools.combinations(range(5), 3))


@pytest.mark.parametrize(
    "scores, mask_ious, expected",
    [
        ([], [], []),
        ([0.9], [0.9], []),  # one detection, and it is good
        ([0.9], [0.1], [0]),
        ([0.7], [0.1], []),  # above, not at
        ([0.9, 0.9, 0.8], [0.0, 0.5, 0.0], []),  # a tie with the good one is not above it
        ([0.8, 0.9, 0.9], [0.5, 0.0, 0.0], [1, 2]),
        ([0.2, 0.5], [0.31, 0.3], [1]),  # a good one of a low score: what is above it, however low
        ([0.9, 0.95, 0.5], [0.5, 0.6, 0.9], []),  # i is the best-scored good one, not the best mask
    ],
)
def test_small_cases_worked_out_by_hand(scores, mask_ious, expected):
    assert select(scores, mask_ious) == expected


def test_selection_against_the_words_of_the_paper():
    rng = np.random.default_rng(5)
    for seed in range(300):
        n = int(rng.integers(0, 12))
        scores = rng.integers(0, 11, n) / 10  # ties are common
        mask_ious = rng.choice([0.0, 0.1, 0.3, 0.4], n, p=[0.5, 0.3, 0.15, 0.05])
        options = {"max_negatives": int(rng.integers(1, 5)), "good_iou": 0.2, "min_score": 0.5}
        found = select(scores, mask_ious, seed, **options)
        expected = candidates(scores, mask_ious, 0.2, 0.5)
        assert set(found) <= set(expected)
        assert len(found) == min(options["max_negatives"], len(expected))
        assert found == sorted(set(found)) == select(scores, mask_ious, seed, **options)


def test_mask_ious_against_a_loop():
    rng = np.random.default_rng(0)
    for n, m in [(0, 2), (3, 0), (1, 1), (7, 3)]:
        masks, true = rng.random((n, 9, 11)) < 0.1, np.zeros((m, 9, 11), bool)
        for i, mask in enumerate(true):
            mask[2 * i : 2 * i + 4, 3 : 5 + i] = True
        masks[-1:] = False  # an empty one
        expected = [max([(a & b).sum() / (a | b).sum() for b in true], default=0.0) for a in masks]
        found = best_mask_ious(torch.from_numpy(masks), torch.from_numpy(true))
        assert found.tolist() == pytest.approx(expected)


def test_box_ious_against_a_loop():
    rng = np.random.default_rng(0)
    for n, m in [(0, 2), (3, 0), (1, 1), (20, 6)]:
        corners = rng.uniform(0, 20, (n + m, 2))
        boxes = np.hstack([corners, corners + rng.uniform(1, 12, (n + m, 2))])
        expected = [max((slow_iou(a, b) for b in boxes[n:]), default=0.0) for a in boxes[:n]]
        found = best_box_ious(*torch.from_numpy(boxes).float().split([n, m]))
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


SIZE = (12, 16)


def square(x1, y1, x2, y2):
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


LESION = (2, 2, 6, 6)
# Boxes, which are masks too, and scores.
DETECTIONS = {
    "good": ([(2, 2, 6, 7), (9, 1, 12, 4), (9, 6, 12, 9)], [0.8, 0.9, 0.6]),
    "bad": ([(9, 1, 12, 4), (9, 6, 12, 9), (1, 9, 3, 11)], [0.9, 0.71, 0.7]),
    "empty": ([], []),
    "single": ([(9, 6, 12, 9)], [0.9]),
    "thin": ([(9, 6, 9, 9)], [0.9]),  # its mask is empty
}
EXPECTED = {
    "good": [(9, 1, 12, 4)],
    "bad": [(9, 1, 12, 4), (9, 6, 12, 9)],
    "single": [(9, 6, 12, 9)],
}


class FakeDetector(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        return [{"instances": self.detect(sample["image_id"])} for sample in batch]

    def detect(self, name):
        boxes, scores = DETECTIONS[name]
        instances = Instances(SIZE)
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.tensor(scores, dtype=torch.float32)
        masks = [square(*box) for box in boxes]
        instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=bool)
        return instances


def fake_loader(dataset):
    return [
        [
            {
                "image_id": name,
                "file_name": f"{dataset}/{name}.png",
                "lesion_masks": square(*LESION)[None],
            }
        ]
        for name in DETECTIONS
    ]


def fake_miner(**kwargs):
    return HardNegativeMiner(datasets=["set"], build_loader=fake_loader, **kwargs)


def test_miner_gives_the_boxes_masks_and_scores_of_each_image():
    model = FakeDetector().train()
    mined = fake_miner().mine(model, 0)
    assert model.training and model.norm.training
    assert (mined.num_images, mined.num_good) == (5, 1)
    assert {name: len(found) for name, found in mined.by_image.items()} == {
        name: len(boxes) for name, boxes in EXPECTED.items()
    }
    for name, boxes in EXPECTED.items():
        for annotation, box in zip(mined.by_image[name], boxes, strict=True):
            assert annotation["bbox"] == list(box)
            assert annotation["category_id"] == 1
            mask = mask_util.decode(annotation["segmentation"])
            assert np.array_equal(mask, square(*box).numpy())
            assert annotation["mask_iou"] == 0
    assert [a["score"] for a in mined.by_image["bad"]] == pytest.approx([0.9, 0.71])


class FakeBoxDetector(FakeDetector):
    def detect(self, name):
        instances = super().detect(name)
        instances.remove("pred_masks")
        return instances


def test_without_masks_boxes_tell_lesions(monkeypatch):
    """As with masks: those of the fake detector fill their boxes."""
    by_masks = fake_miner().mine(FakeDetector(), 0)
    boxes = {name: [LESION] for name in DETECTIONS}
    monkeypatch.setitem(boxes, "single", [])
    miner = fake_miner(read_boxes={"set": boxes}.__getitem__)
    mined = miner.mine(FakeBoxDetector(), 0)
    assert (mined.num_images, mined.num_good) == (by_masks.num_images, by_masks.num_good)
    assert mined.by_image.keys() == EXPECTED.keys()
    for name, annotations in by_masks.by_image.items():
        for annotation, found in zip(annotations, mined.by_image[name], strict=True):
            del annotation["segmentation"]
            annotation["box_iou"] = annotation.pop("mask_iou")
            assert found == annotation
    # On this slice the lesion is not annotated, on another one of the volume it is.
    boxes["bad"] = [(9, 1, 12, 5)]
    mined = miner.mine(FakeBoxDetector(), 0)
    assert mined.num_good == 2 and "bad" not in mined.by_image


def test_with_masks_lesions_elsewhere_in_a_volume_are_no_hard_negatives():
    batches = fake_loader("set")
    # (9, 1, 12, 4) has an IoU of 0.75 with the box here, and no lesion's mask is there.
    for (sample,) in batches[:2]:
        sample["volume_boxes"] = [[9, 1, 12, 5]]
    miner = HardNegativeMiner(datasets=["set"], build_loader=lambda _: batches)
    mined = miner.mine(FakeDetector(), 0)
    assert mined.by_image.keys() == {"single"} and mined.num_good == 2
    batches[1][0]["volume_boxes"] = []  # of a volume without a lesion
    mined = miner.mine(FakeDetector(), 0)
    assert mined.by_image.keys() == {"bad", "single"} and mined.num_good == 1


@pytest.mark.parametrize("detector", ["masks", "boxes"])
def test_nothing_is_mined_in_regions_to_ignore(detector):
    box = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    region = {**box, "bbox": [8, 0, 13, 5.5], "iscrowd": 1}  # half of (9, 1, 12, 4) and more
    images = [
        {"image_id": "bad", "annotations": [{**box, "bbox": [0, 0, 1, 1]}, region]},
        # Its good detection lies in the region, and still bounds the others.
        {"image_id": "good", "annotations": [{**region, "bbox": [0, 0, 9, 9]}]},
        {"image_id": "single", "annotations": []},
    ]
    DatasetCatalog.register("set", lambda: images)
    try:
        assert read_lesion_boxes("set") == {"bad": [[0, 0, 1, 1]], "good": [], "single": []}
        options = {"read_regions": read_region_boxes}
        model = FakeDetector()
        if detector == "boxes":
            model = FakeBoxDetector()
            options["read_boxes"] = {"set": {name: [LESION] for name in DETECTIONS}}.__getitem__
        mined = fake_miner(**options).mine(model, 0)
    finally:
        DatasetCatalog.remove("set")
    found = {name: [tuple(a["bbox"]) for a in each] for name, each in mined.by_image.items()}
    assert found == {**EXPECTED, "bad": [(9, 6, 12, 9)]}
    assert mined.num_good == 1


def test_lesions_of_a_volume_are_those_of_all_its_slices():
    lesion = {"bbox": [1, 2, 3, 5], "bbox_mode": BoxMode.XYWH_ABS}
    whole = [[1, 2, 4, 7], [8, 8, 9, 9]]
    images = [
        {"image_id": "slice", "annotations": [lesion]},
        {"image_id": "of_volume", "annotations": [], "volume_boxes": whole},
        {"image_id": "of_empty_volume", "annotations": [], "volume_boxes": []},
    ]
    DatasetCatalog.register("lesions_to_read", lambda: images)
    try:
        boxes = read_lesion_boxes("lesions_to_read")
    finally:
        DatasetCatalog.remove("lesions_to_read")
    assert boxes == {"slice": [[1, 2, 4, 7]], "of_volume": whole, "of_empty_volume": []}


def test_a_draw_depends_on_seed_iteration_and_image_alone(monkeypatch):
    many = ([(x, y, x + 2, y + 2) for x in (7, 10, 13) for y in (0, 3, 6, 9)], [0.9] * 12)
    monkeypatch.setitem(DETECTIONS, "bad", many)
    monkeypatch.setitem(DETECTIONS, "single", many)

    def drawn(names, iteration=0, seed=0):
        loader = [batch for batch in fake_loader("set") if batch[0]["image_id"] in names]
        miner = HardNegativeMiner(datasets=["set"], build_loader=lambda _: loader, seed=seed)
        found = miner.mine(FakeDetector(), iteration).by_image
        return {name: tuple(tuple(a["bbox"]) for a in list_) for name, list_ in found.items()}

    whole, part = drawn(["bad", "single"]), drawn(["single"])
    assert whole["single"] == part["single"] != whole["bad"]
    assert len({drawn(["bad"], i)["bad"] for i in range(8)}) > 1
    assert len({drawn(["bad"], 0, i)["bad"] for i in range(8)}) > 1


class FakeTrainer(TrainerBase):
    """Trains nothing; notes what its loader was given."""

    def __init__(self, folder, *, max_iter=7, resume=False, **kwargs):
        super().__init__()
        self.model = FakeDetector()
        self.checkpointer = LesionCheckpointer(self.model, str(folder), trainer=weakref.proxy(self))
        self.restarts = []
        self.max_iter = max_iter
        self.hook = HardNegativeMiningHook(
            2, miner=fake_miner(), checkpointer=self.checkpointer, **kwargs
        )
        self.register_hooks([hooks.PeriodicCheckpointer(self.checkpointer, 4), self.hook])
        if resume:
            self.checkpointer.resume_or_load("", resume=True)
            self.start_iter = self.iter + 1
        else:
            self.start_iter = 0

    def run_step(self):
        pass

    def restart_loader(self, start_iter, hard_negatives):
        self.restarts.append((start_iter, hard_negatives))

    def run(self):
        self.train(self.start_iter, self.max_iter)
        return self


NEGATIVE = {"bbox": [1.0, 2.0, 9.0, 9.5], "category_id": 1, "score": 0.9, "box_iou": 0.0}


def test_hook_mines_after_every_period_but_the_last_iteration(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lesion_d2")
    trainer = FakeTrainer(tmp_path, max_iter=6).run()
    assert [start for start, _ in trainer.restarts] == [2, 4]
    assert list(trainer.restarts[0][1]) == list(EXPECTED)
    assert (
        "Mined 4 hard negatives on 3 of 5 images; 20.0 % of the images have a good" in caplog.text
    )
    trainer = FakeTrainer(tmp_path, max_iter=6, start_iter=3).run()
    assert [start for start, _ in trainer.restarts] == [4]


def test_the_file_has_the_set_in_cocos_results_format(tmp_path):
    FakeTrainer(tmp_path).run()
    file = tmp_path / "inference" / "set" / "hard_negatives.json"
    results = json.loads(file.read_text())
    assert [r["image_id"] for r in results] == ["good", "bad", "bad", "single"]
    assert results[0].keys() == {
        "image_id", "category_id", "bbox", "score", "segmentation", "mask_iou"
    }  # fmt: skip
    assert results[0]["bbox"] == [9, 1, 3, 3]
    assert mask_util.area(results[0]["segmentation"]) == 9


def test_a_resumed_run_goes_on_with_the_set_of_the_checkpoint(tmp_path):
    first = FakeTrainer(tmp_path).run()
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    resumed = FakeTrainer(tmp_path, resume=True)
    assert resumed.start_iter == 4
    resumed.run()
    # The set that was mined after the checkpoint's own iteration, which it was written again with.
    assert resumed.restarts[0] == (4, first.restarts[1][1])
    assert [start for start, _ in resumed.restarts] == [4, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": 5}, "checkpoint: negatives: found 5, expected annotations by images"),
        ({"mined_at": "x"}, "checkpoint: mined_at: found 'x', expected an iteration"),
        ({"negatives": {"one": 5}}, "image 'one': found 5, expected a list of annotations"),
        ({"negatives": {"one": [{}]}}, "image 'one': found no 'bbox', expected x1 < x2"),
        *[
            ({"negatives": {"one": [{**NEGATIVE, key: value}]}}, f"image 'one': {key}: found")
            for key, value in (
                ("bbox", [5, 5, 5, 9]),
                ("bbox", [0, 0, 9, float("nan")]),
                ("category_id", -1),
                ("category_id", None),
                ("score", 1e29),
                ("segmentation", {"size": [100_000, 100_000], "counts": "00"}),
                ("segmentation", {"size": [64, 64], "counts": "n0i03"}),
            )
        ],
    ],
)
def test_negatives_of_a_checkpoint_that_are_none_are_refused(change, message):
    hook = HardNegativeMiningHook(2, miner=None, checkpointer=None)
    state = {"mined_at": 3, "negatives": {"one": [NEGATIVE]}}
    hook.load_state_dict(state)
    assert hook.state_dict() == state
    with pytest.raises(InputError, match=f"hard negatives of the .*{message}"):
        hook.load_state_dict({**state, **change})
    assert hook.state_dict() == state


def test_a_checkpoint_of_an_earlier_iteration_is_not_touched(tmp_path):
    trainer = FakeTrainer(tmp_path)
    trainer.checkpointer.save("model_0000000", iteration=0)
    before = (tmp_path / "model_0000000.pth").read_bytes()
    trainer.max_iter = 3
    trainer.run()
    assert (tmp_path / "model_0000000.pth").read_bytes() == before
    assert not (tmp_path / "model_0000001.pth").exists()
