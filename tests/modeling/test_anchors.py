import itertools
import math
from pathlib import Path

from lesion_d2.modeling.anchors import (
    anchor_shapes,
    best_anchor_iou,
    best_grid_iou,
    optimize_anchors,
    unmatched_share,
)

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torchvision.ops import box_iou

VAL_BOXES = Path(__file__).parents[2].parent / "shared" / "data" / "deeplesion_val_boxes.csv"
# A set of anchors, and the boxes that it fits exactly.
SIZES, SCALES, RATIOS = (16, 32, 64), (0.5, 0.62, 0.83), (1 / 2.7, 1 / 1.4, 1.0, 1.4, 2.7)


def written_out_anchors(sizes, scales, ratios):
    """As Detectron2's generator says it: area = (size * scale)^2, ratio = height / width."""
    anchors = []
    for size, scale, ratio in itertools.product(sizes, scales, ratios):
        width = math.sqrt((size * scale) ** 2 / ratio)
        anchors.append((width, ratio * width))
    return anchors


def slow_best_iou(wh, anchors):
    best = []
    for w, h in wh:
        ious = []
        for aw, ah in anchors:
            x = max(0.0, min(w / 2, aw / 2) - max(-w / 2, -aw / 2))
            y = max(0.0, min(h / 2, ah / 2) - max(-h / 2, -ah / 2))
            ious.append(x * y / (w * h + aw * ah - x * y))
        best.append(max(ious))
    return np.array(best)


def random_shapes(rng, num, low=8.0, high=120.0):
    return np.exp(rng.uniform(np.log(low), np.log(high), (num, 2)))


def test_iou_equals_a_slow_loop_for_any_anchors():
    rng = np.random.default_rng(0)
    wh, anchors = random_shapes(rng, 40), random_shapes(rng, 7)
    np.testing.assert_allclose(best_anchor_iou(wh, anchors), slow_best_iou(wh, anchors))
    np.testing.assert_allclose(best_anchor_iou(anchors, anchors), 1)


def test_iou_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    wh, anchors = random_shapes(rng, 40), random_shapes(rng, 7)
    whole = best_anchor_iou(wh, anchors)
    monkeypatch.setattr("lesion_d2.modeling.anchors._BLOCK", 21)
    assert (best_anchor_iou(wh, anchors) == whole).all()


def test_unmatched_is_below_one_half():
    iou = best_anchor_iou([(10, 10), (20, 10), (21, 10), (10, 19)], [(10, 10)])
    np.testing.assert_allclose(iou, [1, 1 / 2, 10 / 21, 10 / 19])
    assert unmatched_share(iou) == 0.25


def test_shapes_are_those_of_detectron2():
    shapes = anchor_shapes(SIZES, SCALES, RATIOS)
    np.testing.assert_allclose(shapes, written_out_anchors(SIZES, SCALES, RATIOS))
    generator = DefaultAnchorGenerator(
        sizes=[[size * scale for scale in SCALES] for size in SIZES],
        aspect_ratios=[list(RATIOS)],
        strides=[4, 8, 16],
    )
    cells = np.concatenate([cell.numpy() for cell in generator.cell_anchors])
    np.testing.assert_allclose(cells[:, 2:] - cells[:, :2], shapes, rtol=1e-5)


@pytest.mark.parametrize("objective", ["mean", "focal"])
def test_a_known_optimum_is_found(objective):
    wh = anchor_shapes(SIZES, SCALES, RATIOS)
    found = optimize_anchors(wh, sizes=SIZES, objective=objective)
    np.testing.assert_allclose(found.scales, SCALES, rtol=5e-3)
    np.testing.assert_allclose(found.ratios, RATIOS, rtol=1e-2)
    assert found.mean_iou > 0.995 and found.unmatched == 0 and found.loss < 5e-3
    np.testing.assert_allclose(found.anchors, wh, rtol=1e-2)
    np.testing.assert_allclose(
        found.level_sizes, [[size * scale for scale in SCALES] for size in SIZES], rtol=5e-3
    )


def test_other_numbers_of_scales_and_pairs():
    wh = anchor_shapes((20, 50), (0.6, 0.8), (1.0,))
    found = optimize_anchors(wh, sizes=(20, 50), num_scales=2, num_ratio_pairs=0, objective="mean")
    np.testing.assert_allclose(found.scales, (0.6, 0.8), rtol=1e-3)
    assert found.ratios == (1.0,)
    found = optimize_anchors([(30, 10)], sizes=(20,), num_scales=1, num_ratio_pairs=1)
    np.testing.assert_allclose(found.ratios, (1 / 3, 1, 3), rtol=2e-2)
    np.testing.assert_allclose(found.scales, math.sqrt(300) / 20, rtol=2e-2)


