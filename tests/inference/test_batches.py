"""Several images, and several tiles, at a time."""

import functools

from lesion_d2.engine import Trainer
from lesion_d2.inference import OneSizeBatches, VolumeEnsemble

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from made_up_patches import Reader, tiny_model
from tiny_run import tiny_config
from torch import nn

ALL = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, "TEST__DETECTIONS_PER_IMAGE": 10}


@functools.cache
def detector():
    torch.manual_seed(0)
    model = build_model(tiny_config(**ALL)).eval()
    nn.init.normal_(model.head.cls_score.weight, std=0.5)  # else all scores are the prior
    nn.init.normal_(model.head.bbox_pred.weight, std=0.2)
    return model


def check_close(found, expected):
    """Detections in any order of those whose scores differ by rounding."""
    assert len(found) == len(expected) > 0 and found.image_size == expected.image_size
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3
    )
    assert torch.equal(found.pred_classes, expected.pred_classes)


class Sizes(nn.Module):
    """Tells what it is shown."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, batched_inputs):
        self.batches.append([x["name"] for x in batched_inputs])
        return [{"name": x["name"], "shape": x["image"].shape} for x in batched_inputs]


def test_images_of_one_size_are_shown_together_and_come_back_in_their_order():
    sides = [(4, 6), (4, 4), (4, 6), (6, 4), (4, 4)]
    batch = [{"name": i, "image": torch.zeros(3, *size)} for i, size in enumerate(sides)]
    model = Sizes()
    outputs = OneSizeBatches(model)(batch)
    assert [output["name"] for output in outputs] == [0, 1, 2, 3, 4]
    assert [tuple(output["shape"][1:]) for output in outputs] == sides
    assert model.batches == [[0, 2], [1, 4], [3]]


@torch.no_grad()
def test_a_batch_of_several_sizes_finds_what_each_image_alone_shows():
    torch.manual_seed(1)
    sizes = [(64, 64), (64, 96), (64, 64), (96, 64)]
    batch = [{"image": 255 * torch.rand(3, *size)} for size in sizes]
    alone = [detector()([sample])[0]["instances"] for sample in batch]
    together = OneSizeBatches(detector())(batch)
    for output, expected in zip(together, alone, strict=True):
        check_close(output["instances"], expected)
    # Padded to one size, as Detectron2 does it, they find something else.
    padded = detector()(batch)[0]["instances"]
    n = min(len(padded), len(alone[0]))
    assert not torch.allclose(padded.scores[:n], alone[0].scores[:n], rtol=1e-3, atol=0)


class Keeper(DatasetEvaluator):
    """Keeps what a model finds by image, and the sizes of its batches."""

    def reset(self):
        self.found, self.sizes = {}, []

    def process(self, inputs, outputs):
        self.sizes.append(len(inputs))
        for sample, output in zip(inputs, outputs, strict=True):
            self.found[sample["image_id"]] = output["instances"]

    def evaluate(self):
        return {}


def test_an_evaluation_in_batches_finds_the_same(tiny_phantom):
    kept = []
    for number in (1, 4):
        cfg = tiny_config(**ALL, TEST__IMS_PER_BATCH=number, DATASETS__TEST=("phantom_train",))
        keeper = Keeper()
        keeper.reset()
        Trainer.test(cfg, detector(), keeper)
        kept.append(keeper)
    alone, together = kept
    assert set(alone.sizes) == {1} and together.sizes[0] == 4 == max(together.sizes)
    assert list(together.found) == list(alone.found) and not detector().training
    for name, expected in alone.found.items():
        check_close(together.found[name], expected)


@pytest.mark.parametrize("tiles_per_batch, batches", [(4, [8, 2]), (100, [10])])
def test_tiles_in_batches_find_the_same(tiles_per_batch, batches):
    torch.manual_seed(0)
    model = tiny_model("RetinaNet3D", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0).eval()
    model.max_detections_per_image = 3
    nn.init.normal_(model.head.cls_score.weight, std=0.3)
    reader = Reader(255 * torch.rand(6, 16, 48))
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    results = []
    for number in (1, tiles_per_batch):
        sizes.clear()
        ensemble = VolumeEnsemble(
            [model], tile_size=(6, 16, 16), mirrors=True, tiles_per_batch=number, tile_overlap=0.5
        )
        ensemble.view_options["mirrors"] = False
        results.append(ensemble.views({"reader": reader}))
    alone, together = (found.instances for found in results)
    check_close(together, alone)
    assert torch.equal(results[0].view_ids, results[1].view_ids)


def test_a_batch_without_tiles_is_refused():
    with pytest.raises(ValueError, match="tiles_per_batch: found 0, expected 1 or more"):
        VolumeEnsemble([Sizes()], tile_size=(2, 2, 2), tiles_per_batch=0)
