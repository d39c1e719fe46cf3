import json
import random
import re

from lesion_d2.data.loader import build_lesion_loss_loader
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine import Trainer, ValidationLossHook, finish_run, load_config
from lesion_d2.engine.validation_loss import mean_losses

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import TrainerBase
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from run_training import train
from tiny_run import stopping_args, tiny_args, tiny_config, uldor_args
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from warm_processes import launch_two

_AUGMENTED = {"INPUT__AUG__HFLIP_PROB": 1.0, "INPUT__AUG__MAX_ROTATION": 0.1}


def _retina_unet(**changes):
    """A RetinaU-Net with BatchNorm whose statistics are not those of any batch, and dropout."""
    cfg = tiny_config(MODEL__RESNETS__NORM="BN", **changes)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    for stage in model.backbone.bottom_up.stages:
        stage[1].running_mean.uniform_(-0.1, 0.1)
        stage[1].running_var.uniform_(0.5, 2.0)
        stage.append(nn.Dropout(0.5))
    return cfg, model.train()


def _mask_rcnn(**changes):
    cfg = load_config(uldor_args("output", **changes))
    torch.manual_seed(0)
    return cfg, Trainer.build_model(cfg).train()


def _number_of_positive_anchors(model, batch) -> int:
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    anchors = model.anchor_generator([features[f] for f in model.head_in_features])
    labels, _ = model.label_anchors(anchors, [sample["instances"] for sample in batch])
    return int(sum(((n >= 0) & (n != model.num_classes)).sum() for n in labels))


def _slow_mean(cfg, model, batch_size: int) -> dict[str, float]:
    """The mean over images by hand: one image after the other from disk, nothing restored."""
    mapper = LesionDatasetMapper(cfg, True)
    samples = [mapper(image) for name in cfg.DATASETS.TEST for image in DatasetCatalog.get(name)]
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.train(False)
    sums = {}
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        with EventStorage(), torch.no_grad():
            # From this value on the running mean stays at the batch's own number.
            model.loss_normalizer = float(max(_number_of_positive_anchors(model, batch), 1))
            for name, value in model(batch).items():
                sums.setdefault(name, []).append((value.item(), len(batch)))
    return {
        name: sum(value * number for value, number in values) / len(samples)
        for name, values in sums.items()
    }


def test_the_loss_is_the_mean_over_all_images_of_all_test_sets(tiny_phantom):
    cfg, model = _retina_unet(DATASETS__TEST=("phantom_val", "phantom_test"))
    loader = build_lesion_loss_loader(cfg)
    sizes = [len(batch) for batch in loader]
    assert set(sizes[:-1]) == {4} and 0 < sizes[-1] < 4  # weights that differ
    found = mean_losses(model, loader)
    assert found == pytest.approx(_slow_mean(cfg, model, batch_size=4), rel=1e-5)
    assert set(found) == {"loss_cls", "loss_box_reg", "loss_seg"}


def test_images_are_as_at_inference_each_once_with_its_lesions(tiny_phantom):
    cfg = tiny_config(**_AUGMENTED, DATALOADER__NUM_WORKERS=2)
    images = DatasetCatalog.get("phantom_val")
    expected = {image["image_id"]: image for image in images}
    plain = LesionDatasetMapper(tiny_config(), True)
    samples = [sample for batch in build_lesion_loss_loader(cfg) for sample in batch]
    assert [sample["image_id"] for sample in samples] == list(expected)
    for sample in samples:
        wanted = plain(expected[sample["image_id"]])
        assert torch.equal(sample["image"], wanted["image"])
        found, lesions = sample["instances"], wanted["instances"]
        assert torch.equal(found.gt_boxes.tensor, lesions.gt_boxes.tensor)
        assert torch.equal(found.gt_masks.tensor, lesions.gt_masks.tensor)


def test_images_without_a_lesion_are_not_left_out_and_masks_only_where_they_are_on(tiny_phantom):
    images = [
        {**image, "annotations": image["annotations"] * (i % 2)}
        for i, image in enumerate(DatasetCatalog.get("phantom_val"))
    ]
    DatasetCatalog.register("half_empty", lambda: images)
    try:
        cfg, model = _mask_rcnn(DATASETS__TEST=("half_empty",), MODEL__MASK_ON=False)
        loader = build_lesion_loss_loader(cfg)
        instances = [sample["instances"] for batch in loader for sample in batch]
        assert len(instances) == len(images) and {len(i) for i in instances} >= {0, 1}
        assert not any(each.has("gt_masks") for each in instances)
        losses = mean_losses(model, loader)
    finally:
        DatasetCatalog.remove("half_empty")
    assert all(np.isfinite(value) for value in losses.values())


