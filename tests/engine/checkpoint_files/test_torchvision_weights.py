import re

from lesion_d2.engine import LesionCheckpointer
from lesion_d2.engine.checkpoint_files.checkpointer import check_weights
from lesion_d2.engine.checkpoint_files.torchvision_weights import rename_torchvision_weights
from lesion_d2.modeling.backbone import VGG, DenseNet, FusedImages, SliceImages

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.utils.file_io import PathManager
from torch import nn

pytestmark = pytest.mark.usefixtures("quick_weights")


class _Detector(nn.Module):
    """The names that a detector has."""

    def __init__(self, depth: int = 19, **options):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = VGG(depth, **options)
        self.head = nn.Conv2d(4, 4, 1)

    @property
    def vgg(self) -> VGG:
        return self.backbone.bottom_up


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torchvision's files."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def _vgg_features(name: str) -> nn.Module:
    """torchvision's layers before the classifier, whose 120 million weights take long to draw."""
    layers = torchvision.models.vgg.cfgs["E" if "19" in name else "D"]
    return torchvision.models.vgg.make_layers(layers, name.endswith("_bn")).eval()


def _torchvision_file(path, name="vgg19"):
    """Save what torchvision's own constructor makes, with a piece of the classifier."""
    torch.manual_seed(1)
    state = {f"features.{key}": value for key, value in _vgg_features(name).state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    ("name", "depth", "batch_norm"),
    [("vgg16", 16, False), ("vgg19", 19, False), ("vgg16_bn", 16, True), ("vgg19_bn", 19, True)],
)
def test_torchvisions_file_gives_torchvisions_features(tmp_path, name, depth, batch_norm):
    state = _torchvision_file(tmp_path / "weights.pth", name)
    detector = _Detector(depth, batch_norm=batch_norm)
    head = detector.head.weight.clone()
    LesionCheckpointer(detector).load(str(tmp_path / "weights.pth"))
    assert torch.equal(detector.head.weight, head)

    reference = _vgg_features(name)
    reference.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("features.")})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(detector.eval().vgg(images)["c5"], reference(images))


def test_a_backbone_of_slice_images_gets_them_too(tmp_path):
    state = _torchvision_file(tmp_path / "weights.pth", "vgg16")
    detector = nn.Module()
    detector.backbone = SliceImages(VGG(16, pooled_stages=(1, 2, 3)), "c5", 3)
    LesionCheckpointer(detector).load(str(tmp_path / "weights.pth"))
    loaded = detector.backbone.backbone.state_dict()
    assert loaded.keys() == state.keys() - {"classifier.0.weight"}
    assert all(value.equal(state[name]) for name, value in loaded.items())


def _resnet(name: str, seed: int = 3) -> nn.Module:
    """torchvision's, with random statistics."""
    torch.manual_seed(seed)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(std=0.1)
    return model


def _detectron2s_resnet(depth: int, channels: int = 3, **changes) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    for key, value in changes.items():
        cfg.MODEL.RESNETS[key] = value
    detector = nn.Module()
    detector.backbone = nn.Module()
    detector.backbone.bottom_up = build_resnet_backbone(cfg, ShapeSpec(channels=channels))
    return detector.eval()


@pytest.mark.parametrize(
    ("name", "depth", "norm", "source"),
    [
        ("resnet18", 18, "FrozenBN", "file"),
        ("resnet18", 18, "BN", "address"),
        ("resnet50", 50, "FrozenBN", "address"),
        ("resnet50", 50, "BN", "file"),
    ],
)
def test_a_file_of_a_resnet_gives_torchvisions_features(tmp_path, hub, name, depth, norm, source):
    reference = _resnet(name)
    path = f"torchvision://{name}" if source == "address" else str(tmp_path / "weights.pth")
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    file = hub / url.rpartition("/")[2] if source == "address" else path
    torch.save(reference.state_dict(), file)
    detector = _detectron2s_resnet(depth, NORM=norm)
    check_weights(path, detector)
    LesionCheckpointer(detector).load(path)

    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = detector.backbone.bottom_up(images)
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        for stage in range(1, 5):
            x = getattr(reference, f"layer{stage}")(x)
            torch.testing.assert_close(features[f"res{stage + 1}"], x, rtol=1e-4, atol=1e-4)


def test_a_resnet_101_gets_all_of_its_weights(hub):
    reference = _resnet("resnet101")
    url = torchvision.models.get_model_weights("resnet101").DEFAULT.url
    torch.save(reference.state_dict(), hub / url.rpartition("/")[2])
    detector = _detectron2s_resnet(101, channels=9, OUT_FEATURES=["res4"])
    LesionCheckpointer(detector).load("torchvision://resnet101")
    loaded = detector.backbone.bottom_up
    last = reference.layer3[22].conv3.weight
    assert torch.equal(loaded.res4[22].conv3.weight, last)
    stem = reference.conv1.weight.mean(dim=1, keepdim=True).expand(-1, 9, -1, -1) / 3
    torch.testing.assert_close(loaded.stem.conv1.weight, stem)


