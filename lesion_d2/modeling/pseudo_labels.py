"""Pseudo-labels of a teacher for unannotated lesions (Bai et al., 2023, section II)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from torch import Tensor

#: IoU at which a pseudo-label matches a hidden lesion.
HIT_IOU = 0.5


def select_pseudo_labels(
    instances: Instances,
    gt_boxes: Boxes,
    *,
    score_threshold: float = 0.9,
    gt_nms_threshold: float = 0.7,
) -> Instances:
    """Select the detections of an image that become pseudo-labels.

    Detections with an IoU above ``gt_nms_threshold`` with an annotated lesion are removed (the
    paper's GT NMS); of the others, those with a score of at least ``score_threshold`` (tau) are
    kept.

    Args:
        instances: with ``pred_boxes`` and ``scores``, in any order.
        gt_boxes: boxes of the annotated lesions, in the same pixels.
        score_threshold, gt_nms_threshold: 0.9 and 0.7 in the paper.

    Returns:
        The pseudo-labels, in the order of ``instances``.
    """
    # In float32: mixed precision would round the threshold, too.
    instances = instances[instances.scores.float() >= score_threshold]
    if len(instances) == 0 or len(gt_boxes) == 0:
        return instances
    overlaps = pairwise_iou(instances.pred_boxes, gt_boxes.to(instances.pred_boxes.device))
    return instances[overlaps.amax(dim=1) <= gt_nms_threshold]


def best_box_ious(boxes: Tensor, true_boxes: Tensor) -> Tensor:
    """Compute the highest IoU of each box with any of the true boxes.

    Args:
        boxes: (n, 4) XYXY in pixels.
        true_boxes: (m, 4).

    Returns:
        (n,) float32; 0 if m is 0.
    """
    if len(true_boxes) == 0:
        return torch.zeros(len(boxes), device=boxes.device)
    return pairwise_iou(Boxes(boxes), Boxes(true_boxes)).amax(dim=1)


def hits_any(boxes: Boxes, lesions: Sequence[Sequence[float]]) -> Tensor:
    """Return which boxes have an IoU of at least :data:`HIT_IOU` with a lesion.

    Args:
        boxes: n boxes.
        lesions: boxes XYXY, in the same pixels; may be empty.

    Returns:
        (n,) bool.
    """
    known = boxes.tensor.new_tensor(lesions).reshape(-1, 4)
    return best_box_ious(boxes.tensor, known) >= HIT_IOU


def view_detections(
    instances: Instances,
    matrix: Tensor,
    image_size: tuple[int, int],
    *,
    min_share: float | None = None,
) -> Instances:
    """Transform detections from the slice to an augmented image, as the mapper does with lesions.

    After a rotation or shear, a box is the extent of its transformed inscribed ellipse, as for a
    lesion without diameters. Boxes are clipped to the image. Those with their center outside are
    dropped; with ``min_share``, those that are completely outside.

    Args:
        instances: with ``pred_boxes`` in pixels of the slice, ``scores`` and ``pred_classes``.
        matrix: (2, 3), maps points (x, y) of the slice to the image; integers are pixel centers.
        image_size: height and width.
        min_share: for patches, see
            :func:`~lesion_d2.data.transforms.lesion_transforms.transform_lesions`.

    Returns:
        The three fields, in pixels of the image; with ``min_share`` also ``is_cut`` (n,) bool,
        whether less than that share of the box is in the image.
    """
    height, width = image_size
    boxes, matrix = instances.pred_boxes.tensor.float(), matrix.to(instances.pred_boxes.device)
    # Elementwise: in mixed precision, matrix products would round by whole pixels.
    centers = _times((boxes[:, :2] + boxes[:, 2:]) / 2, matrix[:, :2]) + matrix[:, 2]
    halves = _times(((boxes[:, 2:] - boxes[:, :2]) / 2).square(), matrix[:, :2].square()).sqrt()
    end = centers.new_tensor([width, height]) - 0.5  # the outer edges of the last pixels
    inside = ((centers > -0.5) & (centers < end)).all(dim=1)
    viewed = Instances(image_size, scores=instances.scores, pred_classes=instances.pred_classes)
    corners = [(centers + side).clamp(min=-0.5).minimum(end) for side in (-halves, halves)]
    viewed.pred_boxes = Boxes(torch.cat(corners, dim=1))
    if min_share is None:
        return viewed[inside]
    at_most = (2 * halves).minimum(centers.new_tensor([width, height]))
    viewed.is_cut = viewed.pred_boxes.area() < min_share * at_most.prod(dim=1)
    return viewed[viewed.pred_boxes.nonempty()]


def _times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Multiply (n, 2) vectors by a (2, 2) matrix."""
    return (vectors[:, None] * matrix).sum(dim=2)


def ellipse_masks(
    boxes: Tensor, matrix: Tensor, image_size: tuple[int, int], *, margin: float = 5.0
) -> BitMasks:
    """Make masks of pseudo-labels: ellipses inscribed in their boxes, like pseudo-masks.

    The paper's detector has no masks; masks of lesions without diameters are our choice.

    Args:
        boxes: (n, 4) XYXY in pixels of the image.
        matrix: matrix of the image, see :func:`view_detections`.
        image_size: height and width.
        margin: margin of boxes around lesions in pixels of the slice; the half-axes are at least
            half a pixel.
    """
    height, width = image_size
    margins = margin * matrix[:, :2].to(boxes, non_blocking=True).square().sum(dim=1).sqrt()
    centers, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    halves = (halves - margins).clamp(min=0.5)
    x = torch.arange(width, device=boxes.device) - centers[:, :1]
    y = torch.arange(height, device=boxes.device) - centers[:, 1:]
    distance = (y / halves[:, 1:]).square()[:, :, None] + (x / halves[:, :1]).square()[:, None]
    return BitMasks(distance <= 1)


def box_masks(boxes: Tensor, image_size: tuple[int, int]) -> BitMasks:
    """Make masks of regions to ignore without masks: pixels with their center in the box.

    Args:
        boxes: (n, 4) XYXY in pixels of the image.
        image_size: height and width.
    """
    height, width = image_size
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    rows, columns = (y >= y1) & (y <= y2), (x >= x1) & (x <= x2)
    return BitMasks(rows[:, :, None] & columns[:, None])


class PseudoLabelCounts(Counter[str]):
    """Sums of counts of a teacher's pseudo-labels.

    ``images``: number of images; ``pseudo_labels``: those on them; ``score``: sum of their scores.
    On images with known hidden lesions: ``judged``: pseudo-labels; ``hits``: those that match a
    hidden lesion; ``hidden``: hidden lesions; ``found``: those that were found.
    """

    def add(self, pseudo_labels: Instances, hidden_boxes: Boxes | None) -> None:
        """Count an image.

        Args:
            pseudo_labels: those of the image, with ``pred_boxes`` and ``scores``.
            hidden_boxes: known lesions whose annotations were hidden from training, in the same
                pixels; None if unknown.
        """
        score = pseudo_labels.scores.double().sum().item()
        self.update(images=1, pseudo_labels=len(pseudo_labels), score=score)
        if hidden_boxes is not None:
            device = pseudo_labels.pred_boxes.device
            is_same = pairwise_iou(pseudo_labels.pred_boxes, hidden_boxes.to(device)) >= HIT_IOU
            hits, found = (int(is_same.any(dim=d).sum()) for d in (1, 0))
            self.update(judged=len(pseudo_labels), hits=hits, hidden=len(hidden_boxes), found=found)


def summarize_pseudo_labels(counts: Mapping[str, float]) -> dict[str, float]:
    """Compute the metrics to log from :class:`PseudoLabelCounts`, without undefined ones.

    Returns:
        ``pseudo_labels_per_image``, their ``mean_score``, and ``precision`` and ``recall`` of the
        hidden lesions.
    """
    shares = {
        "pseudo_labels_per_image": ("pseudo_labels", "images"),
        "mean_score": ("score", "pseudo_labels"),
        "precision": ("hits", "judged"),
        "recall": ("found", "hidden"),
    }
    return {
        name: counts[part] / counts[whole]
        for name, (part, whole) in shares.items()
        if counts.get(whole, 0) > 0
    }
