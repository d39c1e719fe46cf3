import lesion_d2
from lesion_d2.modeling import reuse_features
from lesion_d2.modeling.backbone import VGG, SliceImages, build_slice_images_backbone, count_images

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.VGG.DEPTH = 16
    cfg.MODEL.VGG.WIDTH = 8
    cfg.MODEL.VGG.POOLED_STAGES = (1, 2)
    cfg.MODEL.BACKBONE.NAME = "build_slice_images_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RPN.IN_FEATURES = ["c5"]
    cfg.merge_from_list(list(opts))
    return cfg


def _build(num_images, *, attention=False):
    torch.manual_seed(0)
    keys = ("MODEL.RFCN_3DCE.CONTEXTUAL_ATTENTION", "MODEL.RFCN_3DCE.SPATIAL_ATTENTION")
    opts = [value for key in keys for value in (key, attention)]
    backbone = build_slice_images_backbone(_config(*opts), ShapeSpec(channels=3 * num_images))
    for module in (backbone.contextual_attention, backbone.spatial_attention):
        if module is not None:
            nn.init.normal_(module.scores.weight, std=0.3)
    return backbone


def test_images_go_through_one_backbone_and_the_key_image_is_the_middle_one():
    backbone = _build(3).eval()
    stacks = torch.randn(2, 9, 21, 17)
    with torch.no_grad():
        features = backbone(stacks)
        images = [backbone.backbone(stacks[:, 3 * m : 3 * m + 3])["c5"] for m in range(3)]
    assert list(features) == ["c5", "images"]
    torch.testing.assert_close(features["c5"], images[1])
    torch.testing.assert_close(features["images"], torch.cat(images, dim=1))
    for name, shape in backbone.output_shape().items():
        assert shape.stride == 4
        assert features[name].shape == (2, shape.channels, 5, 4)


def test_attention_comes_in_the_papers_order_and_not_before_the_proposals():
    backbone = _build(3, attention=True).eval()
    stacks = torch.randn(2, 9, 20, 16)
    with torch.no_grad():
        features = backbone(stacks)
        plain = torch.stack(
            [backbone.backbone(stacks[:, 3 * m : 3 * m + 3])["c5"] for m in range(3)], dim=1
        )
        attended = backbone.contextual_attention.weights(plain) * plain
        attended = backbone.spatial_attention.weights(attended) * attended
    torch.testing.assert_close(features["c5"], plain[:, 1])
    torch.testing.assert_close(features["images"], attended.flatten(1, 2))
    assert not torch.allclose(attended, plain)


def test_training_and_inference_agree():
    backbone = _build(5, attention=True)  # without batch normalization
    stacks = torch.randn(2, 15, 24, 20)
    with torch.no_grad():
        as_batch, one_by_one = backbone.train()(stacks), backbone.eval()(stacks)
    for name, features in as_batch.items():
        torch.testing.assert_close(features, one_by_one[name])


def test_gradients_reach_every_parameter():
    backbone = _build(3, attention=True)
    sum(f.square().sum() for f in backbone(torch.randn(1, 9, 32, 32)).values()).backward()
    assert not [name for name, p in backbone.named_parameters() if not p.grad.abs().sum() > 0]


def test_another_backbone_gives_its_own_features():
    cfg = _config("MODEL.SLICE_IMAGES.BACKBONE", "build_resnet_backbone")
    cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", ["res3"], "MODEL.RPN.IN_FEATURES", ["res3"]])
    backbone = build_slice_images_backbone(cfg, ShapeSpec(channels=9))
    with torch.no_grad():
        features = backbone(torch.randn(1, 9, 32, 40))
    assert features["res3"].shape == (1, 512, 4, 5)
    assert features["images"].shape == (1, 3 * 512, 4, 5)


@pytest.mark.parametrize(("num_slices", "num_images"), [(3, 1), (9, 3), (15, 5), (21, 7)])
def test_number_of_images(num_slices, num_images):
    assert count_images(num_slices) == num_images


@pytest.mark.parametrize("num_slices", [0, 1, 5, 6, 7, 11, 12])
def test_slices_that_make_no_odd_number_of_images_are_refused(num_slices):
    message = f"MODEL.PIXEL_MEAN: found {num_slices} values .* expected three per image and an odd"
    with pytest.raises(ValueError, match=message):
        build_slice_images_backbone(_config(), ShapeSpec(channels=num_slices))


@pytest.mark.parametrize("names", [["res4"], [], ["c4", "c5"]])
def test_unknown_features_are_refused(names):
    cfg = _config("MODEL.RPN.IN_FEATURES", names)
    with pytest.raises(ValueError, match=r"IN_FEATURES: found \[.*\], expected one of c1, c2"):
        build_slice_images_backbone(cfg, ShapeSpec(channels=3))


