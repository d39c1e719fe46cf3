from lesion_d2.data.deeplesion import load_deeplesion
from lesion_d2.evaluation import froc_curve
from lesion_d2.tools import benchmark
from lesion_d2.tools.benchmark import Row

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model


@pytest.mark.parametrize(
    ("limit", "at_least", "cell"),
    [(None, False, ""), (2, False, "yes"), (1, False, "NO"), (1, True, "yes"), (2, True, "NO")],
)
def test_rows_tell_whether_their_limit_holds(limit, at_least, cell):
    row = Row("time", 1.5, "s", limit, at_least=at_least)
    assert row.cells()[3] == cell and row.ok == (cell != "NO")


def test_calls_take_turns_and_the_first_ones_are_not_timed():
    order = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    times = benchmark.time_calls(calls, repeats=3, warm_up=2)
    assert "".join(order) == "ababababab"
    assert [len(t.seconds) for t in times] == [3, 3]


def test_the_published_loop_gives_the_same_curve():
    rng = np.random.default_rng(1)
    lesions = list(benchmark.random_boxes(rng, (20, 2)))
    boxes = [np.concatenate([g + 2, benchmark.random_boxes(rng, (1, 5))[0]]) for g in lesions]
    lesions[3] = np.empty((0, 4))
    scores = list(rng.uniform(0, 1, (20, 7)))
    sensitivity, rate = benchmark.froc_loop(boxes, scores, lesions)
    curve = froc_curve(boxes, scores, lesions)
    assert sensitivity == pytest.approx(curve.sensitivity)
    assert rate == pytest.approx(curve.fps_per_image)
    assert sensitivity[-1] == 1 and rate[-1] == pytest.approx((20 * 5 + 2) / 20)


def test_froc_rows_compare_both_curves():
    first, second = benchmark.measure_froc(num_images=30, per_image=4)
    assert first.limit == 0.25 and first.unit == "s"
    assert "differ by at most 0" in second.note


def test_made_up_rows_load(tmp_path):
    root = tmp_path / "rows"
    benchmark.write_rows(root, 50)
    dicts = load_deeplesion(root / "DL_info.csv", root / "Images_png", None)
    assert sum(len(d["annotations"]) for d in dicts) == 50


def test_masks_are_compared_on_a_data_set_that_is_gone_afterwards(tmp_path):
    names = DatasetCatalog.list()
    phantom = {"num_patients": 8, "size": 192}
    grabcut, ellipse = benchmark.compare_masks(tmp_path, ("grabcut", "ellipse"), **phantom)
    assert len(grabcut.dice) == len(ellipse.dice) > 0
    assert grabcut.milliseconds > ellipse.milliseconds > 0
    assert DatasetCatalog.list() == names


def test_ratios_are_the_median_over_pairs():
    ours, theirs = benchmark.Times([2.0, 30.0, 3.0]), benchmark.Times([1.0, 10.0, 2.0])
    row = benchmark.paired_ratio("step", ours, theirs, "2 images")
    assert row.measured == 2 and row.note == "3000 against 2000 ms, 2 images"


@pytest.mark.parametrize("predict_masks", [False, True])
def test_masks_are_predicted_as_told_whatever_the_config_says(predict_masks):
    cfg = benchmark.load_config(benchmark.CPU_CONFIG, "cpu")
    for said in (False, True):
        cfg.MODEL.RETINA_UNET.PREDICT_MASKS = said
        told = benchmark.predicting_masks(cfg, predict_masks)
        assert told.MODEL.RETINA_UNET.PREDICT_MASKS is predict_masks
        assert cfg.MODEL.RETINA_UNET.PREDICT_MASKS is said


def test_the_retinanet_has_the_same_levels_and_heads():
    cfg = benchmark.load_config(benchmark.CPU_CONFIG, "cpu")
    cfg.INPUT.CT.IMAGE_SIZE, cfg.SOLVER.IMS_PER_BATCH = 64, 2
    unet, net = build_model(cfg), build_model(benchmark.as_retinanet(cfg))
    batch = benchmark.random_batch(cfg)
    assert [tuple(x["image"].shape) for x in batch] == [(3, 64, 64)] * 2
    assert type(net).__name__ == "RetinaNet" and type(unet).__name__ == "RetinaUNet"
    images = torch.zeros(1, 3, 64, 64)
    for level in cfg.MODEL.RETINANET.IN_FEATURES:
        assert unet.backbone(images)[level].shape == net.backbone(images)[level].shape
    heads = [sum(p.numel() for p in model.head.parameters()) for model in (unet, net)]
    assert heads[0] == heads[1]
    before = [p.detach().clone() for p in net.parameters()]
    benchmark.training_step(net, batch)()
    assert any((p != old).any() for p, old in zip(net.parameters(), before, strict=True))
    unet.eval()
    benchmark.infer(unet, batch)
