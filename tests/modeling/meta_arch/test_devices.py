"""Where the tensors of detectors of slices are, and where they make the host wait for a GPU."""

from pathlib import Path

from lesion_d2 import get_lesion_config
from lesion_d2.experiments.benchmark.inputs import random_batch
from lesion_d2.experiments.benchmark.models.bai import lower_score_threshold, with_weak_views
from lesion_d2.modeling import MeanTeacher
from lesion_d2.modeling.waiting import put_scalar

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from two_devices import GPU, TwoDevices, on_gpu

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.CT.IMAGE_SIZE", 64),
    *("SOLVER.IMS_PER_BATCH", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
)
GIOU = (
    *("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou", "MODEL.RETINA_UNET.SOFTMAX", True),
    *("MODEL.RETINANET.ATSS_CANDIDATES", 4, "MODEL.SEG_HEAD.PREDICT_MASKS", True),
)
NNDETECTION = (
    *("MODEL.RETINA_UNET.SHEM_POOL", 20, "MODEL.RETINA_UNET.SHEM_POSITIVES", 10),
    *("MODEL.RETINA_UNET.SHEM_NEGATIVES", 2),
)


def _build(file, *options):
    cfg = get_lesion_config()
    cfg.merge_from_file(str(CONFIGS / f"{file}.yaml"))
    cfg.merge_from_list([*TINY, *options])
    torch.manual_seed(0)
    batch = random_batch(cfg)
    if not cfg.MODEL.MASK_ON and cfg.MODEL.RETINA_UNET.SEG_LOSS_WEIGHT == 0:
        for sample in batch:
            sample["instances"].remove("gt_masks")
    return cfg, build_model(cfg), batch


def _train_twice(model, batch):
    """As Detectron2's trainer, which asks for the losses after each step."""
    for _ in range(2):
        losses = model(batch)
        assert all(map(on_gpu, losses.values())) and len(losses) > 0
        sum(losses.values()).item()


@pytest.mark.parametrize(
    ("file", "options", "in_training", "in_inference"),
    [
        ("quickstart/retina_unet_phantom", (), 0, 0),
        ("quickstart/retina_unet_phantom", GIOU, 0, 0),
        ("quickstart/retina_unet_phantom", NNDETECTION, 1, 0),  # the numbers of anchors
        ("toys/retina_unet_small", (), 1, 0),
        ("toys/det_unet_small", (), 0, 1),  # whose components the host finds
        ("uldor/uldor_phantom", (), 0, 0),
        ("toys/u_faster_rcnn_plus_small", (), 4, 0),  # twice the anchors, each image's proposals
        ("3dce_attention/3dce_9_cs_phantom", (), 1, 1),  # the number of features that are pooled
    ],
)
def test_no_call_mixes_devices_and_few_wait(file, options, in_training, in_inference):
    _, model, batch = _build(file, *options)
    with TwoDevices() as devices, EventStorage():
        devices.place(model, *batch)
        _train_twice(model, batch)
        assert devices.own_waits().total() <= 2 * in_training, devices.own_waits()
        devices.waits.clear()
        with torch.no_grad():
            [found] = model.eval()(batch[:1])
        assert devices.own_waits().total() <= in_inference, devices.own_waits()
    assert on_gpu(found["instances"].scores)
    assert devices.mixed == []


@pytest.mark.parametrize("mode", ["add", "ignore"])
def test_a_mean_teacher_waits_once(mode):
    options = ("MODEL.MEAN_TEACHER.PSEUDO_LABELS", mode, "MODEL.MEAN_TEACHER.START_ITER", 0)
    cfg, student, batch = _build("quickstart/retina_unet_phantom", *options)
    with_weak_views(batch, masks=True)
    model = MeanTeacher(cfg, student)
    assert lower_score_threshold(model, batch) > 0
    model.counts.clear()
    with TwoDevices() as devices, EventStorage():
        for sample in batch:
            sample["hidden_boxes"] = sample["instances"].gt_boxes.clone()
        devices.place(model, *batch)
        _train_twice(model, batch)
        model.update_teacher()
    assert model.counts["pseudo_labels"] > 0 and model.counts["hidden"] == 2 * 2 * len(batch)
    assert devices.own_waits().total() <= 2 * 1, devices.own_waits()
    assert devices.mixed == []


def test_waits_are_found():
    with TwoDevices() as devices:
        there = torch.arange(3.0, device="cuda")
        nn.functional.relu(there)
        there.to("cpu", non_blocking=True)
        torch.zeros(2).to(GPU, non_blocking=True)
        assert not devices.waits
        there.sum().item()
        there[there > 1]
        bool(there.any())
        there.cpu()
        there.to("cpu")
        there.new_tensor([1.0, 2.0])
        torch.tensor([1.0], device="cuda")
        torch.zeros(2).to(GPU)
        there.nonzero()
    found = sorted(at.split()[0] for at in devices.waits.elements())

    assert found == sorted(
        ["item", "__getitem__", "__bool__", "cpu", "to", "new_tensor", "tensor", "to", "nonzero"]
    )


def test_a_scalar_of_a_gpu_is_that_of_the_step_before():
    with TwoDevices() as devices, EventStorage() as storage:
        for value in (1.0, 2.0, 3.0):
            put_scalar("number", torch.tensor(value, device="cuda"))
            torch.zeros(1, device="cuda").item()  # the trainer's
        put_scalar("other", torch.tensor(4.0))
    assert [value for value, _ in storage.history("number").values()] == [1.0, 2.0]
    assert storage.history("other").latest() == 4.0
    assert [at for at in devices.waits if "waiting.py" in at] == []
