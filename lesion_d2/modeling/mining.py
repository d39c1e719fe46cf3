"""Lesions that nobody annotated, among a teacher's detections (Bai et al., 2023, section II)."""

from collections.abc import Mapping

import torch
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from torch import Tensor

#: IoU from which on a mined lesion is a hidden one.
HIT_IOU = 0.5


def mine_lesions(
    instances: Instances,
    gt_boxes: Boxes,
    *,
    score_threshold: float = 0.9,
    gt_nms_threshold: float = 0.7,
) -> Instances:
    """Choose the detections of an image that training takes for lesions.

    Those with an IoU above ``gt_nms_threshold`` with an annotated lesion are that lesion (the
    paper's GT NMS); of the others those with a score of at least ``score_threshold`` (tau) are
    mined.

    Args:
        instances: with ``pred_boxes`` and ``scores``, in any order.
        gt_boxes: of the annotated lesions, in the same pixels.
        score_threshold, gt_nms_threshold: the paper's are 0.9 and 0.7.

    Returns:
        The mined ones, in their order.
    """
    instances = instances[instances.scores >= score_threshold]
    if len(instances) == 0 or len(gt_boxes) == 0:
        return instances
    overlaps = pairwise_iou(instances.pred_boxes, gt_boxes.to(instances.pred_boxes.device))
    return instances[overlaps.amax(dim=1) <= gt_nms_threshold]


def view_detections(instances: Instances, matrix: Tensor, image_size: tuple[int, int]) -> Instances:
    """Bring detections from the slice to an augmented image, as the mapper brings lesions there.

    After a rotation or shear a box is the extent of its inscribed ellipse's image, as that of a
    lesion without diameters. Boxes are cut at the image's border, and those whose center lies
    outside are dropped.

    Args:
        instances: with ``pred_boxes`` in pixels of the slice, ``scores`` and ``pred_classes``.
        matrix: (2, 3), maps points (x, y) of the slice to the image; whole numbers are pixel
            centers.
        image_size: height and width.

    Returns:
        The three fields, in pixels of the image.
    """
    height, width = image_size
    boxes = instances.pred_boxes.tensor
    linear, offset = matrix[:, :2].to(boxes), matrix[:, 2].to(boxes)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 @ linear.T + offset
    halves = ((boxes[:, 2:] - boxes[:, :2]) / 2).square() @ linear.square().T
    halves = halves.sqrt()
    inside = ((centers > 0) & (centers < centers.new_tensor([width, height]))).all(dim=1)
    viewed = Instances(image_size, scores=instances.scores, pred_classes=instances.pred_classes)
    viewed.pred_boxes = Boxes(torch.cat([centers - halves, centers + halves], dim=1))
    viewed.pred_boxes.clip(image_size)
    return viewed[inside]


def ellipse_masks(
    boxes: Tensor, matrix: Tensor, image_size: tuple[int, int], *, margin: float = 5.0
) -> BitMasks:
    """Masks of mined lesions, in the manner of pseudo-masks: ellipses inscribed in their boxes.

    The paper's detector learns no masks; that of a lesion which nobody measured is ours.

    Args:
        boxes: (n, 4) XYXY in pixels of the image.
        matrix: of the image, see :func:`view_detections`.
        image_size: height and width.
        margin: pixels of the slice by which boxes surround lesions; half a pixel of the lesion is
            always left.
    """
    height, width = image_size
    margins = margin * matrix[:, :2].to(boxes).square().sum(dim=1).sqrt()
    centers, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    halves = (halves - margins).clamp(min=0.5)
    x = torch.arange(width, device=boxes.device) - centers[:, :1]
    y = torch.arange(height, device=boxes.device) - centers[:, 1:]
    distance = (y / halves[:, 1:]).square()[:, :, None] + (x / halves[:, :1]).square()[:, None]
    return BitMasks(distance <= 1)


class MiningCounts:
    """What a teacher mined since the last :meth:`take`, of this process.

    Sums stay on their device, so that counting waits for no GPU.
    """

    _NAMES = ("images", "mined", "score", "judged", "hits", "hidden", "found")

    def __init__(self):
        self._sums: Tensor | None = None

    def add(self, mined: Instances, hidden_boxes: Boxes | None) -> None:
        """Count an image.

        Args:
            mined: with ``pred_boxes`` and ``scores``.
            hidden_boxes: lesions that are known but were hidden from training, in the same pixels;
                None where nobody knows.
        """
        scores = mined.scores.double()
        sums = [1, len(scores), scores.sum(), 0, 0, 0, 0]
        if hidden_boxes is not None:
            device = mined.pred_boxes.device
            is_same = pairwise_iou(mined.pred_boxes, hidden_boxes.to(device)) >= HIT_IOU
            hits, found = is_same.any(dim=1).sum(), is_same.any(dim=0).sum()
            sums[3:] = [len(scores), hits, len(hidden_boxes), found]
        sums = torch.stack([torch.as_tensor(v, device=scores.device).double() for v in sums])
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> dict[str, float]:
        """The sums, which begin anew.

        Returns:
            ``images`` looked at; lesions ``mined`` on them, and the sum of their ``score``s. On
            images with hidden lesions known: mined lesions (``judged``) and those of them that are
            hidden ones (``hits``), ``hidden`` lesions and those of them that were ``found``.
        """
        sums = [0.0] * len(self._NAMES) if self._sums is None else self._sums.tolist()
        self._sums = None
        return dict(zip(self._NAMES, sums, strict=True))


def summarize_mining(counts: Mapping[str, float]) -> dict[str, float]:
    """Numbers to log of :meth:`MiningCounts.take`; without those that are not defined.

    Returns:
        ``mined_per_image``, their ``mean_score``, and ``precision`` and ``recall`` of the hidden
        lesions.
    """
    shares = {
        "mined_per_image": ("mined", "images"),
        "mean_score": ("score", "mined"),
        "precision": ("hits", "judged"),
        "recall": ("found", "hidden"),
    }
    return {
        name: counts[part] / counts[whole]
        for name, (part, whole) in shares.items()
        if counts[whole] > 0
    }
