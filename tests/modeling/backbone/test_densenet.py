import lesion_d2
from lesion_d2.modeling.backbone import DenseNet, build_densenet_backbone

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn

SMALL = {"stem_channels": 8, "growth_rate": 4}


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.DENSENET.STEM_CHANNELS = 8
    cfg.MODEL.DENSENET.GROWTH_RATE = 4
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("depth", [121, 169, 201])
def test_layers_are_torchvisions(depth):
    with torch.device("meta"):
        ours = DenseNet(depth, num_blocks=4)
        theirs = getattr(torchvision.models, ours.torchvision_name)(weights=None)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    expected = {n: v.shape for n, v in theirs.state_dict().items() if n.startswith("features.")}
    last_norm = {name for name in expected if name.startswith("features.norm5.")}
    assert last_norm and shapes == {n: v for n, v in expected.items() if n not in last_norm}
    norms = [theirs.features.get_submodule(f"transition{i}.norm") for i in (1, 2, 3)]
    channels = [norm.num_features for norm in (*norms, theirs.features.norm5)]
    assert channels == [shape.channels for shape in ours.output_shape().values()]


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_features_are_torchvisions_dense_blocks(blocks):
    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(4, (6, 12, 24, 16), 8).eval()
    cfg = _config(
        "MODEL.DENSENET.NUM_BLOCKS", blocks, "MODEL.DENSENET.MEMORY_EFFICIENT", blocks > 2
    )
    ours = build_densenet_backbone(cfg, ShapeSpec(channels=3)).eval()
    assert ours.features.denseblock1.denselayer1.memory_efficient == (blocks > 2)
    assert not ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys

    seen = []
    for i in range(1, blocks + 1):
        block = theirs.features.get_submodule(f"denseblock{i}")
        block.register_forward_hook(lambda block, args, output: seen.append(output.clone()))
    images = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        theirs(images)
        features = ours(images)
    assert list(features) == [f"c{i + 1}" for i in range(1, blocks + 1)]
    for expected, (name, found) in zip(seen, features.items(), strict=True):
        assert found.equal(expected) and ours.output_shape()[name].channels == found.shape[1]


@pytest.mark.parametrize("channels", [1, 9])
def test_shapes_with_c_channels(channels):
    ours = DenseNet(in_channels=channels, **SMALL)
    features = ours(torch.randn(1, channels, 64, 96))
    assert {name: shape.stride for name, shape in ours.output_shape().items()} == {
        "c2": 4,
        "c3": 8,
        "c4": 16,
    }
    for name, shape in ours.output_shape().items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == (1, shape.channels, *size)
    # torchvision's initialization: He's, whose variance is 2 over the fan-in.
    std = DenseNet(in_channels=channels).features.conv0.weight.std().item()
    assert std == pytest.approx((2 / (49 * channels)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("freeze_at", "first"),
    [
        (0, "conv0.weight"),
        (1, "denseblock1.denselayer1.norm1.weight"),
        (2, "transition1.norm.weight"),
        (3, "transition2.norm.weight"),
    ],
)
def test_frozen_stages_are_not_trained(freeze_at, first):
    torch.manual_seed(0)
    net = DenseNet(freeze_at=freeze_at, **SMALL).train()
    names = [name for name, _ in net.named_parameters()]
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    sum(f.square().sum() for f in net(torch.randn(2, 3, 64, 64)).values()).backward()
    trained = [n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()]
    assert trained == names[names.index(f"features.{first}") :]
    assert len(names) == len(set(names))
    modules = dict(net.named_modules())
    norms = [name for name in modules if name.rpartition(".")[2].startswith("norm")]
    for name in norms:
        kept = before[f"{name}.running_mean"].equal(modules[name].running_mean)
        is_trained = f"{name}.weight" in trained
        assert is_trained == isinstance(modules[name], nn.BatchNorm2d) == (not kept), name


def test_frozen_stages_compute_the_same():
    torch.manual_seed(0)
    trained, frozen = DenseNet(**SMALL).eval(), DenseNet(freeze_at=4, **SMALL).eval()
    for norm in (m for m in trained.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    frozen.load_state_dict(trained.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(frozen(images), trained(images))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("DEPTH", 161, r"one of \[121, 169, 201\]"),
        ("NUM_BLOCKS", 0, "1 to 4"),
        ("NUM_BLOCKS", 5, "1 to 4"),
        ("STEM_CHANNELS", 0, "at least 1"),
        ("GROWTH_RATE", -1, "at least 1"),
    ],
)
def test_options_out_of_range_are_refused(key, value, expected):
    message = rf"MODEL.DENSENET.{key}: found {value}, expected {expected}"
    with pytest.raises(ValueError, match=message):
        build_densenet_backbone(_config(f"MODEL.DENSENET.{key}", value), ShapeSpec(channels=3))


def test_the_memory_efficient_one_is_the_same_network():
    """Outputs, gradients and running statistics, for fewer kept tensors."""
    plain = DenseNet(num_blocks=2, stem_channels=8, growth_rate=4)
    efficient = DenseNet(num_blocks=2, stem_channels=8, growth_rate=4, memory_efficient=True)
    efficient.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kept, outputs = [], []
    for model in (plain.train(), efficient.train()):
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs.append(model(images)["c3"])
        outputs[-1].square().mean().backward()
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.7 * kept[0]
    torch.testing.assert_close(outputs[1], outputs[0])
    for (name, a), b in zip(plain.named_parameters(), efficient.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), efficient.buffers(), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(b, a, msg=name)
