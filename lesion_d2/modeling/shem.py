"""Stochastic hard example mining (Jaeger et al., section 4.2), for one and two stages."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor

from .box_losses import box_regression_loss
from .waiting import indices_of


class AnchorCounts(NamedTuple):
    """Number of positive and of negative anchors of each image."""

    positive: list[int]
    negative: list[int]


def count_anchors(labels: Tensor, num_classes: int) -> AnchorCounts:
    """Count the anchors of a batch, with a single GPU synchronization.

    Args:
        labels: (N, R) int, see :func:`shem_loss`.
        num_classes: K.
    """
    is_negative = labels == num_classes
    is_positive = (labels >= 0) & ~is_negative
    return AnchorCounts(*torch.stack([is_positive.sum(dim=1), is_negative.sum(dim=1)]).tolist())


def draw_positives(
    labels: Tensor, counts: AnchorCounts, number: int, *, num_classes: int
) -> tuple[Tensor, AnchorCounts]:
    """Keep at most ``number`` positive anchors per image, by :func:`sample_positives`.

    Args:
        labels: (N, R) int, see :func:`shem_loss`.
        counts: counts of the labels.
        number: maximum number of positive anchors per image.
        num_classes: K.

    Returns:
        The labels, with -1 for the other positive anchors, and their counts.
    """
    is_positive = (labels >= 0) & (labels != num_classes)
    is_drawn = torch.zeros_like(is_positive)
    for drawn, of_image, count in zip(is_drawn, is_positive, counts.positive, strict=True):
        drawn[sample_positives(of_image, number, count=count)] = True
    positive = [min(count, number) for count in counts.positive]
    return labels.masked_fill(is_positive & ~is_drawn, -1), counts._replace(positive=positive)


def shem_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    pool: int,
    softmax: bool,
    counts: AnchorCounts | None = None,
) -> Tensor:
    """Compute the cross entropy with stochastic hard example mining (Jaeger et al., section 4.2).

    The loss includes all positive anchors, and an equal number of negative ones per image (at least
    one), sampled by :func:`sample_hard_negatives`. The paper says that they are mined
    stochastically "according to softmax probability"; their number and the means follow the
    published code: an image's loss is half the mean over its positive anchors plus half the mean
    over its negative ones, and the loss is the mean over images. So an image without lesions, with
    a single sampled anchor, has half the weight of one with thirty positive anchors. Sums are in
    float32 under mixed precision.

    Args:
        logits: (N, R, K), or (N, R, K + 1) with a softmax, where the last channel is the
            background.
        labels: (N, R) int, 0 to K - 1 for lesions, K for background, below 0 for ignored anchors.
        pool: size of the pool of hardest negatives that are sampled from, as a multiple of the
            number of samples.
        softmax: use a softmax over classes; otherwise sum the binary cross entropies of the K
            classes.
        counts: counts of the labels, if known.

    Returns:
        A scalar.
    """
    num_classes = logits.shape[-1] - softmax
    counts = counts or count_anchors(labels, num_classes)
    is_negative = labels == num_classes
    is_positive = (labels >= 0) & ~is_negative
    hardness = _foreground_probability(logits.detach(), softmax).masked_fill(~is_negative, -1)
    is_drawn = torch.zeros_like(is_negative)
    num_drawn = 0
    for i, (number, count) in enumerate(zip(*counts, strict=True)):
        drawn = sample_hard_negatives(hardness[i], max(1, number), pool=pool, count=count)
        is_drawn[i, drawn] = True
        num_drawn += len(drawn)
    positive, negative = (
        _mean_of_chosen(logits, labels, softmax, chosen, number)
        for chosen, number in ((is_positive, sum(counts.positive)), (is_drawn, num_drawn))
    )
    return (positive + negative) / 2


def _mean_of_chosen(
    logits: Tensor, labels: Tensor, softmax: bool, chosen: Tensor, number: int
) -> Tensor:
    """Mean over images of the mean cross entropy of each image's chosen anchors."""
    where = indices_of(chosen, number)
    losses = _cross_entropy(logits[where].float(), labels[where], softmax)
    return mean_per_image(losses, chosen, where)


