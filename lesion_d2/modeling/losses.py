import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -1  # label of pixels that no loss looks at: the padding of a batch


def soft_dice(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice of each foreground class over the whole batch as one pseudo-volume.

    The sum of Jaeger et al., equation (1), over the pixels of all images: a class that one image
    lacks still counts its false positives there. A class without a pixel in the batch and without
    any probability has a Dice of 1.

    Args:
        probabilities: (N, K + 1, H, W), a softmax over background (channel 0) and K classes.
        labels: (N, H, W) int, 0 for background, k for class k - 1, ``IGNORE`` for padding.

    Returns:
        (K,) in [0, 1].
    """
    valid = labels != IGNORE
    classes = torch.arange(1, probabilities.shape[1], device=labels.device)
    truth = (labels[:, None] == classes[:, None, None]).to(probabilities.dtype)
    foreground = probabilities[:, 1:] * valid[:, None]
    overlap = (foreground * truth).sum(dim=(0, 2, 3))
    total = foreground.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    smooth = 1e-6  # pixels
    return (2 * overlap + smooth) / (total + smooth)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Pixel-wise cross entropy plus soft Dice (Jaeger et al., section 3.1, equation (1)).

    The paper's loss is CE - mean Dice; 1 is added, so that a perfect prediction has loss 0. Its
    classes K are taken as the foreground classes: with background among them, lesions of some
    hundred pixels would hardly move the mean. Sums are taken in float32 under mixed precision.

    Args:
        logits: (N, K + 1, H, W), channel 0 the background.
        labels: (N, H, W) int, 0 for background, k for class k - 1, ``IGNORE`` for padding.

    Returns:
        A scalar.
    """
    logits = logits.float()
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE)
    return cross_entropy + 1 - soft_dice(logits.softmax(dim=1), labels).mean()


def focal_segmentation_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.5, gamma: float = 2.0
) -> Tensor:
    """Focal loss on the pixel-wise cross entropy (Zlocha et al., section 2.3).

    The sum over pixels of -a (1 - p)^gamma log p, where p is the softmax probability of the
    pixel's label and a is ``alpha`` for lesions and 1 - ``alpha`` for background, divided by the
    number of lesion pixels, or by a thousandth of all pixels where there are fewer: a batch that
    happens to have no lesion would otherwise outweigh a hundred others.

    The paper says no more than the name. This is Lin et al.'s loss with pixels in place of anchors,
    but for their weight of 0.25: at 0.5 a pixel that is as likely lesion as not has probability
    0.5, where masks begin. Sums are taken in float32 under mixed precision.

    Args:
        logits: (N, K + 1, H, W), channel 0 the background.
        labels: (N, H, W) int, 0 for background, k for class k - 1, ``IGNORE`` for padding.
        alpha: weight of lesion pixels, in [0, 1].
        gamma: 0 for the plain cross entropy.

    Returns:
        A scalar.
    """
    cross_entropy = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    is_lesion = labels > 0
    normalizer = torch.maximum(is_lesion.sum(), 1e-3 * (labels != IGNORE).sum()).clamp(min=1)
    return _focal(cross_entropy, is_lesion, alpha, gamma).sum() / normalizer


def _focal(cross_entropy: Tensor, is_lesion: Tensor, alpha: float, gamma: float) -> Tensor:
    # Away from 0, where a power below 1 has no gradient.
    distance = (-torch.expm1(-cross_entropy)).clamp(min=1e-8)
    return torch.where(is_lesion, alpha, 1 - alpha) * distance**gamma * cross_entropy


def anchor_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of anchors whose classes exclude each other (Jaeger et al., section 3.1).

    Lin et al.'s loss with the softmax probability of the anchor's class in place of a sigmoid.

    Args:
        logits: (N, R, K + 1), the last one the background's.
        labels: (N, R) int, 0 to K - 1 for lesions, K for background, below 0 for anchors that do
            not count.
        alpha: weight of lesions, in [0, 1]; background has 1 - alpha.
        gamma: 0 for the plain cross entropy.

    Returns:
        A scalar, the sum over anchors.
    """
    counts = labels >= 0
    labels = labels[counts]
    cross_entropy = F.cross_entropy(logits[counts].float(), labels, reduction="none")
    return _focal(cross_entropy, labels < logits.shape[-1] - 1, alpha, gamma).sum()


def shem_loss(logits: Tensor, labels: Tensor, *, pool: int, softmax: bool) -> Tensor:
    """Cross entropy with stochastic hard example mining (Jaeger et al., section 4.2).

    All positive anchors count, and of each image as many negative ones (one at least), drawn by
    :func:`sample_hard_negatives`. The paper says that they are mined stochastically "according to
    softmax probability"; their number, the pool and the mean over all drawn anchors of the batch
    are ours. Sums are taken in float32 under mixed precision.

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
    chosen = (labels >= 0) & ~is_negative
    num_positive = chosen.sum(dim=1).tolist()
    hardness = _foreground_probability(logits.detach(), softmax).masked_fill(~is_negative, -1)
    for i, number in enumerate(num_positive):
        chosen[i, sample_hard_negatives(hardness[i], max(1, number), pool=pool)] = True
    logits, labels = logits[chosen].float(), labels[chosen]
    if softmax:
        loss = F.cross_entropy(logits, labels, reduction="sum")
    else:
        targets = F.one_hot(labels, num_classes + 1)[:, :-1].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return loss / max(1, len(labels))


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