@pytest.fixture(scope="module")
def resnet_50_file(quick_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "weights.pth"
    torch.save(_resnet("resnet50").state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("depth", "changes", "message"),
    [
        (50, {"STRIDE_IN_1X1": True}, "expected MODEL.RESNETS.STRIDE_IN_1X1 False"),
        (50, {"NORM": "GN"}, "expected batch normalization, such as MODEL.RESNETS.NORM FrozenBN"),
        (50, {"NORM": ""}, "expected batch normalization"),
        (101, {}, r"other blocks: res4.10.conv1.norm.bias is only in the model, and \d+ others"),
        (50, {"RES2_OUT_CHANNELS": 128}, r"of shape .* expected .*\(MODEL.RESNETS\)"),
        (18, {}, r"other blocks: res2\..* is only in the file"),
    ],
)
def test_a_resnet_that_is_not_torchvisions_is_told_of(resnet_50_file, depth, changes, message):
    with torch.device("meta"):
        detector = _detectron2s_resnet(depth, **changes)
    with pytest.raises(ValueError, match=rf"weights\.pth: found .*{message}"):
        check_weights(resnet_50_file, detector)


def test_a_resnet_is_nothing_for_another_backbone(tmp_path, hub):
    state = _resnet("resnet18").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    torch.save(state, hub / url.rpartition("/")[2])
    detector = nn.Module()
    detector.backbone = nn.Conv2d(3, 4, 1)
    with pytest.raises(ValueError, match="none of the model's weights among its 122 names"):
        check_weights(str(tmp_path / "weights.pth"), detector)
    with pytest.raises(ValueError, match="found no torchvision backbone in the model"):
        check_weights("torchvision://resnet18", detector)


def _densenet_file(path, *, old_names):
    """Save a DenseNet-121 with random statistics; its published file has ``norm.1.weight``."""
    torch.manual_seed(2)
    model = torchvision.models.densenet121(weights=None).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    state = model.state_dict()
    if old_names:
        for name in [name for name in state if "denselayer" in name]:
            state[re.sub(r"\.(norm|conv)([12])", r".\1.\2", name)] = state.pop(name)
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, path)
    return model


@pytest.mark.parametrize("old_names", [False, True])
def test_a_file_of_a_densenet_gives_torchvisions_features(hub, old_names):
    model = _densenet_file(hub / "densenet121-a639ec97.pth", old_names=old_names)
    detector = nn.Module()
    detector.backbone = FusedImages(DenseNet(freeze_at=2), ["c2", "c4"], 3)
    check_weights("torchvision://densenet121", detector)
    LesionCheckpointer(detector).load("torchvision://densenet121")
    stack = torch.randn(1, 9, 64, 64)
    with torch.no_grad():
        features = detector.backbone.eval()(stack)
        x = model.features[:4](stack[:, 3:6])
        for block, transition in ((1, 1), (2, 2), (3, None)):
            x = model.features.get_submodule(f"denseblock{block}")(x)
            if f"c{block + 1}" in features:
                torch.testing.assert_close(features[f"c{block + 1}"], x)
            x = model.features.get_submodule(f"transition{transition}")(x) if transition else x


