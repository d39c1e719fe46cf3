from lesion_d2.modeling import LesionROIHeads
from lesion_d2.structures import Boxes3D

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_run import tiny_config


def _heads(kind: type[StandardROIHeads], appends: bool) -> StandardROIHeads:
    cfg = tiny_config(
        MODEL__ROI_HEADS__IN_FEATURES=("p2",),
        MODEL__ROI_HEADS__NUM_CLASSES=2,
        MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=12,
        MODEL__ROI_HEADS__PROPOSAL_APPEND_GT=appends,
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__NUM_FC=1,
        MODEL__ROI_BOX_HEAD__FC_DIM=4,
    )
    return kind(cfg, {"p2": ShapeSpec(channels=4, stride=4)})


def _images() -> tuple[list[Instances], list[Instances]]:
    """Proposals and targets of two images; the second one shows nothing."""
    generator = torch.Generator().manual_seed(0)
    lesions = torch.tensor([[4.0, 4.0, 24.0, 22.0], [38.0, 36.0, 56.0, 58.0]])
    near = lesions.repeat(20, 1) + 4 * torch.randn(40, 4, generator=generator)
    low = 40 * torch.rand(60, 2, generator=generator)
    boxes = torch.cat([near, torch.cat([low, low + 12], dim=1)])
    proposals = [
        Instances((64, 64), proposal_boxes=Boxes(b), objectness_logits=torch.arange(100.0))
        for b in (boxes, boxes.flip(0))
    ]
    targets = [
        Instances((64, 64), gt_boxes=Boxes(b), gt_classes=torch.tensor(c), gt_order=torch.tensor(c))
        for b, c in ((lesions, [1, 0]), (lesions[:0], []))
    ]
    targets[1].gt_classes = targets[1].gt_classes.long()
    return proposals, targets


@pytest.mark.parametrize("appends", [True, False])
def test_without_regions_proposals_are_labeled_and_drawn_as_detectron2_does(appends):
    drawn = []
    for kind in (LesionROIHeads, StandardROIHeads):
        torch.manual_seed(5)
        with EventStorage() as storage:
            found = _heads(kind, appends).label_and_sample_proposals(*_images())
        drawn.append((found, storage.latest()))
    (ours, our_numbers), (theirs, their_numbers) = drawn
    assert our_numbers == their_numbers
    assert 0 < our_numbers["roi_head/num_fg_samples"][0] < 6
    for image, other in zip(ours, theirs, strict=True):
        assert list(image.get_fields()) == list(other.get_fields())
        for name, values in image.get_fields().items():
            expected = other.get(name)
            if isinstance(values, Boxes):
                values, expected = values.tensor, expected.tensor
            assert torch.equal(values, expected), name


def test_boxes_in_volumes_are_labeled_by_the_same_code():
    """On one slice each, boxes overlap as they do in 2-D."""
    heads, (proposals, targets) = _heads(LesionROIHeads, True), _images()
    torch.manual_seed(5)
    with EventStorage():
        flat = heads.label_and_sample_proposals(proposals, targets)

    def on_one_slice(image):
        fields = dict(image.get_fields())
        for name in fields.keys() & {"proposal_boxes", "gt_boxes"}:
            x1, y1, x2, y2 = fields[name].tensor.unbind(dim=1)
            low, high = torch.full_like(x1, 2.5), torch.full_like(x1, 3.5)
            fields[name] = Boxes3D(torch.stack([x1, y1, low, x2, y2, high], dim=1))
        return Instances((8, 64, 64), **fields)

    torch.manual_seed(5)
    with EventStorage():
        thick = heads.label_and_sample_proposals(
            list(map(on_one_slice, proposals)), list(map(on_one_slice, targets))
        )
    for image, other in zip(flat, thick, strict=True):
        assert torch.equal(image.gt_classes, other.gt_classes)
        assert torch.equal(
            image.proposal_boxes.tensor, other.proposal_boxes.tensor[:, [0, 1, 3, 4]]
        )
