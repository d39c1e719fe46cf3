"""Evaluations of whole volumes, with features of three-slice images that are reused or not."""

import os
from pathlib import Path

from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.phantoms.phantom import write_phantom
from lesion_d2.data.phantoms.volumes import load_volumes
from lesion_d2.engine import LesionCheckpointer, Trainer, load_config, load_model
from lesion_d2.modeling.attention import MaxNormalizedAttention
from lesion_d2.modeling.backbone import SliceImages

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.evaluation import DatasetEvaluator
from torch import nn

import train_net

CONFIGS = Path(__file__).parents[2] / "configs" / "3dce_attention"
SPACINGS = (1.0, 2.0, 5.0)
NUM_IMAGES = 5  # M
OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.VGG.WIDTH": 4,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
    # An untrained model is sure of nothing.
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "INPUT.CT.PIXEL_SPACING": 8.0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.NUM_BOOTSTRAP": 0,
}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Names of data sets by slice spacing in mm, of one volume each, 16 mm long or more."""
    root = tmp_path_factory.mktemp("long") / "phantom"
    write_phantom(root, num_patients=3, size=64, extent_mm=8.0, workers=1)
    first: dict[float, list[dict]] = {}
    for sample in load_volumes(root, None):
        found = first.setdefault(sample["spacing"][2], [sample])
        if sample["volume"] == found[0]["volume"] and sample is not found[0]:
            found.append(sample)
    names = {spacing: f"long_volume_{spacing:g}_mm" for spacing in SPACINGS}
    for spacing, name in names.items():
        DatasetCatalog.register(name, lambda samples=first[spacing]: samples)
        metadata = MetadataCatalog.get(name)
        metadata.set(thing_classes=["lesion"], evaluator_type="lesion_volume")
    assert [len(first[spacing]) for spacing in SPACINGS] == [17, 9, 5]
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_args(*flags: str, **changes: object):
    """Of ``train_net.py``, for a small 3DCE at M = 5; ``__`` stands for the dot."""
    options = {**OPTIONS, **{key.replace("__", "."): value for key, value in changes.items()}}
    pairs = [text for key, value in options.items() for text in (key, str(value))]
    file = os.fspath(CONFIGS / "3dce_15_cs_phantom.yaml")
    return default_argument_parser().parse_args(["--config-file", file, *flags, *pairs])


def save_weights(folder: Path) -> str:
    """Weights of an untrained model whose attention is drawn: it starts from 1 everywhere."""
    torch.manual_seed(0)
    model = Trainer.build_model(load_config(make_args(MODEL__WEIGHTS="")))
    for module in model.modules():
        if isinstance(module, MaxNormalizedAttention):
            nn.init.kaiming_uniform_(module.scores.weight)
    LesionCheckpointer(model, str(folder)).save("untrained")
    return str(folder / "untrained.pth")


class KeepDetections(DatasetEvaluator):
    """By ``image_id``, the fields of what is found."""

    def reset(self):
        self.found = {}

    def process(self, inputs, outputs):
        [sample], [output] = inputs, outputs
        found = output["instances"]
        self.found[sample["image_id"]] = [
            found.pred_boxes.tensor.clone(),
            found.scores.clone(),
            found.pred_classes.clone(),
        ]

    def evaluate(self):
        return {}


def count_images(model: nn.Module) -> list[int]:
    """A list that gets the number of images of every forward pass through the inner backbone."""
    counts = []
    [backbone] = [module for module in model.modules() if isinstance(module, SliceImages)]
    backbone.backbone.register_forward_hook(lambda m, args, out: counts.append(len(args[0])))
    return counts


def evaluate(num_reused: int, names: list[str], weights: str, **changes) -> tuple[dict, int]:
    """Detections by image, and the number of images convolved."""
    changes = {
        "MODEL__SLICE_IMAGES__FEATURE_CACHE_SIZE": num_reused,
        "MODEL__WEIGHTS": weights,
        **changes,
    }
    cfg = load_config(make_args(**changes, DATASETS__TEST=tuple(names)))
    model, keepers = load_model(cfg), [KeepDetections() for _ in names]
    counts = count_images(model)
    Trainer.test(cfg, model, keepers)
    found = {image_id: v for keeper in keepers for image_id, v in keeper.found.items()}
    return found, sum(counts)


def count_distinct(name: str, **changes) -> int:
    """The three-slice images of a volume that differ, as the model gets them."""
    mapper = LesionDatasetMapper(load_config(make_args(**changes)), False)
    images = [mapper(sample)["image"] for sample in DatasetCatalog.get(name)]
    return len({part.numpy().tobytes() for image in images for part in image.split(3)})


def assert_same(found: dict, expected: dict) -> None:
    """Bit by bit; and the detections tell neighboring slices apart."""
    assert found.keys() == expected.keys()
    for image_id, fields in found.items():
        assert 5 < len(fields[0]) <= 10
        for value, other in zip(fields, expected[image_id], strict=True):
            assert torch.equal(value, other)
    scores = {tuple(fields[1].tolist()) for fields in expected.values()}
    assert len(scores) == len(expected)


@pytest.mark.parametrize("cut_borders", [False, True])
def test_every_image_of_a_volume_is_convolved_once(volumes, tmp_path, cut_borders):
    weights, cut = save_weights(tmp_path), {"INPUT__CT__CROP_TO_BODY": cut_borders}
    for spacing, name in volumes.items():
        expected, num_all = evaluate(0, [name], weights, **cut)
        found, num_images = evaluate(64, [name], weights, **cut)
        assert_same(found, expected)
        assert num_all == NUM_IMAGES * len(expected)
        # Cutting each slice on its own would make as many images as there are without reuse.
        assert num_images == count_distinct(name, **cut)
        assert num_images == count_distinct(name, INPUT__CT__CROP_TO_BODY=False)
        # At 5 mm the images lie at other fractions between the slices, but for the volume's ends.
        assert num_images < num_all * (0.5 if spacing < 5 else 1)


def test_a_memory_that_is_too_small_changes_no_detection(volumes, tmp_path):
    weights, names = save_weights(tmp_path), [volumes[2.0], volumes[5.0]]
    expected, num_all = evaluate(0, names, weights)
    found, num_images = evaluate(7, names, weights)
    assert_same(found, expected)
    assert sum(map(count_distinct, names)) < num_images < num_all


def test_mirrored_views_reuse_their_own_images(volumes, tmp_path):
    weights, names = save_weights(tmp_path), [volumes[1.0]]
    options = {"TEST__ENSEMBLE__ENABLED": True, "TEST__ENSEMBLE__MIRRORS": True}
    expected, num_all = evaluate(0, names, weights, **options)
    found, num_images = evaluate(64, names, weights, **options)
    assert_same(found, expected)
    assert num_all == 4 * NUM_IMAGES * len(expected)
    assert num_images == 4 * count_distinct(names[0])


def test_evaluation_only_of_volumes_writes_the_same_detections(volumes, tmp_path, monkeypatch):
    weights, written, numbers, results = save_weights(tmp_path), [], [], []
    counts: list[list[int]] = []

    def load_and_count(*args, **kwargs):
        model = load_model(*args, **kwargs)
        counts.append(count_images(model))
        return model

    monkeypatch.setattr(train_net, "load_model", load_and_count)
    for num_reused in (0, 64):
        folder = tmp_path / str(num_reused)
        changes = {"MODEL.WEIGHTS": weights, "MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE": num_reused}
        changes |= {"OUTPUT_DIR": folder, "DATASETS.TEST": (volumes[1.0],)}
        results.append(train_net.main(make_args("--eval-only", **changes)))
        written.append((folder / "inference" / volumes[1.0] / "volumes.json").read_text())
        numbers.append(sum(counts[-1]))
    assert written[0] == written[1] and len(written[0]) > 1000
    first, second = (result["volume"] for result in results)
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)
    assert numbers[0] == NUM_IMAGES * 17 and numbers[1] == count_distinct(volumes[1.0])