def test_a_densenet_of_c_channels_and_one_of_another_width(tmp_path):
    model = _densenet_file(tmp_path / "densenet121.pth", old_names=True)
    net = DenseNet(in_channels=9)
    LesionCheckpointer(net).load(str(tmp_path / "densenet121.pth"))
    image = torch.full((1, 1, 16, 16), 1.3)
    expected = model.features.conv0(image.expand(-1, 3, -1, -1))
    found = net.features.conv0(image.expand(-1, 9, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    layer = net.features.denseblock3.denselayer24.conv2.weight
    assert layer.equal(model.features.denseblock3.denselayer24.conv2.weight)
    with pytest.raises(ValueError, match=r"denselayer1.* of shape .*torchvision's densenet121"):
        check_weights(str(tmp_path / "densenet121.pth"), DenseNet(growth_rate=16))


def test_names_from_the_constructor_of_the_whole_model():
    with torch.device("meta"):
        names = torchvision.models.vgg19(weights=None).state_dict()
        detector = _Detector()
    rename_torchvision_weights(names, detector)
    wanted = {name for name in detector.state_dict() if name.startswith("backbone.")}
    assert set(names) == wanted


def test_an_address_is_torchvisions_file(hub):
    state = _torchvision_file(hub / "vgg19-dcbb9e9d.pth")
    assert PathManager.get_local_path("torchvision://vgg19") == str(hub / "vgg19-dcbb9e9d.pth")
    detector = _Detector()
    check_weights("torchvision://vgg19", detector)
    LesionCheckpointer(detector).load("torchvision://vgg19")
    assert torch.equal(detector.vgg.features[34].weight, state["features.34.weight"])


def test_a_download_goes_to_torchvisions_folder_and_is_checked(hub, monkeypatch):
    calls = []

    def download(url, file, hash_prefix):
        calls.append((url, hash_prefix))
        _torchvision_file(file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        check_weights("torchvision://vgg19", _Detector())
    assert calls == [("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d")]


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("invalid hash value")])
def test_no_network_and_a_damaged_download_are_one_line(hub, monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(FileNotFoundError, match=rf"vgg19: found no file .*9e9d.pth, .*{error}"):
        check_weights("torchvision://vgg19", _Detector())
    with pytest.raises(ValueError, match=r"torchvision://vgg20: found no model 'vgg20'"):
        check_weights("torchvision://vgg20", _Detector())


def test_another_models_file_says_what_is_missing(tmp_path):
    file = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    detector = _Detector()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    for act in (LesionCheckpointer(detector).load, lambda f: check_weights(f, detector)):
        with pytest.raises(
            ValueError, match=r"resnet.pth: found no features.0.weight, .*features.34.bias among"
        ) as caught:
            act(str(file))
        assert "\n" not in str(caught.value) and "torchvision's vgg19" in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())

    _torchvision_file(tmp_path / "vgg16.pth", "vgg16")
    with pytest.raises(ValueError, match=r"vgg16.pth: found no features.16.weight, "):
        check_weights(str(tmp_path / "vgg16.pth"), detector)


def test_another_width_says_which_shape_was_expected(tmp_path):
    _torchvision_file(tmp_path / "vgg19.pth")
    with torch.device("meta"):
        detector = _Detector(width=32)
    with pytest.raises(
        ValueError, match=r"features.0.weight of shape \(64, 3, 3, 3\), expected \(32, 3, 3, 3\)"
    ):
        check_weights(str(tmp_path / "vgg19.pth"), detector)


def test_the_first_convolution_is_adapted_to_c_slices(tmp_path):
    state = _torchvision_file(tmp_path / "vgg16.pth", "vgg16")
    detector = _Detector(16, in_channels=9)
    LesionCheckpointer(detector).load(str(tmp_path / "vgg16.pth"))
    image = torch.full((1, 1, 8, 8), 1.3)
    first = detector.vgg.features[0]
    expected = nn.functional.conv2d(
        image.expand(-1, 3, -1, -1), state["features.0.weight"], state["features.0.bias"], padding=1
    )
    torch.testing.assert_close(first(image.expand(-1, 9, -1, -1)), expected)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_detectors_own_checkpoint_is_loaded_as_it_is(tmp_path, prefix):
    torch.manual_seed(0)
    source, target = _Detector(16, width=8), _Detector(16, width=8)
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save({"model": state}, tmp_path / "model_final.pth")
    LesionCheckpointer(target).load(str(tmp_path / "model_final.pth"))
    assert all(map(torch.equal, source.state_dict().values(), target.state_dict().values()))


def test_a_bare_backbone_and_several_backbones(tmp_path):
    state = _torchvision_file(tmp_path / "vgg16.pth", "vgg16")
    bare, pair = VGG(16), nn.ModuleDict({"student": _Detector(16), "teacher": _Detector(16)})
    for model in (bare, pair):
        LesionCheckpointer(model).load(str(tmp_path / "vgg16.pth"))
    expected = state["features.28.weight"]
    for vgg in (bare, pair["student"].vgg, pair["teacher"].vgg):
        assert torch.equal(vgg.features[28].weight, expected)
    torch.save({"model": pair["student"].vgg.state_dict()}, tmp_path / "own.pth")
    again = VGG(16)
    LesionCheckpointer(again).load(str(tmp_path / "own.pth"))
    assert torch.equal(again.features[28].weight, expected)


def test_an_address_needs_a_backbone_of_torchvisions(hub):
    _torchvision_file(hub / "vgg16-397923af.pth", "vgg16")
    with pytest.raises(ValueError, match=r"torchvision://vgg16: found no torchvision backbone"):
        check_weights("torchvision://vgg16", nn.Conv2d(3, 64, 3))


def test_detectron2s_matching_of_names_is_left_to_it(tmp_path):
    state = _torchvision_file(tmp_path / "vgg16.pth", "vgg16")
    torch.save({f"bottom_up.{k}": v for k, v in state.items()}, tmp_path / "vgg16.pth")
    detector = _Detector(16)
    LesionCheckpointer(detector).load(f"{tmp_path / 'vgg16.pth'}?matching_heuristics=True")
    assert torch.equal(detector.vgg.features[28].weight, state["features.28.weight"])