class _Failing:
    """Gives a loader's first batch, and fails."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        yield next(iter(self.loader))
        raise OSError("a slice is gone")


@pytest.mark.parametrize("build", [_retina_unet, _mask_rcnn])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_training_is_changed(tiny_phantom, build, fails):
    cfg, model = build()
    loader = build_lesion_loss_loader(cfg)
    model.backbone.bottom_up.stem.eval()  # somebody wants it so
    model.loss_normalizer = 17.0
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    own = set(vars(model))
    with EventStorage(5) as storage:
        before = _random_numbers(seed=3)
        _random_numbers(seed=3, draw=False)
        if fails:
            with pytest.raises(OSError, match="a slice is gone"):
                mean_losses(model, _Failing(loader), seed=8)
        else:
            mean_losses(model, loader, seed=8)
        assert _random_numbers() == before
        assert get_event_storage() is storage and not storage.latest()

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    assert model.loss_normalizer == 17.0 and set(vars(model)) == own


def _random_numbers(seed: int | None = None, *, draw: bool = True) -> list[float]:
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    return [random.random(), np.random.rand(), torch.rand(1).item()] if draw else []


def test_the_loss_depends_on_the_weights_and_the_seed_alone(tiny_phantom):
    cfg, model = _mask_rcnn()
    loader = build_lesion_loss_loader(cfg)
    first = mean_losses(model, loader)
    assert set(first) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    torch.rand(7)
    assert mean_losses(model.eval(), loader) == first  # in the training computation all the same
    assert not model.training
    assert mean_losses(model, loader, seed=1) != first  # what is drawn matters
    with torch.no_grad():
        model.proposal_generator.rpn_head.conv.weight.mul_(1.1)
    assert mean_losses(model, loader) != first


def test_the_normalizer_s_history_does_not_matter(tiny_phantom):
    cfg, model = _retina_unet()
    loader = build_lesion_loss_loader(cfg)
    fresh = mean_losses(model, loader)
    model.loss_normalizer = 1000.0
    assert mean_losses(model, loader) == fresh


def test_mixed_precision_is_used_where_the_run_uses_it(tiny_phantom):
    cfg, model = _retina_unet()
    loader = build_lesion_loss_loader(cfg)
    full, mixed = mean_losses(model, loader), mean_losses(model, loader, use_amp=True)
    assert mixed != full
    assert mixed == pytest.approx(full, rel=0.02)


class _Detector(nn.Module):
    """Its loss is the number of lesions in the batch; it refuses to be trained."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        assert not torch.is_grad_enabled()
        count = sum(len(sample["instances"]) for sample in batch)
        return {"loss_a": self.weight.sum() + count, "loss_b": self.weight.sum() + 2.0}


def _sample(num_lesions: int) -> dict:
    return {"instances": Instances((9, 9), gt_boxes=Boxes(torch.zeros(num_lesions, 4)))}


class _Training(TrainerBase):
    def __init__(self, hook):
        super().__init__()
        self.model = _Detector()
        self.register_hooks([hook])

    def run_step(self):
        pass


def test_the_hook_puts_the_loss_into_the_storage_at_its_times_and_at_the_end(caplog):
    # (3 lesions x 2 images + 5 x 1) / 3 images
    loader = [[_sample(1), _sample(2)], [_sample(5)]]
    training = _Training(ValidationLossHook(2, loader))
    with caplog.at_level("INFO", logger="lesion_d2"):
        training.train(0, 6)
    storage = training.storage
    assert storage.history("validation_loss").values() == [
        (pytest.approx(11 / 3 + 2), 1),
        (pytest.approx(11 / 3 + 2), 3),
        (pytest.approx(11 / 3 + 2), 6),  # Detectron2 counts the end so
    ]
    assert storage.latest()["validation_loss/loss_a"] == (pytest.approx(11 / 3), 6)
    assert storage.latest()["validation_loss/loss_b"] == (2.0, 6)
    assert not storage.smoothing_hints()["validation_loss"]
    expected = r"Validation loss: 5\.66667 \(loss_a 3\.66667, loss_b 2\.00000\); \d+\.\d s"
    assert sum(bool(re.fullmatch(expected, line)) for line in caplog.messages) == 3


