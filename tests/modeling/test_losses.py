import math

from lesion_d2.modeling.losses import (
    IGNORE,
    anchor_focal_loss,
    focal_segmentation_loss,
    segmentation_loss,
    soft_dice,
)

import numpy as np
import pytest
import torch
from made_up_anchors import random_anchors


def _slow_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Equation (1) of Jaeger et al. plus 1, pixel by pixel in float64."""
    classes = logits.shape[1]
    cross_entropy, pixels = 0.0, 0
    overlap, predicted, true = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for n, *place in np.ndindex(labels.shape):
        label = labels[(n, *place)]
        if label == IGNORE:
            continue
        exponentials = np.exp(logits[(n, slice(None), *place)])
        u = exponentials / exponentials.sum()
        cross_entropy -= np.log(u[label])
        pixels += 1
        for k in range(classes):
            v = float(label == k)
            overlap[k] += u[k] * v
            predicted[k] += u[k]
            true[k] += v
    dice = 2 * overlap / (predicted + true)
    return cross_entropy / pixels + 1 - dice[1:].mean()


@pytest.mark.parametrize("sides", [(6, 5), (3, 4, 5)])
def test_loss_equals_the_written_out_equation(sides):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, *sides, generator=generator)
    labels = torch.randint(0, 4, (3, *sides), generator=generator)
    labels[1, :, 3:] = IGNORE
    expected = _slow_loss(logits.double().numpy(), labels.numpy())
    assert segmentation_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_dice_is_taken_over_the_batch_not_over_images():
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[0, :2] = 1
    probabilities = torch.zeros(2, 2, 4, 4)
    probabilities[0, 1, :2] = 1  # the first image is right
    probabilities[1, 1, 0] = 1  # four false positives where the second has no lesion
    # One pseudo-volume: 2 * 8 / (12 + 8). The mean of the images' own scores would be 1/2.
    assert soft_dice(probabilities, labels).item() == pytest.approx(0.8, abs=1e-6)


def test_padding_changes_nothing():
    logits, labels = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
    padded_logits = torch.randn(2, 2, 10, 12)
    padded_logits[:, :, :8, :8] = logits
    padded_labels = torch.full((2, 10, 12), IGNORE)
    padded_labels[:, :8, :8] = labels
    torch.testing.assert_close(
        segmentation_loss(padded_logits, padded_labels), segmentation_loss(logits, labels)
    )


def test_perfect_prediction_and_empty_batch():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    logits = torch.stack([torch.full((1, 4, 4), 50.0), torch.full((1, 4, 4), -50.0)], dim=1)
    assert segmentation_loss(logits, labels).item() == pytest.approx(0, abs=1e-5)
    labels[0, :2] = 1
    logits[:, :, :2] *= -1
    assert segmentation_loss(logits, labels).item() == pytest.approx(0, abs=1e-5)


def test_half_precision_logits_give_the_float_loss():
    logits, labels = torch.randn(1, 2, 64, 64), torch.randint(0, 2, (1, 64, 64))
    half = logits.bfloat16()
    assert segmentation_loss(half, labels).item() == segmentation_loss(half.float(), labels).item()


def test_a_volume_has_the_focal_loss_of_its_voxels_on_a_plane():
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(-1, 3, (2, 4, 5, 6))
    expected = focal_segmentation_loss(logits.flatten(2, 3), labels.flatten(1, 2))
    torch.testing.assert_close(focal_segmentation_loss(logits, labels), expected)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5), (0.5, 0.0)])
def test_focal_segmentation_loss_is_the_formula_written_out(alpha, gamma):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 4, 5, generator=generator)
    logits.requires_grad_()
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[1, 2:] = IGNORE
    total, num_lesion = 0.0, 0
    for n, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)):
        label = labels[n, y, x].item()
        if label == IGNORE:
            continue
        odds = [math.exp(value) for value in logits[n, :, y, x].tolist()]
        p = odds[label] / sum(odds)
        total += -(alpha if label > 0 else 1 - alpha) * (1 - p) ** gamma * math.log(p)
        num_lesion += label > 0
    loss = focal_segmentation_loss(logits, labels, alpha=alpha, gamma=gamma)
    assert loss.item() == pytest.approx(total / num_lesion, rel=1e-5)

    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1, :, 2:] == 0).all()


def test_focal_segmentation_loss_of_nothing_and_of_certainty():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    logits = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)
    expected = 16 * 0.5 * 0.25 * math.log(2)  # no lesion pixel: the sum is divided by 1
    assert focal_segmentation_loss(logits, labels).item() == pytest.approx(expected)
    large = torch.zeros(1, 80, 50, dtype=torch.int64)  # divided by a thousandth of 4,000 pixels
    assert focal_segmentation_loss(torch.zeros(1, 2, 80, 50), large).item() == pytest.approx(
        4000 / 4 * 0.5 * 0.25 * math.log(2)
    )
    logits[:, 0] = 60
    assert focal_segmentation_loss(logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_anchor_focal_loss_is_the_formula_written_out():
    logits, labels = random_anchors(3)
    total = 0.0
    for n, r in torch.cartesian_prod(torch.arange(3), torch.arange(40)):
        label = labels[n, r].item()
        if label == IGNORE:
            continue
        odds = [math.exp(value) for value in logits[n, r].tolist()]
        p = odds[label] / sum(odds)
        total += -(0.3 if label < 2 else 0.7) * (1 - p) ** 1.5 * math.log(p)
    loss = anchor_focal_loss(logits, labels, alpha=0.3, gamma=1.5)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    assert (logits.grad[:, 30:] == 0).all() and (logits.grad[:, :30] != 0).any(dim=-1).all()


def test_dice_over_a_pseudo_volume_with_empty_images():
    """Jaeger et al., section 3.1: an image without a class still counts its false positives."""
    labels = torch.zeros(3, 4, 4, dtype=torch.int64)
    labels[0, :2] = 1  # the second image is empty, the third has class 2 alone
    labels[2, 0] = 2
    probabilities = torch.full((3, 3, 4, 4), 0.25)
    probabilities[:, 0] = 0.5
    first = 2 * (8 * 0.25) / (48 * 0.25 + 8)
    second = 2 * (4 * 0.25) / (48 * 0.25 + 4)
    assert soft_dice(probabilities, labels).tolist() == pytest.approx([first, second], rel=1e-5)
    less = probabilities.clone()
    less[1, 1:] = 0.0  # no false positives on the empty image: both classes gain
    assert (soft_dice(less, labels) > soft_dice(probabilities, labels)).all()
