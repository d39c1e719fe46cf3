import lesion_d2  # noqa: F401, makes detectron2 importable
from lesion_d2.structures import Boxes3D

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from made_up_patches import detect, patch, tiny_model
from slow_components import check_components, slow_components

SIZE = (4, 24, 24)
MASKS = ("MODEL.SEG_HEAD.PREDICT_MASKS", True)


@pytest.mark.parametrize(("seed", "margin"), [(0, 0.0), (1, 1.5)])
def test_components_against_a_flood_fill(seed, margin):
    options = ("INPUT.BOX_MARGIN", margin, "MODEL.DET_UNET.MAX_COMPONENTS", 4)
    model = tiny_model("DetUNet3D", *MASKS, *options)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 3, 5, 6, generator=generator)
    coarse[:, 0] += 0.8
    logits = F.interpolate(coarse, size=(6, 12, 15), mode="trilinear")
    probabilities = (4 * logits).softmax(dim=1)[0]
    everything = slow_components(probabilities, 1000, (0, margin, margin))
    sizes = sorted(size for size, *_ in everything)
    assert len(everything) > 4 and sizes[-5] < sizes[-4]  # some are left out
    expected = slow_components(probabilities, 4, (0, margin, margin))
    assert {category for _, _, category, *_ in expected} == {0, 1}
    found = model.find_components(probabilities)
    assert isinstance(found.pred_boxes, Boxes3D) and found.image_size == (6, 12, 15)
    check_components(found, expected)


def test_voxels_that_touch_at_a_corner_are_one_component():
    model = tiny_model("DetUNet3D", "INPUT.BOX_MARGIN", 0.0)
    probabilities = torch.zeros(3, 4, 5, 6)
    probabilities[0] = 0.5
    probabilities[1, 1, 2, 3] = 0.7
    probabilities[1, 2, 3, 4] = 0.9
    probabilities[2, 3, 0, 0] = 0.8
    found = model.find_components(probabilities)
    assert found.pred_boxes.tensor.tolist() == [
        [2.5, 1.5, 0.5, 4.5, 3.5, 2.5],
        [-0.5, -0.5, 2.5, 0.5, 0.5, 3.5],
    ]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.pred_classes.tolist() == [0, 1]


def test_it_learns_two_volumes_by_heart_and_empty_ones_train():
    model = tiny_model("DetUNet3D", *MASKS, "INPUT.BOX_MARGIN", 0.0)
    boxes = [[1.5, 2.5, -0.5, 10.5, 11.5, 2.5], [12.5, 9.5, 0.5, 22.5, 21.5, 3.5]]
    batch = [patch(boxes, SIZE, classes=[1, 0]), patch(boxes[:1], (3, 22, 23), seed=1)]
    batch.append(patch([], SIZE, seed=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with EventStorage():
        for _ in range(50):
            losses = model(batch)
            optimizer.zero_grad()
            losses["loss_seg"].backward()
            optimizer.step()

    assert set(losses) == {"loss_seg"} and torch.isfinite(losses["loss_seg"])
    for output, sample in zip(detect(model, batch), batch, strict=True):
        truth = sample["instances"]
        sure = output[output.scores > 0.9]
        assert sure.image_size == tuple(sample["image"].shape[1:]) == truth.image_size
        order = sure.pred_classes.argsort(descending=True)
        assert sure.pred_classes[order].tolist() == truth.gt_classes.tolist()
        difference = sure.pred_boxes.tensor[order] - truth.gt_boxes.tensor
        assert (difference.abs() <= 2).all()
        overlap = (sure.pred_masks[order] & truth.gt_masks.tensor).sum(dim=(1, 2, 3))
        assert (overlap > 0.6 * truth.gt_masks.tensor.sum(dim=(1, 2, 3))).all()


def test_a_backbone_of_slices_is_refused():
    with pytest.raises(ValueError, match=r"MODEL.BACKBONE.NAME: found a UNetFPN, expected a back"):
        tiny_model(
            "DetUNet3D",
            *("MODEL.BACKBONE.NAME", "build_resnet_unet_fpn_backbone"),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        )