_BY_LOSS = {"TEST__EVAL_PERIOD": 0, "SOLVER__PATIENCE_METRIC": "validation_loss"}


@pytest.mark.parametrize("make_args", [tiny_args, uldor_args])
def test_a_run_with_the_hook_trains_to_the_same_weights(tiny_phantom, tmp_path, make_args):
    options = {**_AUGMENTED, "TEST__EVAL_PERIOD": 0}
    plain = train(make_args(tmp_path / "plain", **options))
    run = train(make_args(tmp_path / "loss", TEST__LOSS_PERIOD=1, **options))
    weights = plain.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "loss" / "metrics.json").open()]
    history = run.storage.history("validation_loss").values()
    assert [iteration for _, iteration in history] == [0, 1, 2, 4]  # of 4, and at the end
    assert len({value for value, _ in history}) == 4
    written = [line for line in lines if "validation_loss" in line]
    assert [(line["validation_loss"], line["iteration"]) for line in written] == history
    assert all("validation_loss/loss_cls" in line for line in written)


def test_a_run_stops_when_the_loss_does_not_fall_and_is_done_when_resumed(tiny_phantom, tmp_path):
    # So small a step changes float32 weights of about 1e-2 not at all.
    options = {**_BY_LOSS, "TEST__LOSS_PERIOD": 1}
    stopped = train(stopping_args(tmp_path, **options))
    assert stopped.iter == 2
    history = [value for value, _ in stopped.storage.history("validation_loss").values()]
    assert history == [history[0]] * 3
    rates = [rate for rate, _ in stopped.storage.history("lr").values()]
    assert rates == pytest.approx([1e-12, 1e-12, 1e-13], rel=1e-6, abs=0)
    resumed = train(stopping_args(tmp_path, "--resume", **options))
    assert resumed.iter == 2
    assert resumed.storage.history("validation_loss").values() == [(history[0], 2)]
    log = (tmp_path / "log.txt").read_text()
    text = f"after iteration 2: validation_loss was not better than {history[0]:.5f} in 2"
    assert log.count(text) == 2


def test_a_loss_that_falls_does_not_stop_a_run(tiny_phantom, tmp_path):
    options = {"SOLVER__BASE_LR": 1e-3, "SOLVER__PLATEAU_PATIENCE": 0, "SOLVER__MAX_ITER": 4}
    run = train(
        stopping_args(
            tmp_path, SOLVER__EARLY_STOP_PATIENCE=1, TEST__LOSS_PERIOD=1, **options, **_BY_LOSS
        )
    )
    values = [value for value, _ in run.storage.history("validation_loss").values()]
    assert run.iter == 4 and values == sorted(values, reverse=True)


_TWO_SETS = {"DATASETS__TEST": ("phantom_val", "phantom_test")}


def _losses_of_a_process(file: str | None, num_processes: int) -> list | None:
    """Each process's mean losses and running mean afterwards; statistics differ beforehand."""
    # One image a batch, whatever the number of processes.
    cfg, model = _retina_unet(**_TWO_SETS, SOLVER__IMS_PER_BATCH=num_processes)
    loader = build_lesion_loss_loader(cfg)
    norm = model.backbone.bottom_up.stages[0][1]
    norm.running_mean += comm.get_rank()
    if num_processes > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    losses = mean_losses(model, loader)
    shown = sum(len(batch) for batch in loader)
    found = comm.all_gather([losses, norm.running_mean.tolist(), shown])
    if file is None:
        return found
    if comm.is_main_process():
        with open(file, "w") as out:
            json.dump(found, out)
    finish_run()
    return None


def test_two_processes_get_the_loss_of_one(tiny_phantom, tmp_path):
    file = tmp_path / "losses.json"
    launch_two(_losses_of_a_process, str(file), 2)
    [[expected, statistics, num_images]] = _losses_of_a_process(None, 1)
    found = json.loads(file.read_text())
    assert [losses for losses, _, _ in found] == [found[0][0]] * 2
    assert found[0][0] == pytest.approx(expected, rel=1e-6)
    assert [mean for _, mean, _ in found] == [statistics] * 2
    shares = [number for _, _, number in found]
    assert sum(shares) == num_images and min(shares) > 0
