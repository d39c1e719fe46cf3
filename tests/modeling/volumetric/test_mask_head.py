from lesion_d2.layers import paste_masks_3d
from lesion_d2.modeling.volumetric import MaskRCNNConvUpsampleHead3D, VolumeShape
from lesion_d2.modeling.volumetric.mask_head import mask_loss
from lesion_d2.structures import BitMasks3D, Boxes3D

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage


class _Squares(BitMasks):
    """Detectron2's masks, which ask for one side, where three axes need all sides."""

    def __getitem__(self, item):
        return _Squares(self.tensor[item])

    def crop_and_resize(self, boxes, mask_size):
        return super().crop_and_resize(
            boxes, mask_size if isinstance(mask_size, int) else mask_size[0]
        )


def _instances(axes: int, numbers=(3, 0, 2)) -> list[Instances]:
    generator = torch.Generator().manual_seed(0)
    size, images = (10, 24, 24)[-axes:], []
    for number in numbers:
        low = 4 + 4 * torch.rand(number, axes, generator=generator)
        boxes = torch.cat([low, low + 8], dim=1)
        masks = torch.rand(number, *size, generator=generator) > 0.5
        image = Instances(size, gt_classes=torch.arange(number) % 2)
        image.proposal_boxes = (Boxes if axes == 2 else Boxes3D)(boxes)
        image.gt_masks = (_Squares if axes == 2 else BitMasks3D)(masks)
        images.append(image)
    return images


@pytest.mark.parametrize("num_classes", [1, 2])
def test_on_images_the_loss_is_detectron2s(num_classes):
    instances = _instances(2)
    logits = torch.randn(5, num_classes, 6, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for function in (mask_loss, mask_rcnn_loss):
        with EventStorage() as storage:
            loss = function(logits, instances)
        found.append((loss.item(), pytest.approx(storage.latest()["mask_rcnn/accuracy"][0])))
    assert found[0][0] == found[1][0] and found[0][1] == found[1][1].expected


def test_in_volumes_each_region_has_the_mask_of_its_class():
    instances = _instances(3)
    logits = torch.randn(5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with EventStorage():
        found = mask_loss(logits, instances)
    terms, row = [], 0
    for image in instances:
        for number in range(len(image)):
            one = image[number : number + 1]
            truth = one.gt_masks.crop_and_resize(one.proposal_boxes.tensor, (3, 4, 4))[0]
            own = logits[row, int(one.gt_classes)]
            terms.append(F.binary_cross_entropy_with_logits(own, truth.float()))
            row += 1
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_without_regions_the_loss_is_0_and_has_a_gradient():
    logits = torch.zeros(0, 2, 3, 4, 4, requires_grad=True)
    mask_loss(logits, _instances(3, numbers=(0, 0))).backward()
    assert logits.grad is not None


def test_a_mask_that_is_cut_out_of_its_box_is_pasted_to_where_it_was():
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in (12, 24, 30)), indexing="ij")
    centers, halves = (5.0, 11.0, 14.0), (4.0, 8.0, 9.0)
    distance = sum(((a - c) / h) ** 2 for a, c, h in zip(axes, centers, halves, strict=True))
    mask = BitMasks3D((distance <= 1)[None])
    boxes = mask.get_bounding_boxes().tensor
    cells = mask.crop_and_resize(boxes, (10, 28, 28)).float()
    [pasted] = paste_masks_3d(cells, boxes, (12, 24, 30))
    shared, whole = (pasted & mask.tensor[0]).sum(), (pasted | mask.tensor[0]).sum()
    assert shared / whole > 0.97
    # In the middle, not aside.
    for axis in axes:
        middle = axis[mask.tensor[0]].mean().item()
        assert axis[pasted].mean().item() == pytest.approx(middle, abs=0.02)


def test_the_head_doubles_all_three_axes_and_picks_the_predicted_classes():
    torch.manual_seed(0)
    head = MaskRCNNConvUpsampleHead3D(
        VolumeShape(channels=3, depth=2, height=4, width=5), num_classes=2, conv_dims=[4, 6]
    ).eval()
    regions = torch.randn(3, 3, 2, 4, 5)
    instances = [
        Instances((9, 9, 9), pred_classes=torch.tensor(classes)) for classes in ([1], [0, 1])
    ]
    with torch.no_grad():
        found = head(regions, instances)
        logits = head.layers(regions)
    assert logits.shape == (3, 2, 4, 8, 10)
    assert torch.equal(found[0].pred_masks, logits[:1, 1:].sigmoid())
    assert torch.equal(found[1].pred_masks[0], logits[1, :1].sigmoid())
    assert torch.equal(found[1].pred_masks[1], logits[2, 1:].sigmoid())