@pytest.mark.parametrize(
    ("objective", "loss"),
    [("mean", lambda iou: 1 - iou), ("focal", lambda iou: -((1 - iou) ** 2) * math.log(iou))],
)
def test_the_loss_is_the_written_out_one_and_no_candidate_is_better(objective, loss):
    rng = np.random.default_rng(1)
    wh = random_shapes(rng, 60)
    sizes = (14, 40, 75)  # not an octave apart

    def slow_loss(scales, pairs):
        ratios = [1.0, *pairs, *(1 / ratio for ratio in pairs)]
        ious = slow_best_iou(wh, written_out_anchors(sizes, scales, ratios))
        return sum(loss(iou) for iou in ious) / len(ious)

    found = optimize_anchors(wh, sizes=sizes, num_scales=2, num_ratio_pairs=1, objective=objective)
    scales, pair = np.array(found.scales), found.ratios[-1]
    assert found.loss == pytest.approx(slow_loss(scales, [pair]))
    ious = slow_best_iou(wh, found.anchors)
    assert found.mean_iou == pytest.approx(ious.mean())
    assert found.unmatched == pytest.approx((ious < 0.5).mean())
    for _ in range(40):  # near it and far from it
        others = np.clip(scales * np.exp(rng.normal(0, 0.02, 2)), 0.4, 2)
        assert slow_loss(others, [np.clip(pair * math.exp(rng.normal(0, 0.02)), 1, 4)]) > found.loss
        assert slow_loss(rng.uniform(0.4, 2, 2), [rng.uniform(1, 4)]) > found.loss


@pytest.mark.parametrize("objective", ["mean", "focal"])
def test_the_search_sees_the_loss_of_all_anchors(objective):
    """The losses reported on the way are those of all anchors, without the search's short cut."""
    wh = random_shapes(np.random.default_rng(2), 50)
    losses = []
    found = optimize_anchors(wh, objective=objective, on_generation=losses.append)
    assert len(losses) == found.generations
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    ious = slow_best_iou(wh, written_out_anchors(found.sizes, found.scales, found.ratios))
    assert losses[-1] == pytest.approx(found.loss, rel=1e-9)
    if objective == "mean":
        assert losses[-1] == pytest.approx(1 - ious.mean(), rel=1e-9)


def test_results_are_the_same_twice_and_do_not_depend_on_the_order_of_boxes():
    wh = random_shapes(np.random.default_rng(3), 100)
    arguments = {"sizes": (16, 40, 90), "num_scales": 2, "num_ratio_pairs": 1}
    first, second = (optimize_anchors(wh, seed=4, **arguments) for _ in range(2))
    assert (first.scales, first.ratios, first.loss) == (second.scales, second.ratios, second.loss)
    assert (first.best_iou == second.best_iou).all()
    other = optimize_anchors(wh, seed=5, **arguments)
    assert other.scales != first.scales
    assert other.loss == pytest.approx(first.loss, rel=1e-2)
    turned = optimize_anchors(wh[::-1, ::-1], seed=4, **arguments)  # also on their sides
    assert turned.loss == pytest.approx(first.loss, rel=1e-3)
    np.testing.assert_allclose(np.prod(first.ratios), 1)
    assert list(first.ratios) == sorted(first.ratios)
    assert list(first.scales) == sorted(first.scales)


def test_anchors_stay_within_their_bounds():
    wh = random_shapes(np.random.default_rng(4), 20)
    found = optimize_anchors(wh, scale_bounds=(0.9, 1.1), ratio_bounds=((1, 2), (2.5, 4)))
    assert 0.9 <= found.scales[0] <= found.scales[-1] <= 1.1
    assert 1 <= found.ratios[3] <= 2 and 2.5 <= found.ratios[4] <= 4
    fixed = optimize_anchors(wh, scale_bounds=((0.5, 0.5), (0.7, 0.7), (0.6, 1)))
    assert {0.5, 0.7} < set(fixed.scales)


GOOD = np.array([(10.0, 20.0), (30.0, 20.0)])


