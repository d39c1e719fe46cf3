import math

from lesion_d2.modeling.losses import IGNORE
from lesion_d2.modeling.shem import (
    batch_shem_loss,
    box_loss_per_image,
    mean_per_image,
    sample_hard_negatives,
    sample_positives,
    shem_loss,
)
from lesion_d2.modeling.volumetric import Box2BoxTransform3D
from lesion_d2.structures import Boxes3D, pairwise_giou

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from made_up_anchors import random_anchors


@pytest.mark.parametrize("softmax", [True, False])
def test_shem_picks_from_the_pool_and_nothing_else(softmax):
    logits, labels = random_anchors(2 + softmax)
    probabilities = logits.detach().softmax(-1) if softmax else logits.detach().sigmoid()
    hardness = probabilities[..., :2].max(dim=-1).values
    positives = [3, 2, 0]
    drawn = torch.zeros(3, 40, dtype=torch.int64)

    for seed in range(200):
        torch.manual_seed(seed)
        logits.grad = None
        shem_loss(logits, labels, pool=3, softmax=softmax).backward()
        used = (logits.grad != 0).any(dim=-1)
        for n, number in enumerate(positives):
            is_negative = labels[n] == 2
            assert used[n][(labels[n] >= 0) & ~is_negative].all()
            assert not used[n][labels[n] == IGNORE].any()
            assert (used[n] & is_negative).sum() == max(1, number)
        drawn += used & (labels == 2)
    for n, number in enumerate(positives):
        order = hardness[n].masked_fill(labels[n] != 2, -1).argsort(descending=True)
        pool = order[: 3 * max(1, number)]
        assert set(drawn[n].nonzero()[:, 0].tolist()) == set(pool.tolist())
        # Each of the pool with probability 1/3: 200 draws within 5 standard deviations.
        assert (drawn[n][pool] - 200 / 3).abs().max() < 5 * (200 * 2 / 9) ** 0.5


@pytest.mark.parametrize("softmax", [True, False])
def test_shem_loss_is_the_mean_over_images_of_what_was_drawn(softmax):
    logits, labels = random_anchors(2 + softmax)
    # A pool of the drawn number leaves nothing to chance.
    loss = shem_loss(logits, labels, pool=1, softmax=softmax).item()
    expected = []
    for n in range(3):
        terms = {True: [], False: []}
        probabilities = logits[n].softmax(-1) if softmax else logits[n].sigmoid()
        rows = [(p.tolist(), k) for p, k in zip(probabilities, labels[n].tolist(), strict=True)]
        positive = [(p, k) for p, k in rows if k in (0, 1)]
        negative = sorted((r for r in rows if r[1] == 2), key=lambda r: -max(r[0][:2]))
        for p, k in positive + negative[: max(1, len(positive))]:
            if softmax:
                term = -math.log(p[k])
            else:
                term = -sum(math.log(p[j] if j == k else 1 - p[j]) for j in (0, 1))
            terms[k < 2].append(term)
        means = [sum(values) / len(values) if values else 0.0 for values in terms.values()]
        expected.append(sum(means) / 2)
    assert not terms[True]  # the last image has no positive one
    assert loss == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_background_images_have_their_share_of_the_gradient():
    """30 positives in one image of 5: four images with one anchor each are two thirds of it."""
    labels = torch.ones(5, 500, dtype=torch.int64)
    labels[2, :30] = 0
    logits = torch.zeros(5, 500, 1, requires_grad=True)  # every anchor has the same gradient
    shem_loss(logits, labels, pool=20, softmax=False).backward()
    sizes = logits.grad.abs().sum(dim=(1, 2))
    share = (sizes.sum() - sizes[2]) / sizes.sum()
    assert share.item() == pytest.approx(2 / 3)
    assert (logits.grad != 0).sum(dim=(1, 2)).tolist() == [1, 1, 60, 1, 1]


def test_the_mean_per_image_is_written_out():
    chosen = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    values = torch.tensor([1.0, 2.0, 6.0, 10.0])
    assert mean_per_image(values, chosen) == pytest.approx(((1 + 2 + 6) / 3 + 0 + 10) / 3)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_box_loss_per_image_is_written_out(beta):
    generator = torch.Generator().manual_seed(0)
    corners = 50 * torch.rand(2, 6, 2, generator=generator)
    anchors = [Boxes(torch.cat([c, c + 8 + 8 * i], dim=1)) for i, c in enumerate(corners)]
    gt_boxes = [Boxes.cat(anchors).tensor + 3 * torch.rand(12, 4, generator=generator)] * 3
    deltas = [torch.randn(3, 6, 4, generator=generator) for _ in anchors]
    is_positive = torch.zeros(3, 12, dtype=torch.bool)
    is_positive[0, [1, 7, 8]] = is_positive[2, 5] = True
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    options = {"box_reg_loss_type": "smooth_l1", "smooth_l1_beta": beta}
    found = box_loss_per_image(anchors, transform, deltas, gt_boxes, is_positive, **options)
    images = []
    for n in range(3):
        terms = []
        for r in is_positive[n].nonzero()[:, 0].tolist():
            anchor, box = Boxes.cat(anchors).tensor[r], gt_boxes[n][r]
            width, height = (anchor[2:] - anchor[:2]).tolist()
            true_width, true_height = (box[2:] - box[:2]).tolist()
            shift = ((box[:2] + box[2:] - anchor[:2] - anchor[2:]) / 2).tolist()
            true = [10 * shift[0] / width, 10 * shift[1] / height]
            true += [5 * math.log(true_width / width), 5 * math.log(true_height / height)]
            for a, b in zip(torch.cat(deltas, dim=1)[n, r].tolist(), true, strict=True):
                distance = abs(a - b)
                terms.append(distance**2 / 2 if distance < beta else distance - beta / 2)
        images.append(sum(terms) / len(terms) if terms else 0.0)
    assert images[1] == 0
    assert found.item() == pytest.approx(sum(images) / 3, rel=1e-4)


