"""Pieces of detectors in 3-D against MONAI's."""

import math
from types import SimpleNamespace

import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.data.volumetric.warp import VolumeWarp
from lesion_d2.inference.tiles import make_tiles
from lesion_d2.layers import batched_nms, giou_loss, nms_3d
from lesion_d2.modeling.atss import ATSSMatcher
from lesion_d2.modeling.volumetric import AnchorGenerator3D, Box2BoxTransform3D
from lesion_d2.structures import Boxes3D, pairwise_giou, pairwise_iou

import numpy as np
import pytest
import torch
from made_up_patches import tiny_model

MODULES = (
    "monai.data.box_utils",
    "monai.apps.detection.utils.box_coder",
    "monai.apps.detection.utils.box_selector",
    "monai.apps.detection.utils.anchor_utils",
    "monai.data.utils",
    "monai.apps.detection.utils.ATSS_matcher",
    "monai.transforms",
)


@pytest.fixture(scope="module")
def monai() -> SimpleNamespace:
    """Its modules by their last names: a process that runs none of these tests imports none."""
    return SimpleNamespace(**{n.rpartition(".")[2]: pytest.importorskip(n) for n in MODULES})


def random_boxes(number, seed, extent=30.0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(number, 3, generator=generator) * extent
    return torch.cat([low, low + 1 + torch.rand(number, 3, generator=generator) * 9], dim=1)


def test_overlaps_are_monais(monai):
    one, two = random_boxes(40, 0), random_boxes(50, 1)
    iou, giou = (f(Boxes3D(one), Boxes3D(two)) for f in (pairwise_iou, pairwise_giou))
    torch.testing.assert_close(iou, monai.box_utils.box_iou(one, two))
    torch.testing.assert_close(giou, monai.box_utils.box_giou(one, two))
    pairs = monai.box_utils.box_pair_giou(one, two[:40])
    torch.testing.assert_close(giou_loss(one, two[:40]), 1 - pairs)
    assert (iou > 0).any()


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_nms_is_monais(monai, threshold):
    boxes = random_boxes(150, 0, extent=15.0)
    generator = torch.Generator().manual_seed(1)
    scores = (torch.rand(150, generator=generator) * 50).round() / 50
    classes = torch.randint(0, 3, (150,), generator=generator)
    kept = nms_3d(boxes, scores, threshold)
    expected = monai.box_utils.non_max_suppression(boxes, scores, threshold)
    assert kept.tolist() == expected.tolist() and len(kept) < 150
    grouped = batched_nms(boxes, scores, classes, threshold)
    expected = monai.box_utils.batched_nms(boxes, scores, classes, threshold)
    assert sorted(grouped.tolist()) == sorted(expected.tolist())


def test_box_coding_is_monais(monai):
    weights = (10.0, 10.0, 10.0, 5.0, 5.0, 5.0)
    ours, theirs = Box2BoxTransform3D(weights), monai.box_coder.BoxCoder(weights)
    source, target = random_boxes(40, 0), random_boxes(40, 1)
    deltas = theirs.encode_single(target, source)
    torch.testing.assert_close(ours.get_deltas(source, target), deltas)
    boxes = theirs.decode_single(deltas, source)
    torch.testing.assert_close(ours.apply_deltas(deltas, source), boxes, rtol=1e-5, atol=1e-4)


def test_anchors_are_monais_half_a_stride_apart(monai):
    # Theirs have one set of shapes for all levels, x in front, and centers half a stride inward.
    features = [torch.zeros(1, 1, 4, 6, 5), torch.zeros(1, 1, 2, 3, 3)]
    ours = AnchorGenerator3D(
        sizes=[[8.0]], depths=[[4.0]], aspect_ratios=[[1.0]], strides=[(2, 4, 4), (4, 8, 8)]
    )(features)
    theirs = monai.anchor_utils.AnchorGeneratorWithAnchorShape(
        feature_map_scales=(1, 1), base_anchor_shapes=((8, 8, 4),), indexing="ij"
    )
    theirs.cell_anchors = [theirs.cell_anchors[0]] * 2
    grids = [list(feature.shape[:1:-1]) for feature in features]
    expected = theirs.grid_anchors(grids, [[4, 4, 2], [8, 8, 4]])
    for level, boxes, half in zip(ours, expected, ((2, 2, 1), (4, 4, 2)), strict=True):
        # Theirs run through x slowest.
        moved = boxes - torch.tensor(half * 2)
        order = sorted(range(len(moved)), key=lambda i: moved[i, [2, 1, 0]].tolist())
        assert torch.equal(level.tensor, moved[order])


@pytest.mark.parametrize("center_inside", [True, False])
def test_atss_is_monais(monai, center_inside):
    anchors = AnchorGenerator3D(
        sizes=[[6.0, 8.0], [12.0, 16.0]],
        depths=[[4.0, 6.0], [8.0, 12.0]],
        aspect_ratios=[[1.0]],
        strides=[(2, 4, 4), (4, 8, 8)],
    )([torch.zeros(1, 1, 16, 8, 8), torch.zeros(1, 1, 8, 4, 4)])
    boxes = random_boxes(6, 3, extent=22.0)
    matches, labels = ATSSMatcher(4, center_inside)(Boxes3D(boxes), anchors, [2, 2])
    theirs = monai.ATSS_matcher.ATSSMatcher(num_candidates=4, center_in_gt=center_inside)
    every = Boxes3D.cat(anchors).tensor
    _, expected = theirs(boxes, every, [len(level) // 2 for level in anchors], 2)
    assert matches.masked_fill(labels == 0, -1).tolist() == expected.tolist()
    assert labels.sum() >= 6


def test_the_warp_of_patches_is_monais(monai):
    z, y, x = np.indices((12, 30, 30))
    volume = 800 * np.sin(x / 7) * np.cos(y / 9) + 300 * np.sin(z / 4)
    angle, scale = 0.5, 1.25  # theirs maps the patch to the volume
    affine = monai.transforms.Affine(
        (angle, 0, 0), scale_params=(scale,) * 3, padding_mode="border", image_only=True
    )
    expected = np.asarray(affine(torch.from_numpy(volume.astype(np.float32))[None]))[0]
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.column_stack([turn / scale, 15 - turn / scale @ [15, 15]])
    warp = VolumeWarp(volume.shape, matrix, 1 / scale, 6 - 6 / scale)
    found = warp.apply_image(volume.astype(np.int16), (0, 0, 0), volume.shape, 0)
    # Ours are whole HU, and places to 1/32 pixel.
    inside = np.s_[3:-3, 8:-8, 8:-8]
    assert expected[inside].std() > 100 and np.abs(found - expected)[inside].max() < 6


def test_detections_of_a_patch_are_monais(monai):
    """From the scores and boxes of two levels: the best of each, then NMS of each class."""
    limits = {"score_thresh": 0.3, "topk_candidates_per_level": 80, "nms_thresh": 0.1}
    levels = [random_boxes(number, seed) for seed, number in enumerate((150, 60))]
    generator = torch.Generator().manual_seed(2)
    scores = [torch.rand(len(level), 2, generator=generator) for level in levels]
    select = monai.box_selector.BoxSelector(apply_sigmoid=False, detections_per_img=40, **limits)
    wanted = select.select_boxes_per_image(levels, scores, (50, 50, 50))
    model = tiny_model(
        "RetinaNet3D",
        *("MODEL.RETINANET.SCORE_THRESH_TEST", limits["score_thresh"]),
        *("MODEL.RETINANET.TOPK_CANDIDATES_TEST", limits["topk_candidates_per_level"]),
        *("MODEL.RETINANET.NMS_THRESH_TEST", limits["nms_thresh"]),
        *("TEST.DETECTIONS_PER_IMAGE", 40),
    )
    found = model.inference_single_image(
        list(map(Boxes3D, levels)), scores, list(map(torch.zeros_like, levels)), (50, 50, 50)
    )
    assert len(found) == 40

    fields = (found.pred_boxes.tensor, found.scores, found.pred_classes)
    for ours, theirs in zip(fields, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(64, 192, 96), (61, 100, 97), (20, 96, 65), (300, 512, 512)])
def test_tiles_are_monais_but_evenly_spaced(monai, size):
    """MONAI's last tile of an axis is moved back to the edge, and overlaps more than the others."""
    tile, overlap = (32, 96, 64), 0.5
    ours = make_tiles(size, tile, overlap)
    sides = tuple(min(a, b) for a, b in zip(size, tile, strict=True))
    steps = tuple(int(side * (1 - overlap)) for side in tile)
    theirs = monai.utils.dense_patch_slices(size, sides, steps)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == tuple(s.stop - s.start for s in other)
        for start, part, side, length, step in zip(
            one.start, other, sides, size, steps, strict=True
        ):
            is_even = (length - side) % step == 0
            assert start == part.start if is_even else 0 <= part.start - start < step
