from pathlib import Path

from lesion_d2 import get_lesion_config
from lesion_d2.modeling import RFCN3DCE

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

CONFIGS = Path(__file__).parents[3] / "configs" / "3dce_attention"


def make_model(num_images=1, *, contextual=False, spatial=False, **changes):
    """The phantoms' model, thinner."""
    cfg = get_lesion_config()
    cfg.merge_from_file(str(CONFIGS / "rfcn_phantom.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5] * 3 * num_images
    cfg.MODEL.RFCN_3DCE.CONTEXTUAL_ATTENTION = contextual
    cfg.MODEL.RFCN_3DCE.SPATIAL_ATTENTION = spatial
    cfg.merge_from_list([value for item in changes.items() for value in item])
    torch.manual_seed(0)
    return build_model(cfg)


def make_sample(num_images, boxes, seed, *, going_on=()):
    """A noisy stack with bright balls in boxes, and bright columns that go on in all slices."""
    num_slices = 3 * num_images
    image = 80 + 10 * torch.randn(num_slices, 64, 64, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for index, (x1, y1, x2, y2) in enumerate([*boxes, *going_on]):
        inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1
        ends = num_slices if index >= len(boxes) else 3
        first = (num_slices - ends) // 2
        image[first : first + ends, inside] = 220.0
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return {"image": image, "instances": instances, "height": 64, "width": 64}


def train(model, batch, steps=60):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    with EventStorage():
        for _ in range(steps):
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def find(model, batch):
    return [output["instances"] for output in model(batch)]


@pytest.mark.parametrize("attention", [False, True])
def test_it_learns_by_heart_what_only_other_slices_tell(attention):
    batch = [
        make_sample(3, [(8, 10, 24, 26)], 1, going_on=[(36, 34, 54, 52)]),
        make_sample(3, [(38, 8, 54, 24)], 2, going_on=[(8, 34, 26, 52)]),
    ]
    model = train(make_model(3, contextual=attention, spatial=attention), batch)
    assert isinstance(model, RFCN3DCE)
    for found, sample in zip(find(model, batch), batch, strict=True):
        sure = found[found.scores > 0.5]
        [box] = sure.pred_boxes.tensor.tolist()
        [true] = sample["instances"].gt_boxes.tensor.tolist()
        np.testing.assert_allclose(box, true, atol=2)


def test_with_one_image_contextual_attention_changes_no_detection():
    plain, attended = make_model(1), make_model(1, contextual=True)
    nn.init.normal_(attended.backbone.contextual_attention.scores.weight)
    missing = attended.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["backbone.contextual_attention.scores.weight"]
    sample = make_sample(1, [(8, 10, 24, 26)], 1)
    [a], [b] = (find(model.eval(), [sample]) for model in (plain, attended))
    assert len(a) and a.scores.equal(b.scores) and a.pred_boxes.tensor.equal(b.pred_boxes.tensor)


def test_attention_whose_weights_are_zero_changes_no_detection_of_any_m():
    plain, attended = make_model(3), make_model(3, contextual=True, spatial=True)
    attended.load_state_dict(plain.state_dict(), strict=False)
    sample = make_sample(3, [(8, 10, 24, 26)], 1)
    [a], [b] = (find(model.eval(), [sample]) for model in (plain, attended))
    assert len(a) and a.scores.equal(b.scores) and a.pred_boxes.tensor.equal(b.pred_boxes.tensor)
    nn.init.normal_(attended.backbone.spatial_attention.scores.weight)
    assert not find(attended, [sample])[0].scores.equal(a.scores)


def test_gradients_reach_every_layer():
    model = make_model(
        3, contextual=True, spatial=True, **{"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 10**5}
    )
    with EventStorage():
        losses = model([make_sample(3, [(8, 10, 24, 26)], 1)])
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0]


def test_the_region_proposals_see_the_key_image_alone():
    model = make_model(3).eval()
    sample = make_sample(3, [(8, 10, 24, 26)], 1)
    proposals = []
    model.proposal_generator.register_forward_hook(lambda m, i, o: proposals.append(o[0][0]))
    others = sample["image"].clone()
    others[:3] = others[6:] = 0
    find(model, [sample])
    find(model, [{**sample, "image": others}])
    assert proposals[0].objectness_logits.equal(proposals[1].objectness_logits)
    others[4] = 0
    find(model, [{**sample, "image": others}])
    assert not proposals[0].objectness_logits.equal(proposals[2].objectness_logits)


def test_detections_do_not_depend_on_the_others_of_a_batch():
    model = make_model(3, contextual=True, spatial=True).eval()
    nn.init.normal_(model.backbone.spatial_attention.scores.weight)
    batch = [make_sample(3, [(8, 10, 24, 26)], seed) for seed in (1, 2)]
    for alone, together in zip(batch, find(model, batch), strict=True):
        torch.testing.assert_close(find(model, [alone])[0].scores, together.scores)


def test_spatial_attention_leaves_the_padding_of_a_batch_out():
    model = make_model(1, spatial=True).eval()
    weights = []
    attention = model.backbone.spatial_attention
    nn.init.normal_(attention.scores.weight)
    attention.register_forward_pre_hook(lambda m, inputs: weights.append(m.weights(*inputs)))
    batch = [{"image": make_sample(1, [], 1)["image"][:, :h, :w]} for h, w in [(64, 41), (30, 64)]]
    find(model, batch)
    assert weights[0].shape[-2:] == (16, 16)
    for found, (height, width) in zip(weights[0], [(16, 11), (8, 16)], strict=True):
        assert (found[..., :height, :width].amax(dim=(2, 3)) == 1).all()


def test_losses_and_gradients_are_finite_in_half_precision():
    model = make_model(3, contextual=True, spatial=True)
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        losses = model([make_sample(3, [(8, 10, 24, 26)], 1)])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_an_image_smaller_than_the_stride_is_refused():
    model = make_model(1).eval()
    with pytest.raises(ValueError, match=r"a\.png: found 9 x 3 pixels, expected at least 4 x 4"):
        find(model, [{"image": torch.zeros(3, 3, 9), "file_name": "a.png"}])
    assert len(find(model, [{"image": torch.zeros(3, 4, 4)}])) == 1


def test_other_slices_than_the_models_are_refused():
    model = make_model(3).eval()
    with pytest.raises(ValueError, match="image: found 3 slices, expected the 9 of MODEL"):
        find(model, [{"image": torch.zeros(3, 64, 64)}])


@pytest.mark.parametrize("num_slices", [5, 6, 11])
def test_slices_that_make_no_odd_number_of_images_are_refused(num_slices):
    values = [127.5] * num_slices
    with pytest.raises(ValueError, match=f"found {num_slices} values .* an odd number of images"):
        make_model(1, **{"MODEL.PIXEL_MEAN": values, "MODEL.PIXEL_STD": values})


def test_another_backbone_name_is_refused():
    changes = {
        "MODEL.BACKBONE.NAME": "build_vgg_backbone",
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["c5"],
    }
    with pytest.raises(ValueError, match="found a VGG, expected 'build_slice_images_backbone'"):
        make_model(1, **changes)