@pytest.mark.parametrize("axes", [2, 3])
def test_in_volumes_it_is_the_mean_over_six_deltas_or_over_boxes(axes):
    generator = torch.Generator().manual_seed(axes)
    kind = Boxes if axes == 2 else Boxes3D
    weights = (10.0,) * axes + (5.0,) * axes
    transform = (Box2BoxTransform if axes == 2 else Box2BoxTransform3D)(weights)
    low = 50 * torch.rand(7, axes, generator=generator)
    boxes = torch.cat([low, low + 4 + 9 * torch.rand(7, axes, generator=generator)], dim=1)
    targets = boxes + torch.rand(2, 7, 2 * axes, generator=generator)
    deltas = 0.5 * torch.randn(2, 7, 2 * axes, generator=generator)
    is_positive = torch.tensor([[1, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0]]).bool()
    options = {"smooth_l1": [], "giou": []}
    for n, rows in enumerate(is_positive):
        wanted = transform.get_deltas(boxes[rows], targets[n, rows])
        options["smooth_l1"].append((deltas[n, rows] - wanted).abs().mean().item())
        moved = transform.apply_deltas(deltas[n, rows], boxes[rows])
        giou = pairwise_giou(kind(moved), kind(targets[n, rows])).diagonal()
        options["giou"].append((1 - giou).mean().item())

    for name, images in options.items():
        found = box_loss_per_image(
            [kind(boxes[:4]), kind(boxes[4:])],
            transform,
            [deltas[:, :4], deltas[:, 4:]],
            list(targets),
            is_positive,
            box_reg_loss_type=name,
            smooth_l1_beta=0.0,
        )
        assert found.item() == pytest.approx(sum(images) / 2, rel=1e-4), name


def test_positives_are_drawn_from_all():
    is_positive = torch.tensor([0, 1, 1, 0, 1]).bool()
    drawn = {tuple(sorted(sample_positives(is_positive, 2).tolist())) for _ in range(50)}
    assert drawn == {(1, 2), (1, 4), (2, 4)}
    assert sorted(sample_positives(is_positive, 9).tolist()) == [1, 2, 4]
    assert sample_positives(is_positive, 0).numel() == 0


def test_hard_negatives_of_few_and_of_none():
    hardness = torch.tensor([-1.0, 0.2, -1.0, 0.9])
    assert sorted(sample_hard_negatives(hardness, 5, pool=2).tolist()) == [1, 3]
    assert sample_hard_negatives(hardness, 1, pool=1).tolist() == [3]
    assert sample_hard_negatives(torch.full((4,), -1.0), 2, pool=3).numel() == 0
    lost = torch.full((1, 4, 3), torch.nan)  # a training that went wrong shows in its loss
    assert shem_loss(lost, torch.full((1, 4), 2), pool=2, softmax=True).isnan()
    labels = torch.full((1, 4), IGNORE)
    assert shem_loss(torch.zeros(1, 4, 3), labels, pool=2, softmax=True) == 0


@pytest.mark.parametrize("softmax", [True, False])
def test_batch_shem_loss_is_the_mean_over_what_was_drawn_of_the_batch(softmax):
    logits, labels = random_anchors(2 + softmax)
    loss = batch_shem_loss(logits, labels, pool=1, negatives=2, softmax=softmax)
    probabilities = logits.softmax(-1) if softmax else logits.sigmoid()
    rows = zip(probabilities.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True)
    rows = [row for row in rows if row[1] != IGNORE]
    positive = [row for row in rows if row[1] < 2]
    negative = sorted((row for row in rows if row[1] == 2), key=lambda row: -max(row[0][:2]))
    terms = []
    for p, k in positive + negative[: 2 * len(positive)]:
        if softmax:
            terms.append(-math.log(p[k]))
        else:
            terms += [-math.log(p[j] if j == k else 1 - p[j]) for j in (0, 1)]
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    loss.backward()
    assert (logits.grad != 0).any(dim=-1).sum() == 3 * len(positive)


def test_batch_shem_loss_of_empty_images_draws_as_if_there_were_one_positive():
    logits, labels = random_anchors(2)
    loss = batch_shem_loss(logits[2:], labels[2:], pool=20, negatives=2, softmax=False)
    loss.backward()
    assert torch.isfinite(loss) and (logits.grad != 0).any(dim=-1).sum() == 2
