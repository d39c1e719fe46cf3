"""The RPN of volumes. What it shares with that of slices is tested in proposal_generator."""

from lesion_d2.modeling import LesionRPN3D
from lesion_d2.modeling.volumetric import StandardRPNHead3D, VolumeShape
from lesion_d2.structures import Boxes3D
from lesion_d2.structures.ignore_regions import mark_regions

import pytest
import torch
from detectron2.structures import ImageList, Instances
from made_up_patches import tiny_config

_SHAPES = {
    "p2": VolumeShape(channels=4, stride=4, strides=(1, 4, 4)),
    "p3": VolumeShape(channels=4, stride=8, strides=(2, 8, 8)),
}


def _rpn(*options: object) -> LesionRPN3D:
    values = {
        "MODEL.RPN.HEAD_NAME": "StandardRPNHead3D",
        "MODEL.RPN.IN_FEATURES": ["p2", "p3"],
        "MODEL.RPN.CONV_DIMS": [6],
        "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0,) * 6,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 10_000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 10_000,
        "MODEL.RPN.NMS_THRESH": 1.0,
    }
    values = [part for pair in values.items() for part in pair]
    return LesionRPN3D(tiny_config("RetinaNet3D", *values, *options), _SHAPES)


class _Known(torch.nn.Module):
    """Predicts, at every position, its number there, and moves anchors of number a by a in x."""

    fold = StandardRPNHead3D.forward

    def forward(self, features):
        logits, deltas = [], []
        for level in features:
            z, y, x = torch.meshgrid(
                *(torch.arange(float(n)) for n in level.shape[2:]), indexing="ij"
            )
            place = 1000 * z + 100 * y + 10 * x
            logits.append(torch.stack([place, place + 1])[None].flatten(2, 3))
            shift = torch.zeros(1, 12, *level.shape[2:])
            shift[:, 6] = 1.0
            deltas.append(shift.flatten(2, 3))
        return logits, deltas


def test_predictions_are_put_into_the_order_of_the_anchors():
    rpn = _rpn().eval()
    rpn.rpn_head = _Known()
    size = (3, 12, 20)
    features = {"p2": torch.zeros(1, 4, 3, 3, 5), "p3": torch.zeros(1, 4, 2, 2, 3)}
    [proposals], _ = rpn(ImageList(torch.zeros(1, 1, *size), [size]), features)
    strides = {10.0: (1, 4, 4), 18.0: (2, 8, 8)}

    for size_, (sz, sy, sx) in strides.items():
        for ratio, number in ((0.7, 0), (1.4, 1)):
            width = (size_**2 / ratio) ** 0.5
            depth = 3.0 if size_ == 10.0 else 6.0
            for z, y, x in ((0, 0, 0), (1, 1, 2), (1, 0, 1)):
                center = (x * sx + number * width, y * sy, z * sz)
                halves = (width / 2, width * ratio / 2, depth / 2)
                box = [c - h for c, h in zip(center, halves, strict=True)]
                box += [c + h for c, h in zip(center, halves, strict=True)]
                ends = (20, 12, 3) * 2
                box = [min(max(v, -0.5), n - 0.5) for v, n in zip(box, ends, strict=True)]
                distance = (proposals.proposal_boxes.tensor - torch.tensor(box)).abs().amax(dim=1)
                found = proposals.objectness_logits[distance < 1e-3].tolist()
                empty = any(box[i] >= box[i + 3] for i in range(3))
                assert empty or 1000 * z + 100 * y + 10 * x + number in found


def test_the_head_looks_at_three_axes_and_shares_its_weights_between_levels():
    head = _rpn().rpn_head
    features = [torch.randn(2, 4, 5, 6, 7), torch.randn(2, 4, 3, 3, 4)]
    logits, deltas = head(features)
    assert [x.shape for x in logits] == [(2, 2, 30, 7), (2, 2, 9, 4)]
    assert [x.shape for x in deltas] == [(2, 12, 30, 7), (2, 12, 9, 4)]
    hidden = torch.nn.functional.conv3d(
        features[1], head.conv[0].weight, head.conv[0].bias, padding=1
    ).relu()
    expected = torch.einsum("nczyx,ac->nazyx", hidden, head.anchor_deltas.weight[:, :, 0, 0, 0])
    torch.testing.assert_close(deltas[1].view_as(expected), expected)


def test_anchors_in_a_region_of_a_volume_do_not_count():
    rpn = _rpn("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.RPN.POSITIVE_FRACTION", 1.0)
    anchors = rpn.anchor_generator([torch.zeros(1, 4, 8, 8, 8), torch.zeros(1, 4, 4, 4, 4)])
    region, lesion = [14.0, 14.0, 2.0, 34.0, 34.0, 8.0], [2.0, 2.0, 1.0, 12.0, 12.0, 4.0]
    plain = Instances((8, 32, 32), gt_boxes=Boxes3D(torch.tensor([lesion])))
    plain.gt_classes = torch.tensor([0])
    marked = Instances((8, 32, 32), gt_boxes=Boxes3D(torch.tensor([region, lesion])))
    marked.gt_classes = torch.tensor([-1, 0])
    mark_regions(marked, 1)
    (before, after), _ = rpn.label_and_sample_anchors(anchors, [plain, marked])
    inside = []
    for box in Boxes3D.cat(anchors).tensor.tolist():
        shared = volume = 1.0
        for axis in range(3):
            low, high = max(box[axis], region[axis]), min(box[axis + 3], region[axis + 3])
            shared *= max(0.0, high - low)
            volume *= box[axis + 3] - box[axis]
        inside.append(shared >= 0.5 * volume)
    inside = torch.tensor(inside)
    assert torch.equal(after, torch.where(inside & (before == 0), -1, before))
    assert (before == 1).any() and (inside & (before == 0)).sum() > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.RPN.BBOX_REG_WEIGHTS", (1.0,) * 4), "expected six"),
        (("MODEL.RPN.CONV_DIMS", [0]), "CONV_DIMS: found .0., expected numbers above 0"),
        (("MODEL.RPN.BBOX_REG_LOSS_TYPE", "ciou"), "found 'ciou', expected one of smooth_l1, giou"),
    ],
)
def test_what_does_not_go_with_volumes_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _rpn(*options)
