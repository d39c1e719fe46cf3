import logging
import os
import pickle

from lesion_d2.engine import LesionCheckpointer
from lesion_d2.engine.checkpoint_files.checkpointer import (
    check_predictor,
    check_weights,
    load_trained,
)
from lesion_d2.engine.checkpoint_files.first_convolution import adapt_slices, check_slices
from lesion_d2.modeling import ContextualAttention
from lesion_d2.modeling.backbone import VGG, SliceImages

import numpy as np
import pytest
import torch
from torch import nn


class _Detector(nn.Module):
    """The names that a detector of Detectron2 has, with one convolution."""

    def __init__(self, channels: int):
        super().__init__()
        stem = nn.Module()
        stem.conv1 = nn.Conv2d(channels, 4, 7, bias=False)
        bottom_up = nn.Module()
        bottom_up.stem = stem
        self.backbone = nn.Module()
        self.backbone.bottom_up = bottom_up
        self.register_buffer("pixel_mean", torch.zeros(channels, 1, 1), persistent=False)

    @property
    def conv1(self) -> nn.Conv2d:
        return self.backbone.bottom_up.stem.conv1


_STEM = "backbone.bottom_up.stem.conv1.weight"


def _rgb_weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 5, 9])
@pytest.mark.parametrize("kind", ["caffe2.pkl", "torchvision.pkl", "detector.pth"])
def test_constant_images_keep_their_activations_with_c_channels(tmp_path, channels, kind, caplog):
    weight = _rgb_weight()
    path = str(tmp_path / kind)
    if kind == "detector.pth":
        torch.save({"model": {"backbone.bottom_up.stem.conv1.weight": weight}}, path)
    elif kind == "caffe2.pkl":
        _dump({"blobs": {"conv1_w": weight.numpy()}}, path)
    else:
        model = {"stem.conv1.weight": weight.numpy()}
        _dump({"model": model, "__author__": "torchvision", "matching_heuristics": True}, path)

    detector = _Detector(channels)
    with caplog.at_level(logging.INFO, logger="lesion_d2"):
        LesionCheckpointer(detector).load(path)

    rgb = torch.nn.functional.conv2d(torch.full((1, 3, 9, 9), 1.7), weight)
    ours = detector.conv1(torch.full((1, channels, 9, 9), 1.7))
    torch.testing.assert_close(ours, rgb)
    assert f"from 3 to {channels} input channels" in caplog.text


def test_three_channels_are_loaded_as_they_are(tmp_path):
    weight = _rgb_weight()
    path = str(tmp_path / "detector.pth")
    torch.save({"model": {"backbone.bottom_up.stem.conv1.weight": weight}}, path)
    detector = _Detector(3)
    LesionCheckpointer(detector).load(path)
    assert torch.equal(detector.conv1.weight, weight)


@pytest.mark.parametrize("shape", [(4, 5, 7, 7), (4, 3, 3, 3), (8, 3, 7, 7)])
def test_other_shapes_are_not_adapted(shape):
    weights = {"stem.conv1.weight": torch.zeros(shape)}
    adapt_slices(weights, {"backbone.bottom_up.stem.conv1.weight": torch.zeros(4, 9, 7, 7)})
    assert weights["stem.conv1.weight"].shape == shape


@pytest.mark.parametrize("name", ["stem.conv1", "features.conv0", "patch_embed.proj", "conv_stem"])
@pytest.mark.parametrize("prefix", ["", "module.backbone.bottom_up."])
def test_the_first_convolution_of_any_backbone_is_adapted(name, prefix):
    weights = {f"{prefix}{name}.weight": _rgb_weight(), "norm.weight": torch.ones(4)}
    adapt_slices(weights, {f"backbone.bottom_up.{name}.weight": torch.zeros(4, 9, 7, 7)})
    expected = _rgb_weight().mean(dim=1, keepdim=True).expand(-1, 9, -1, -1) / 3
    torch.testing.assert_close(weights[f"{prefix}{name}.weight"], expected)
    assert torch.equal(weights["norm.weight"], torch.ones(4))


def test_a_first_convolution_in_3d_is_adapted():
    weights = {"stem.conv1.weight": torch.ones(4, 3, 3, 7, 7)}
    adapt_slices(weights, {"backbone.stem.conv1.weight": torch.zeros(4, 1, 3, 7, 7)})
    assert torch.equal(weights["stem.conv1.weight"], torch.full((4, 1, 3, 7, 7), 3.0))


