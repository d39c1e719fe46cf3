from lesion_d2.data.transforms.lesion_transforms import lesion_outline
from lesion_d2.modeling.pseudo_labels import (
    PseudoLabelCounts,
    box_masks,
    ellipse_masks,
    hits_any,
    select_pseudo_labels,
    summarize_pseudo_labels,
    view_detections,
)

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from slow_boxes import slow_iou

SIZE = (60, 80)  # height, width


def _detections(boxes, scores=None) -> Instances:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores = torch.full((len(boxes),), 0.95) if scores is None else torch.tensor(scores)
    classes = torch.arange(len(boxes))
    return Instances(SIZE, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def _random_boxes(rng, number) -> np.ndarray:
    corners = rng.uniform(0, 20, (number, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 20, (number, 2))], axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_pseudo_labels_are_confident_detections_that_are_no_annotated_lesion(seed):
    rng = np.random.default_rng(seed)
    boxes, truth = _random_boxes(rng, 40), _random_boxes(rng, int(rng.integers(0, 6)))
    scores = rng.choice([0.1, 0.5, 0.6, 0.9], 40).astype(np.float32)
    found = select_pseudo_labels(
        _detections(boxes, scores),
        Boxes(torch.tensor(truth, dtype=torch.float32).reshape(-1, 4)),
        score_threshold=0.6,
        gt_nms_threshold=0.3,
    )
    expected = [
        i
        for i in range(40)
        if scores[i] >= np.float32(0.6) and all(slow_iou(boxes[i], b) <= 0.3 for b in truth)
    ]
    assert found.pred_classes.tolist() == expected
    assert 0 < len(expected) < 40


def test_a_detection_at_the_gt_nms_s_threshold_is_kept_and_one_above_is_not():
    truth = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    # 7 and 8 of the 10 columns: IoU 0.7 and 0.8.
    found = _detections([[0, 0, 7, 10], [0, 0, 8, 10]])
    assert select_pseudo_labels(found, truth, gt_nms_threshold=0.7).pred_classes.tolist() == [0]


def _matrix(angle=0.0, scale=(1.0, 1.0), shift=(0.0, 0.0), mirror=1) -> torch.Tensor:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = np.diag([mirror * scale[0], scale[1]]) @ turn
    return torch.tensor(np.column_stack([linear, shift]), dtype=torch.float32)


@pytest.mark.parametrize(
    "matrix",
    [
        _matrix(scale=(0.8, 1.2)),
        _matrix(mirror=-1, shift=(79.0, 0.0)),
        _matrix(angle=0.3, scale=(1.1, 0.9), shift=(5.0, -8.0)),
    ],
)
def test_boxes_are_mapped_as_the_outlines_of_lesions_are(matrix):
    boxes = [[10.0, 20.0, 30.0, 28.0], [25.0, 12.0, 35.0, 40.0]]
    viewed = view_detections(_detections(boxes), matrix, (100, 100))
    for box, found in zip(boxes, viewed.pred_boxes.tensor.numpy(), strict=True):
        outline = lesion_outline({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS})
        points = outline @ matrix[:, :2].numpy().T + matrix[:, 2].numpy()
        expected = [*points.min(axis=0), *points.max(axis=0)]
        # The outline is made of whole degrees' points, whose extent is a bit smaller.
        assert found == pytest.approx(expected, abs=0.02)


def test_boxes_are_cut_at_the_border_and_dropped_with_their_center():
    boxes = [[70, 10, 84, 20], [74, 10, 90, 20], [-9, 10, 7, 20]]
    viewed = view_detections(_detections(boxes), _matrix(), SIZE)
    assert viewed.pred_boxes.tensor.tolist() == [[70, 10, 79.5, 20]]
    assert viewed.pred_classes.tolist() == [0] and viewed.image_size == SIZE


def test_what_a_patch_shows_too_little_of_is_cut():
    boxes = [[-4, 10, 6, 20], [-8, 10, 4, 20], [-9, 10, -1, 20], [70, 50, 88, 68], [20, 20, 30, 30]]
    viewed = view_detections(_detections(boxes), _matrix(), SIZE, min_share=0.5)
    # Of the fourth 9.5 of 18 columns and rows are left.
    assert viewed.pred_classes.tolist() == [0, 1, 3, 4]
    assert viewed.is_cut.tolist() == [False, True, True, False]
    assert viewed.pred_boxes.tensor[1].tolist() == [-0.5, 10, 4, 20]
    large = [[-40, -30, 120, 90], [-40, 31, 120, 99]]
    viewed = view_detections(_detections(large), _matrix(), SIZE, min_share=0.5)
    assert viewed.is_cut.tolist() == [False, True]
    [mask] = box_masks(torch.tensor([[-0.5, 10, 4, 12.4]]), SIZE).tensor
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[10:13, :5] = True
    assert torch.equal(mask, expected)


def test_masks_are_ellipses_in_their_boxes_less_the_margin_of_the_slice():
    matrix = _matrix(scale=(2.0, 0.5))
    boxes = torch.tensor([[10.0, 10.0, 50.0, 40.0], [60.0, 5.0, 64.0, 8.0]])
    masks = ellipse_masks(boxes, matrix, SIZE, margin=3.0).tensor.numpy()
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        half_x = max((x2 - x1) / 2 - 6.0, 0.5)
        half_y = max((y2 - y1) / 2 - 1.5, 0.5)
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                distance = ((x - (x1 + x2) / 2) / half_x) ** 2 + ((y - (y1 + y2) / 2) / half_y) ** 2
                assert mask[y, x] == (distance <= 1), (x, y)
    assert masks[0].sum() > 300 and masks[1].sum() > 0


def test_counts_are_of_all_images():
    counts = PseudoLabelCounts()
    hidden = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [40.0, 40.0, 50.0, 50.0]]))
    counts.add(_detections([[0, 0, 10, 9], [20, 20, 30, 30]], [0.9, 1.0]), hidden)
    counts.add(_detections([]), Boxes(torch.zeros(0, 4)))
    counts.add(_detections([[5, 5, 9, 9]], [0.95]), None)  # nobody knows what it is
    assert summarize_pseudo_labels(counts) == pytest.approx(
        {"pseudo_labels_per_image": 1.0, "mean_score": 0.95, "precision": 0.5, "recall": 0.5}
    )
    assert summarize_pseudo_labels(PseudoLabelCounts()) == {}
    nothing = PseudoLabelCounts()
    nothing.add(_detections([]), None)
    assert summarize_pseudo_labels(nothing) == {"pseudo_labels_per_image": 0.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_changes_no_box(dtype):
    matrix = _matrix(angle=0.3, scale=(1.1, 0.9), shift=(5.0, -8.0))
    found = _detections([[10.3, 20.1, 600.7, 500.2], [301.7, 212.9, 311.3, 221.4]])
    expected = view_detections(found, matrix, (900, 900)).pred_boxes.tensor
    with torch.autocast("cpu", dtype=dtype):
        viewed = view_detections(found, matrix, (900, 900)).pred_boxes.tensor
    assert torch.equal(viewed, expected) and len(expected) == 2


def test_a_score_that_mixed_precision_rounded_is_compared_as_it_is():
    found = _detections([[0, 0, 10, 10], [20, 20, 30, 30]])
    found.scores = torch.tensor([0.8984, 0.9023]).bfloat16()  # 0.9 itself would become 0.8984
    found = select_pseudo_labels(found, Boxes(torch.zeros(0, 4)), score_threshold=0.9)
    assert found.pred_classes.tolist() == [1]


def test_only_lesions_of_the_volume_hit_it():
    boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 4.0], [50.0, 0, 60, 10]]))
    lesions = [[0, 0, 10, 10], [20, 20, 30, 30]]
    assert hits_any(boxes, lesions).tolist() == [True, False, False]
    assert hits_any(boxes, []).tolist() == [False] * 3