@pytest.mark.parametrize(
    ("wh", "arguments", "message"),
    [
        (np.empty((0, 2)), {}, "wh: found no boxes, expected at least one"),
        (np.empty(0), {}, r"wh: found an array of shape \(0,\), expected \(N, 2\)"),
        (np.ones((3, 4)), {}, r"shape \(3, 4\), expected \(N, 2\)"),
        ([(10, 20), (0, 5)], {}, "row 1: found a width of 0 and a height of 5, expected finite"),
        ([(10, -2), (0, 5)], {}, r"row 0: found a width of 10 and a height of -2.*: 2 of 2\)"),
        ([(10, 20), (3, np.nan)], {}, "row 1: found a width of 3 and a height of nan"),
        ([(np.inf, 20)], {}, "row 0: found a width of inf"),
        (GOOD, {"sizes": ()}, r"sizes: found \(\), expected finite numbers"),
        (GOOD, {"sizes": (32, 0)}, r"sizes: found \(32.0, 0.0\), expected finite numbers"),
        (GOOD, {"sizes": (32, np.nan)}, "sizes: found"),
        (GOOD, {"objective": "median"}, r"found 'median', expected one of \['mean', 'focal'\]"),
        (GOOD, {"num_scales": 0}, "found 0 scales and 2 ratio pairs"),
        (GOOD, {"num_ratio_pairs": -1}, "found 3 scales and -1 ratio pairs"),
        (GOOD, {"scale_bounds": (2.0, 0.4)}, r"scale_bounds: found \(2, 0.4\), expected 0 < low"),
        (GOOD, {"scale_bounds": (0.0, 2.0)}, r"scale_bounds: found \(0, 2\), expected 0 < low"),
        (GOOD, {"ratio_bounds": ((1, 2), (4, 2))}, r"ratio_bounds: found \(4, 2\), expected"),
        (GOOD, {"ratio_bounds": ((1, 2),) * 3}, r"expected \(low, high\) or 2 such pairs"),
        (GOOD, {"ratio_bounds": ((1, 2), 3)}, r"expected \(low, high\) or 2 such pairs"),
        (GOOD, {"ratio_bounds": 4}, r"expected \(low, high\) or 2 such pairs"),
    ],
)
def test_bad_input_is_one_line(wh, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        optimize_anchors(wh, **arguments)
    assert "\n" not in str(error.value)


def test_an_anchor_without_a_width_is_refused():
    with pytest.raises(ValueError, match="anchors, row 0: found a width of 0"):
        best_anchor_iou(GOOD, [(0, 1)])


@pytest.mark.skipif(not VAL_BOXES.exists(), reason=f"the real boxes are not at {VAL_BOXES}")
def test_real_boxes_have_the_published_overlaps():
    """The issue's figures for the 4,885 validation boxes of DeepLesion."""
    boxes = np.loadtxt(VAL_BOXES, delimiter=",", skiprows=1, usecols=(2, 3, 4, 5))
    wh = boxes[:, 2:] - boxes[:, :2]
    sizes = (32, 64, 128, 256, 512)
    default = anchor_shapes(sizes, (1, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1, 2))
    assert best_anchor_iou(wh, default).mean() == pytest.approx(0.637, abs=5e-4)
    ratios = (1 / 3.27, 1 / 1.78, 1, 1.78, 3.27)
    papers = anchor_shapes(sizes, (0.425, 0.540, 0.680), ratios)
    assert best_anchor_iou(wh, papers).mean() == pytest.approx(0.851, abs=5e-4)
    found = optimize_anchors(wh, objective="mean")
    assert found.mean_iou >= 0.884
    focal = optimize_anchors(wh, ratio_bounds=((1, 2), (2, 4)))
    assert 0.851 < focal.mean_iou < found.mean_iou and focal.unmatched == 0


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
def test_anchors_on_the_grid_are_those_of_detectron2(offset):
    """Every anchor of the generator, against every box: also at the borders, and beyond them."""
    rng = np.random.default_rng(5)
    centers, wh = rng.uniform(-5, 110, (60, 2)), random_shapes(rng, 60, high=90)
    boxes = np.concatenate([centers - wh / 2, centers + wh / 2], axis=1)
    height, width, strides = 96, 64, [8, 16, 32]
    sizes, ratios = [[10, 13], [20], [50, 70, 90]], [[0.5, 1.0], [1.0, 3.0], [1.0]]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=ratios, strides=strides, offset=offset
    )
    features = [torch.zeros(1, 1, height // s, width // s) for s in strides]
    every = torch.cat([boxes.tensor for boxes in generator(features)])
    expected = box_iou(torch.from_numpy(boxes), every.double()).amax(dim=1).numpy()
    levels = [c[:, 2:] - c[:, :2] for c in (cell.numpy() for cell in generator.cell_anchors)]
    found = best_grid_iou(boxes, np.tile([height, width], (60, 1)), levels, strides, offset=offset)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found <= best_anchor_iou(wh, np.concatenate(levels)) + 1e-6).all()


@pytest.mark.skipif(not VAL_BOXES.is_file(), reason="DeepLesion's validation boxes are not there")
def test_every_fifth_lesion_has_only_negatives_among_the_default_anchors():
    boxes = np.loadtxt(VAL_BOXES, delimiter=",", skiprows=1, usecols=(2, 3, 4, 5))
    scales = (1, 2 ** (1 / 3), 2 ** (2 / 3))
    levels = [anchor_shapes((size,), scales, (0.5, 1, 2)) for size in (32, 64, 128, 256, 512)]
    sizes = np.full((len(boxes), 2), 512)
    iou = best_grid_iou(boxes, sizes, levels, (8, 16, 32, 64, 128), offset=0.5)
    assert (iou < 0.4).mean() == pytest.approx(0.205, abs=0.001)
    assert (iou < 0.5).mean() == pytest.approx(0.303, abs=0.001)