def test_weights_for_five_slices_are_refused_by_a_model_of_nine(tmp_path):
    path = str(tmp_path / "five.pth")
    torch.save({"model": _Detector(5).state_dict()}, path)
    detector, other = _Detector(9), _Detector(9)
    del other.pixel_mean  # a part of a model, which says nothing of its images
    message = r"five\.pth: found weights for images of 5 slices .*stem.conv1.weight\), expected 9"
    with pytest.raises(ValueError, match=message):
        LesionCheckpointer(detector).load(path)
    check_slices(torch.load(path)["model"], other)


@pytest.mark.parametrize("kind", ["caffe2.pkl", "detector.pth"])
def test_what_is_evaluated_or_resumed_is_not_adapted(tmp_path, kind):
    path = str(tmp_path / kind)
    if kind == "detector.pth":
        torch.save({"model": _Detector(3).state_dict()}, path)
    else:
        _dump({"blobs": {"conv1_w": _rgb_weight().numpy()}}, path)
    detector = _Detector(9)
    check_weights(path, detector)

    message = rf"{kind}: found weights for images of 3 slices .*, expected 9 .INPUT.CT.NUM_SLICES"
    with pytest.raises(ValueError, match=message):
        check_weights(path, detector, for_training=False)
    with pytest.raises(ValueError, match=message):
        load_trained(LesionCheckpointer(detector), path)

    trained = LesionCheckpointer(detector, other=_Detector(9))
    before = detector.conv1.weight.clone()
    with pytest.raises(ValueError, match=message):
        trained.load(path)
    assert torch.equal(detector.conv1.weight, before)

    trained.load(path, checkpointables=[])
    assert not torch.equal(detector.conv1.weight, before)


@pytest.mark.parametrize("for_training", [True, False])
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_a_file_with_nothing_for_the_model_is_told_of(tmp_path, ending, for_training):
    path = tmp_path / f"weights{ending}"
    names = {"encoder.weight": np.zeros((4, 3, 7, 7)), "x.conv1.weight": np.zeros((4, 3, 7, 7))}
    if ending == ".pth":
        torch.save({name: torch.as_tensor(value) for name, value in names.items()}, path)
    else:
        _dump(names, path)
    message = rf"weights{ending}: found none of the model's weights .* 2 names such as encoder"
    with pytest.raises(ValueError, match=message):
        check_weights(str(path), _Detector(3), for_training=for_training)
    detector = _Detector(3)
    with pytest.raises(ValueError, match=message):
        LesionCheckpointer(detector).load(str(path))


def test_a_checkpoint_of_c_channels_comes_back_unchanged(tmp_path):
    saved = _Detector(9)
    LesionCheckpointer(saved, str(tmp_path)).save("model_0000001")
    loaded = _Detector(9)
    LesionCheckpointer(loaded, str(tmp_path)).resume_or_load("", resume=True)
    assert torch.equal(saved.conv1.weight, loaded.conv1.weight)


def _predictor(num_rows: int, name: str = "roi_heads.box_predictor.cls_score.weight") -> dict:
    return {name: torch.zeros(num_rows, 4)}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "found, expected, advice",
    [
        (2, 3, "for 1 class, expected 2 .*without the class of false.*StandardROIHeads.* 1 "),
        (3, 2, "for 2 classes, expected 1 .*with the class of false.*ULDorROIHeads and N.* 2 "),
        (9, 10, "for 8 classes, expected 9 .*without the class of false.*NUM_CLASSES 8 "),
    ],
)
def test_an_rcnn_with_one_class_more_or_less_is_not_for_this_model(found, expected, advice, prefix):
    weights = _predictor(found, f"{prefix}roi_heads.box_predictor.cls_score.weight")
    for for_training in (True, False):
        with pytest.raises(ValueError, match=advice) as error:
            check_predictor(weights, _predictor(expected), for_training=for_training)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "found, expected",
    [
        (_predictor(81), _predictor(2)),  # of COCO
        (_predictor(9, "head.cls_score.weight"), _predictor(8, "head.cls_score.weight")),
    ],
)
def test_training_may_start_from_a_detector_of_other_classes(found, expected):
    check_predictor(found, expected)
    with pytest.raises(ValueError, match=r"found .* expected"):
        check_predictor(found, expected, for_training=False)


def _attentive(*, num_images: int = 1, contextual: bool = False) -> nn.Module:
    """A detector as those of configs/3dce_attention, as far as its names and shapes go."""
    detector = nn.Module()
    detector.backbone = SliceImages(
        VGG(16, width=2, batch_norm=True),
        "c5",
        num_images,
        contextual_attention=ContextualAttention(16) if contextual else None,
    )
    detector.box_head = nn.Linear(10 * num_images, 4)
    return detector