def batch_shem_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    pool: int,
    negatives: int,
    softmax: bool,
    counts: AnchorCounts | None = None,
) -> Tensor:
    """Compute the cross entropy with hard negatives of the whole batch, as in nnDetection.

    The loss includes all positive anchors, and ``negatives`` times as many negative ones (at least
    for one positive). It is the mean over these anchors; without a softmax, also over the classes.
    Sums are in float32 under mixed precision.

    Args:
        logits, labels, pool, softmax, counts: see :func:`shem_loss`.
        negatives: number of negatives per positive; 2 in nnDetection (a third of samples are
            positive).

    Returns:
        A scalar.
    """
    num_classes = logits.shape[-1] - softmax
    positive, negative = map(sum, counts or count_anchors(labels, num_classes))
    logits, labels = logits.flatten(0, 1), labels.flatten()
    is_negative = labels == num_classes
    is_counted = (labels >= 0) & ~is_negative
    hardness = _foreground_probability(logits.detach(), softmax).masked_fill(~is_negative, -1)
    number = negatives * max(1, positive)
    drawn = sample_hard_negatives(hardness, number, pool=pool, count=negative)
    is_counted[drawn] = True
    where = indices_of(is_counted, positive + len(drawn))
    losses = _cross_entropy(logits[where].float(), labels[where], softmax)
    return losses.sum() / (max(1, len(losses)) * (1 if softmax else num_classes))


def _cross_entropy(logits: Tensor, labels: Tensor, softmax: bool) -> Tensor:
    """Cross entropy (n,) of logits (n, K), or (n, K + 1) with a softmax, and labels 0 to K."""
    if softmax:
        return F.cross_entropy(logits, labels, reduction="none")
    targets = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


def mean_per_image(
    values: Tensor, chosen: Tensor, where: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Compute the mean over images of each image's mean.

    Args:
        values: (n,), values of the chosen elements, in the order of ``chosen.nonzero()``.
        chosen: (N, R) bool, with n True elements; the mean of an image without any is 0.
        where: indices of the True elements, if known.

    Returns:
        A scalar.
    """
    weights = chosen / chosen.sum(dim=1, keepdim=True).clamp(min=1)
    return (values * weights[chosen if where is None else where]).sum() / len(chosen)


def box_loss_per_image(
    anchors: list[Boxes],
    transform: Box2BoxTransform,
    pred_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    is_positive: Tensor,
    *,
    box_reg_loss_type: str,
    smooth_l1_beta: float,
    counts: AnchorCounts | None = None,
) -> Tensor:
    """Compute the box regression loss that belongs to :func:`shem_loss`: the mean over images.

    An image's loss is the mean over its positive anchors and their four deltas (six in 3-D), as in
    the published code; 0 without positive anchors.

    Args:
        anchors: one per FPN level, R in total, with B = 4 or 6 numbers.
        transform: the box transform of the deltas.
        pred_deltas: (N, R_i, B), one per level.
        gt_boxes: (R, B), one per image.
        is_positive: (N, R) bool.
        box_reg_loss_type, smooth_l1_beta: see :func:`box_regression_loss`.
        counts: counts of all anchors, if known.

    Returns:
        A scalar.
    """
    numbers = is_positive.sum(dim=1).tolist() if counts is None else counts.positive
    deltas_of_box = pred_deltas[0].shape[-1] if box_reg_loss_type == "smooth_l1" else 1
    losses = [
        box_regression_loss(
            anchors,
            transform,
            [level[i : i + 1] for level in pred_deltas],
            gt_boxes[i : i + 1],
            is_positive[i : i + 1],
            box_reg_loss_type=box_reg_loss_type,
            smooth_l1_beta=smooth_l1_beta,
            at_most=number,
        )
        / (deltas_of_box * max(1, number))
        for i, number in enumerate(numbers)
    ]
    return torch.stack(losses).mean()


def _foreground_probability(logits: Tensor, softmax: bool) -> Tensor:
    """The highest class probability, from logits (..., K), or (..., K + 1) with a softmax."""
    probabilities = logits.softmax(dim=-1)[..., :-1] if softmax else logits.sigmoid()
    return probabilities.amax(dim=-1)


def sample_hard_negatives(
    hardness: Tensor, number: int, *, pool: int, count: int | None = None
) -> Tensor:
    """Sample negatives from the hardest ones.

    Args:
        hardness: (R,), similarity of an anchor to a lesion; below 0 for anchors that are excluded.
        number: number of negatives to sample; all of them if there are fewer.
        pool: they are sampled uniformly from the hardest ``pool * number``.
        count: number of candidates, if known.

    Returns:
        (n,) int64, distinct indices.
    """
    if count is None:
        count = int((~(hardness < 0)).sum())
    # NaN comes first, so that it is kept and visible in the loss.
    indices = hardness.topk(min(pool * number, len(hardness))).indices[:count]
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]


def sample_positives(is_positive: Tensor, number: int, *, count: int | None = None) -> Tensor:
    """Sample positives uniformly.

    Args:
        is_positive: (R,) bool.
        number: number of positives to sample; all of them if there are fewer.
        count: number of candidates, if known.

    Returns:
        (n,) int64, distinct indices.
    """
    [indices] = indices_of(is_positive, int(is_positive.sum()) if count is None else count)
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]