def test_a_backbone_in_itself_and_an_even_number_of_images_are_refused():
    name = "build_slice_images_backbone"
    cfg = _config("MODEL.SLICE_IMAGES.BACKBONE", name, "MODEL.BACKBONE.NAME", name)
    with pytest.raises(
        ValueError, match=r"SLICE_IMAGES\.BACKBONE: found .*, expected a backbone for"
    ):
        build_slice_images_backbone(cfg, ShapeSpec(channels=3))
    with pytest.raises(ValueError, match="found 6 values"):
        SliceImages(VGG(16, width=8), "c5", 2)


class _Counting(VGG):
    """Counts the images that it computes features of."""

    num_images = 0

    def forward(self, x):
        """As in VGG."""
        self.num_images += len(x)
        return super().forward(x)


def _counting(num_images):
    torch.manual_seed(0)
    return SliceImages(_Counting(16, width=8, pooled_stages=(1, 2)), "c5", num_images).eval()


def _stacks(volume, num_images, step=1):
    """The stacks around every slice of a volume (Z, H, W); beyond its ends slices repeat."""
    offsets = step * (torch.arange(3 * num_images) - 3 * num_images // 2)
    return [volume[(z + offsets).clamp(0, len(volume) - 1)][None] for z in range(len(volume))]


@pytest.mark.parametrize("step", [1, 2])
def test_neighboring_key_slices_share_images_and_get_the_same_features(step):
    backbone = _counting(5)
    stacks = _stacks(torch.randn(20, 24, 28), 5, step)
    with torch.no_grad():
        plain = [backbone(stack) for stack in stacks]
        counted, backbone.backbone.num_images = backbone.backbone.num_images, 0
        with reuse_features(nn.ModuleList([backbone]), 64):
            reused = [backbone(stack) for stack in stacks]
    assert counted == 5 * 20
    # Every different image once: those around each slice, and one of the first or last slice alone.
    different = {image.numpy().tobytes() for s in stacks for image in s[0].split(3)}
    assert backbone.backbone.num_images == len(different) <= counted / 2
    for a, b in zip(plain, reused, strict=True):
        assert a["c5"].equal(b["c5"]) and a["images"].equal(b["images"])


def test_nothing_is_reused_after_the_context_in_training_or_with_size_0():
    backbone = _counting(3)
    stack = torch.randn(1, 9, 24, 28)
    with torch.no_grad():
        with reuse_features(backbone, 8):
            backbone(stack)
            assert backbone.backbone.num_images == 3
            backbone(stack)
            assert backbone.backbone.num_images == 3
            backbone.train()(stack)
            assert backbone.backbone.num_images == 6
        backbone.eval()(stack)
        assert backbone.backbone.num_images == 9
        with reuse_features(backbone, 0):
            backbone(stack)
        assert backbone.backbone.num_images == 12


def test_an_inner_context_has_a_memory_of_its_own():
    backbone = _counting(1)
    with reuse_features(backbone, 8):
        memory = backbone.memory
        with reuse_features(backbone, 4):
            assert backbone.memory is not memory
        assert backbone.memory is memory
    assert backbone.memory is None


def test_sizes_without_padding_change_what_the_attention_weighs():
    backbone = _build(1, attention=True).eval()
    stack = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(stack)["images"]
        assert not backbone(stack, [(20, 12)])["images"].equal(expected)
        assert backbone(stack, [(32, 32)])["images"].equal(expected)
        assert backbone(stack)["images"].equal(expected)


def test_the_least_recently_used_are_forgotten():
    backbone = _counting(1)
    images = [torch.randn(1, 3, 16, 16) for _ in range(3)]
    with torch.no_grad(), reuse_features(backbone, 2):
        for index, count in [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)]:
            backbone(images[index])
            assert backbone.backbone.num_images == count


def test_images_with_the_same_fingerprint_are_told_apart(monkeypatch):
    monkeypatch.setattr(
        "lesion_d2.modeling.backbone.slice_images._fingerprints", lambda images: [1] * len(images)
    )
    backbone = _counting(3)
    stack = torch.randn(1, 9, 16, 16)
    with torch.no_grad():
        expected = backbone(stack)["images"]
        with reuse_features(backbone, 4):
            assert backbone(stack)["images"].equal(expected)
            assert backbone(stack)["images"].equal(expected)


def test_mirrored_images_are_others():
    backbone = _counting(1)
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad(), reuse_features(backbone, 4):
        for view in (image, image.flip(-1), image.flip(-2)):
            assert backbone(view)["c5"].equal(backbone.backbone(view)["c5"])