@pytest.mark.parametrize(
    ("trained", "used", "message"),
    [
        (
            {},
            {"num_images": 3},
            "found 1 of .* missing or of another shape, such as box_head.weight;",
        ),
        (
            {},
            {"contextual": True},
            "found 1 of .* such as backbone.contextual_attention.scores.weight",
        ),
        ({"contextual": True}, {}, "found backbone.contextual_attention.scores.weight, which the"),
    ],
)
def test_weights_of_another_model_are_for_training_alone(tmp_path, trained, used, message):
    """Their detections would be some of chance, without a word but in the log."""
    path = str(tmp_path / "weights.pth")
    torch.save({"model": _attentive(**trained).state_dict()}, path)
    check_weights(path, _attentive(**trained), for_training=False)
    check_weights(path, _attentive(**used))
    with pytest.raises(ValueError, match=rf"weights.pth: {message}") as error:
        check_weights(path, _attentive(**used), for_training=False)
    assert "\n" not in str(error.value)


def test_weights_for_the_same_classes_or_without_any_are_good():
    for weights in (_predictor(2), {"backbone.conv.weight": torch.zeros(1)}):
        check_predictor(weights, _predictor(2), for_training=False)


def test_loading_weights_for_one_class_more_changes_nothing_and_names_the_file(tmp_path):
    path = str(tmp_path / "uldor.pth")
    torch.save({"model": {**_predictor(3), "backbone.weight": torch.ones(1)}}, path)
    model = nn.Module()
    model.backbone, model.roi_heads = nn.Linear(1, 1), nn.Module()
    model.roi_heads.box_predictor = nn.Module()
    model.roi_heads.box_predictor.cls_score = nn.Linear(4, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"uldor\.pth: found a class predictor for 2 classes"):
        LesionCheckpointer(model).load(path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_best_checkpoint_does_not_become_the_last(tmp_path):
    checkpointer = LesionCheckpointer(_Detector(3), str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.save("model_best", tag_last=False)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_a_write_that_dies_half_way_leaves_the_old_file_and_tag(tmp_path, monkeypatch):
    checkpointer = LesionCheckpointer(_Detector(3), str(tmp_path))
    checkpointer.save("model_final")
    before = _contents(tmp_path)
    with torch.no_grad():
        checkpointer.model.conv1.weight.add_(1)

    def half(data, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    for name in ("model_final", "model_0000005"):
        with pytest.raises(OSError, match="No space left"):
            checkpointer.save(name)
        assert _contents(tmp_path) == before


def test_a_tag_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    checkpointer = LesionCheckpointer(_Detector(3), str(tmp_path))
    checkpointer.tag_last_checkpoint("model_0000001.pth")
    before = _contents(tmp_path)

    def replace(source, target):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output"):
        checkpointer.tag_last_checkpoint("model_0000002.pth")
    assert _contents(tmp_path) == before


def test_what_a_killed_write_left_behind_is_overwritten(tmp_path):
    (tmp_path / ".last_checkpoint.part").write_bytes(b"x" * 1000)
    LesionCheckpointer(_Detector(3), str(tmp_path)).tag_last_checkpoint("model_final.pth")
    assert _contents(tmp_path) == {"last_checkpoint": b"model_final.pth"}


@pytest.mark.parametrize("ending", [".pth", ".pkl"])
@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "other content"])
def test_what_is_no_checkpoint_is_named(tmp_path, ending, kind):
    path = tmp_path / f"weights{ending}"
    if ending == ".pth":
        torch.save({"model": {_STEM: torch.zeros(4, 3, 7, 7)}}, path)
    else:
        _dump({"model": {_STEM: np.zeros((4, 3, 7, 7))}, "__author__": "x"}, path)
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "other content":
        content = {"model": {"a": "text"}, "__author__": "x"}
        torch.save(content, path) if ending == ".pth" else _dump(content, path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"<html>404</html>")

    detector = _Detector(3)
    checkpointer = LesionCheckpointer(detector)
    before = detector.conv1.weight.clone()
    with pytest.raises(ValueError, match=rf"weights{ending}: found no complete checkpoint"):
        checkpointer.load(str(path))
    assert torch.equal(detector.conv1.weight, before)
    with pytest.raises(ValueError, match=rf"weights{ending}: found no complete checkpoint"):
        check_weights(str(path))

    path.write_bytes(whole)  # the checkpointer is still good
    checkpointer.load(str(path))
    check_weights(str(path))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such weight file"):
        LesionCheckpointer(_Detector(3)).load(str(tmp_path / "gone.pth"))


def _contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _dump(content: dict, path: str | os.PathLike) -> None:
    with open(path, "wb") as file:
        pickle.dump(content, file)
