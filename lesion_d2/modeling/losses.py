"""Losses of segmentation and classification."""

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor

from .waiting import rows_that_count, sum_of_rows

IGNORE = -1  # label of pixels or voxels that losses ignore, such as the padding of a batch


def soft_dice(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Compute the soft Dice of each foreground class over the whole batch as one pseudo-volume.

    The sums of Jaeger et al., equation (1), are over the pixels of all images, so false positives
    of a class count on images without it, too. A class without pixels in the batch and with
    probability 0 has a Dice of 1.

    Args:
        probabilities: (N, K + 1, H, W), or (N, K + 1, D, H, W) for volumes, a softmax over
            background (channel 0) and K classes.
        labels: (N, H, W) or (N, D, H, W) int, 0 for background, k for class k - 1, ``IGNORE`` for
            padding.

    Returns:
        (K,) in [0, 1].
    """
    valid = labels != IGNORE
    classes = torch.arange(1, probabilities.shape[1], device=labels.device)
    classes = classes.view(-1, *[1] * (labels.dim() - 1))
    truth = (labels[:, None] == classes).to(probabilities.dtype)
    foreground = probabilities[:, 1:] * valid[:, None]
    pixels = (0, *range(2, probabilities.dim()))
    overlap = (foreground * truth).sum(dim=pixels)
    total = foreground.sum(dim=pixels) + truth.sum(dim=pixels)
    smooth = 1e-6  # pixels
    return (2 * overlap + smooth) / (total + smooth)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute pixel-wise cross entropy plus soft Dice (Jaeger et al., section 3.1, equation (1)).

    The paper's loss is CE - mean Dice; we add 1, so that a perfect prediction has loss 0. We
    average over foreground classes: with background included, lesions of some hundred pixels would
    hardly change the mean. Sums are in float32 under mixed precision.

    Args:
        logits: (N, K + 1, H, W) or (N, K + 1, D, H, W), channel 0 is the background.
        labels: (N, H, W) or (N, D, H, W) int, 0 for background, k for class k - 1, ``IGNORE`` for
            padding.

    Returns:
        A scalar.
    """
    logits = logits.float()
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE)
    return cross_entropy + 1 - soft_dice(logits.softmax(dim=1), labels).mean()


def focal_segmentation_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.5, gamma: float = 2.0
) -> Tensor:
    """Compute the focal loss of the pixel-wise cross entropy (Zlocha et al., section 2.3).

    The sum over pixels of -a (1 - p)^gamma log p, where p is the softmax probability of the
    pixel's label and a is ``alpha`` for lesions and 1 - ``alpha`` for background, divided by the
    number of lesion pixels, but at least a thousandth of all pixels: otherwise a batch without
    lesions would outweigh a hundred others.

    The paper gives only the name. This is the loss of Lin et al. for pixels instead of anchors,
    except for their weight of 0.25: with 0.5, a pixel that is equally likely lesion and background
    gets probability 0.5, the threshold of masks. Sums are in float32 under mixed precision.

    Args:
        logits: (N, K + 1, H, W) or (N, K + 1, D, H, W), channel 0 is the background.
        labels: (N, H, W) or (N, D, H, W) int, 0 for background, k for class k - 1, ``IGNORE`` for
            padding.
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
    # Clamped away from 0, where a power below 1 has no gradient.
    distance = (-torch.expm1(-cross_entropy)).clamp(min=1e-8)
    return torch.where(is_lesion, alpha, 1 - alpha) * distance**gamma * cross_entropy


def anchor_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the softmax focal loss of anchors (Jaeger et al., section 3.1).

    The loss of Lin et al. with the softmax probability of the anchor's class instead of a sigmoid.

    Args:
        logits: (N, R, K + 1); the last channel is the background.
        labels: (N, R) int, 0 to K - 1 for lesions, K for background, below 0 for ignored anchors.
        alpha: weight of lesions, in [0, 1]; background has 1 - alpha.
        gamma: 0 for the plain cross entropy.

    Returns:
        A scalar, the sum over anchors.
    """
    counts, (rows, labels) = rows_that_count(labels >= 0, logits, labels)
    labels = labels.clamp(min=0)  # ignored anchors
    cross_entropy = F.cross_entropy(rows.float(), labels, reduction="none")
    losses = _focal(cross_entropy, labels < logits.shape[-1] - 1, alpha, gamma)
    return sum_of_rows(losses, counts)


def anchor_sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Compute the sigmoid focal loss of anchors, as in Detectron2's RetinaNet.

    Args:
        logits: (N, R, K).
        labels, alpha, gamma: see :func:`anchor_focal_loss`.

    Returns:
        A scalar, the sum over anchors.
    """
    counts, (rows, labels) = rows_that_count(labels >= 0, logits, labels)
    labels = labels.clamp(min=0)  # ignored anchors
    targets = F.one_hot(labels, logits.shape[-1] + 1)[:, :-1].to(logits.dtype)
    losses = sigmoid_focal_loss_jit(rows, targets, alpha=alpha, gamma=gamma, reduction="none")
    return sum_of_rows(losses, counts)
