"""Stochastic hard example mining (Jaeger et al., section 4.2), in one stage and in two."""

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from torch import Tensor

from .box_losses import box_regression_loss


def shem_loss(logits: Tensor, labels: Tensor, *, pool: int, softmax: bool) -> Tensor:
    """Cross entropy with stochastic hard example mining (Jaeger et al., section 4.2).

    All positive anchors count, and of each image as many negative ones (one at least), drawn by
    :func:`sample_hard_negatives`. The paper says that they are mined stochastically "according to
    softmax probability"; their number, and the means, are those of its authors' code: an image's
    loss is half the mean over its positive anchors plus half the mean over its negative ones, and
    the loss is the mean over images. So an image without a lesion, of which a single anchor is
    drawn, has half the weight of one with thirty positive anchors. Sums are taken in float32 under
    mixed precision.

    Args:
        logits: (N, R, K), or (N, R, K + 1) with a softmax, the last one the background's.
        labels: (N, R) int, 0 to K - 1 for lesions, K for background, below 0 for anchors that do
            not count.
        pool: the hardest so many times the number of drawn negatives are drawn from.
        softmax: whether classes exclude each other; otherwise the binary cross entropies of the K
            classes are summed.

    Returns:
        A scalar.
    """
    num_classes = logits.shape[-1] - softmax
    is_negative = labels == num_classes
    is_positive = (labels >= 0) & ~is_negative
    hardness = _foreground_probability(logits.detach(), softmax).masked_fill(~is_negative, -1)
    is_drawn = torch.zeros_like(is_negative)
    for i, number in enumerate(is_positive.sum(dim=1).tolist()):
        is_drawn[i, sample_hard_negatives(hardness[i], max(1, number), pool=pool)] = True
    positive, negative = (
        mean_per_image(_cross_entropy(logits[chosen].float(), labels[chosen], softmax), chosen)
        for chosen in (is_positive, is_drawn)
    )
    return (positive + negative) / 2


def batch_shem_loss(
    logits: Tensor, labels: Tensor, *, pool: int, negatives: int, softmax: bool
) -> Tensor:
    """Cross entropy with hard negatives of the whole batch, as in nnDetection.

    All positive anchors count, and ``negatives`` times as many negative ones (as if there were one
    positive, where there is none). The loss is the mean over all that count; without a softmax also
    over the classes. Sums are taken in float32 under mixed precision.

    Args:
        logits, labels, pool, softmax: see :func:`shem_loss`.
        negatives: for each positive. nnDetection's share of positives, a third, is 2.

    Returns:
        A scalar.
    """
    num_classes = logits.shape[-1] - softmax
    logits, labels = logits.flatten(0, 1), labels.flatten()
    is_negative = labels == num_classes
    counts = (labels >= 0) & ~is_negative
    hardness = _foreground_probability(logits.detach(), softmax).masked_fill(~is_negative, -1)
    number = negatives * max(1, int(counts.sum()))
    counts[sample_hard_negatives(hardness, number, pool=pool)] = True
    losses = _cross_entropy(logits[counts].float(), labels[counts], softmax)
    return losses.sum() / (max(1, len(losses)) * (1 if softmax else num_classes))


def _cross_entropy(logits: Tensor, labels: Tensor, softmax: bool) -> Tensor:
    """(n,) of logits (n, K), or (n, K + 1) with a softmax, and labels 0 to K."""
    if softmax:
        return F.cross_entropy(logits, labels, reduction="none")
    targets = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


def mean_per_image(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean over images of each image's mean.

    Args:
        values: (n,), of what is chosen, in the order of ``chosen.nonzero()``.
        chosen: (N, R) bool, with n True ones; an image without any has a mean of 0.

    Returns:
        A scalar.
    """
    weights = chosen / chosen.sum(dim=1, keepdim=True).clamp(min=1)
    return (values * weights[chosen]).sum() / len(chosen)


def box_loss_per_image(
    anchors: list[Boxes],
    transform: Box2BoxTransform,
    pred_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    is_positive: Tensor,
    *,
    box_reg_loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """The box regression loss that goes with :func:`shem_loss`: the mean over images.

    An image's loss is the mean over its positive anchors, and over the four deltas of each (six in
    3-D), as in the authors' code; 0 without a positive one.

    Args:
        anchors: one an FPN level, R in all, of B = 4 or 6 numbers.
        transform: what the deltas are of.
        pred_deltas: (N, R_i, B), one a level.
        gt_boxes: (R, B), one an image.
        is_positive: (N, R) bool.
        box_reg_loss_type, smooth_l1_beta: see :func:`box_regression_loss`.

    Returns:
        A scalar.
    """
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
        )
        / (deltas_of_box * max(1, number))
        for i, number in enumerate(is_positive.sum(dim=1).tolist())
    ]
    return torch.stack(losses).mean()


def _foreground_probability(logits: Tensor, softmax: bool) -> Tensor:
    """The highest probability of a class, of logits (..., K) or with a softmax (..., K + 1)."""
    probabilities = logits.softmax(dim=-1)[..., :-1] if softmax else logits.sigmoid()
    return probabilities.amax(dim=-1)


def sample_hard_negatives(hardness: Tensor, number: int, *, pool: int) -> Tensor:
    """Draw negatives at random from the hardest ones.

    Args:
        hardness: (R,), how much an anchor looks like a lesion; below 0 for those that are none to
            draw.
        number: of negatives to draw; all there are where there are fewer.
        pool: they are drawn from the hardest ``pool * number``, each with the same probability.

    Returns:
        (n,) int64, different indices.
    """
    values, indices = hardness.topk(min(pool * number, len(hardness)))
    indices = indices[~(values < 0)]  # not a number stays, and shows in the loss
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]


def sample_positives(is_positive: Tensor, number: int) -> Tensor:
    """Draw positives at random.

    Args:
        is_positive: (R,) bool.
        number: of positives to draw; all there are where there are fewer.

    Returns:
        (n,) int64, different indices.
    """
    indices = is_positive.nonzero()[:, 0]
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]
