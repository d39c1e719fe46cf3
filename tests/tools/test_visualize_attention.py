import os
from functools import partial
from pathlib import Path

from lesion_d2.data.slices.ct import read_slice
from lesion_d2.data.transforms.borders import body_extent
from lesion_d2.engine import LesionCheckpointer, load_config
from lesion_d2.tools.visualize import attention
from lesion_d2.tools.visualize.__main__ import get_parser, main
from lesion_d2.tools.visualize.attention import (
    Recording,
    attention_config,
    load_attentive_model,
    make_rows,
    record_image,
)
from lesion_d2.visualization import match_outcome, place

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from speed_up import draw_small

CONFIG = Path(__file__).parents[2] / "configs" / "improved_retinanet" / "attention_phantom.yaml"
THIN = {
    "MODEL.VGG.WIDTH": 4,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.UNET_FPN.DECODER_CHANNELS": (8, 4),
    "INPUT.CT.IMAGE_SIZE": 64,
}
LEVELS = ["p4", "p3", "p2", "p1", "p0"]


def command(weights, *arguments, **changes):
    options = {**THIN, **{key.replace("__", "."): value for key, value in changes.items()}}
    words = ["attention", "--config-file", str(CONFIG), "--weights", str(weights)]
    words += ["--dataset", "phantom_test", *arguments]
    return words + [str(word) for pair in options.items() for word in pair]


def save_weights(folder, **changes):
    """Weights of an untrained model, in ``folder/model.pth``."""
    cfg = load_config(get_parser().parse_args(command("", **changes)))
    cfg.MODEL.DEVICE = "cpu"
    LesionCheckpointer(build_model(cfg), str(folder)).save("model", tag_last=False)
    return folder / "model.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"))


def test_a_row_of_heat_maps_an_image_and_a_sheet_of_them(
    tiny_phantom, weights, tmp_path, capsys, monkeypatch
):
    output = ["--pick", "first", "OUTPUT_DIR", str(tmp_path)]
    assert main(command(weights, "--num", "2", *output)) == 0
    images = [record["image_id"] for record in DatasetCatalog.get("phantom_test")]
    folder = tmp_path / "attention" / "phantom_test"
    names = [f"{images[0]}.png", f"{images[1]}.png", "contact_sheet.png"]
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    row, _, sheet = (cv2.imread(str(folder / name)) for name in names)
    width = 7 * 512 + 8 * 8  # slice, five levels, segmentation
    assert row.shape[1] == sheet.shape[1] == width
    assert sheet.shape[0] - row.shape[0] == 40 + 512 + 24 + 8  # title, picture, color bar, gap
    panels = [row[40:552, 8 + 520 * i :][:, :512] for i in range(7)]
    gray = [(panel.max(axis=2) == panel.min(axis=2)).mean() for panel in panels]
    assert gray[0] > 0.7 and max(gray[1:]) < 0.3
    draw_small(monkeypatch)
    assert main(command(weights, "--num", "1", *output)) == 0
    assert sorted(os.listdir(folder)) == sorted([names[0], names[2]])


@pytest.mark.usefixtures("small_pictures")
def test_the_same_seed_gives_the_same_pictures(tiny_phantom, weights, tmp_path, capsys):
    written = []
    for folder in ("a", "b"):
        arguments = ["--num", "1", "--seed", "1", "--output", str(tmp_path / folder)]
        assert main(command(weights, *arguments, "--score-threshold", "0.005")) == 0
        paths = [Path(line) for line in capsys.readouterr().out.split()]
        written.append([(path.name, path.read_bytes()) for path in paths])
    assert written[0] == written[1] and len(written[0]) == 2


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("inclusive", [False, True])
def test_hits_are_judged_as_the_configs_evaluation_does(
    tiny_phantom, weights, tmp_path, monkeypatch, inclusive
):
    found = []

    def record_judge(record, predictions, **options):
        found.append(options)
        return match_outcome(record, predictions, **options)

    monkeypatch.setattr(attention, "match_outcome", record_judge)
    arguments = ["--num", "1", "--output", str(tmp_path), "--score-threshold", "0.5"]
    assert main(command(weights, *arguments, TEST__INCLUSIVE_BOXES=inclusive)) == 0
    assert found == [{"score_threshold": 0.5, "inclusive": inclusive}]


def test_the_recorded_maps_are_those_of_the_forward_pass(weights):
    model = load_attentive_model(attention_config(get_parser().parse_args(command(weights))))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 50, 64, generator=generator) * 255
    recording = record_image(model, {"image": image, "height": 100, "width": 128})
    assert list(recording.attention) == LEVELS

    sizes = [tuple(values.shape) for values in recording.attention.values()]
    assert sizes == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert recording.image_size == (50, 64)
    assert recording.predictions.image_size == (100, 128)
    assert not recording.predictions.has("pred_masks")

    padded = torch.zeros(1, 3, 64, 64)
    padded[0, :, :50] = image / 127.5 - 1
    with torch.inference_mode():
        features = model.backbone(padded)
        logits = model.predict_segmentation(padded, features)
        p1, c1 = model.backbone.reduce_p2(features["p2"]), features["c1"]
        gate, skip = model.backbone.gates["p1"], model.backbone.lateral_p1(c1)
        signal = gate.phi(p1).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        expected = gate.psi((gate.theta(skip) + signal).relu())
    assert torch.allclose(recording.attention["p1"], expected[0, 0], atol=1e-5)

    exponents = logits[0].exp()
    assert torch.allclose(recording.foreground, (exponents[1] / exponents.sum(dim=0)), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 4, 16])
@pytest.mark.parametrize("slice_size", [(40, 80), (20, 40), (10, 20)])
def test_maps_keep_their_place_on_the_slice(stride, slice_size):
    """A map that holds the coordinate of its cells' centers does so for the slice's pixels."""
    cells = (torch.arange(48 // stride) + 0.5) * stride  # padded from 20 x 40 to 48 x 48
    geometry = {"image_size": (20, 40), "extent": (0, 0, *slice_size[::-1])}
    x = place(cells.expand(len(cells), -1), stride, **geometry, slice_size=slice_size)
    y = place(cells[:, None].expand(-1, len(cells)), stride, **geometry, slice_size=slice_size)
    assert x.shape == y.shape == slice_size
    for found, length, image_length in ((x[0], slice_size[1], 40), (y[:, 0], slice_size[0], 20)):
        pixel = image_length / length  # of the image
        centers = (torch.arange(length) + 0.5) * pixel
        # Beyond the first center there is nothing to go by, nor beyond the image's last pixel.
        inside = (centers > stride / 2 + pixel) & (centers < image_length - 1 - pixel)
        np.testing.assert_allclose(found[inside], centers[inside], atol=1e-3)


@pytest.mark.parametrize("stride", [1, 4])
def test_maps_of_a_cropped_image_keep_their_place_on_the_slice(stride):
    cells = (torch.arange(48 // stride) + 0.5) * stride
    geometry = {"image_size": (20, 40), "extent": (30, 10, 50, 20), "slice_size": (60, 64)}
    x = place(cells.expand(len(cells), -1), stride, **geometry)
    y = place(cells[:, None].expand(-1, len(cells)), stride, **geometry)
    shown = np.zeros((60, 64), bool)
    shown[10:20, 30:50] = True
    assert ((~np.isnan(x)) == shown).all() and ((~np.isnan(y)) == shown).all()
    # A pixel of the slice is two of the image; column 30 has its center at 1 there.
    np.testing.assert_allclose(x[15, 32:48], 2 * (np.arange(32, 48) - 30 + 0.5), atol=1e-3)
    np.testing.assert_allclose(y[12:18, 40], 2 * (np.arange(12, 18) - 10 + 0.5), atol=1e-3)


def test_what_the_model_did_not_see_stays_gray(tiny_phantom, weights, tmp_path, capsys):
    record = DatasetCatalog.get("phantom_test")[0]
    bottom = body_extent(read_slice(record["file_name"]), record["spacing"][:2])[3]
    assert bottom < 64
    arguments = ["--num", "1", "--pick", "first", "--output", str(tmp_path)]
    assert main(command(weights, *arguments, INPUT__CT__CROP_TO_BODY=True)) == 0
    row = cv2.imread(capsys.readouterr().out.split()[0])[40:552]
    for start in range(8 + 520, 7 * 520, 520):  # the heat maps
        panel = row[:, start : start + 512]
        gray = panel.max(axis=2) == panel.min(axis=2)
        assert gray[8 * bottom :].all() and not gray[8 * (bottom - 1) : 8 * bottom].any()


def made_up_recording(*, low, high):
    attention = {level: torch.full((2, 2), high) for level in ("p1", "p0")}
    attention["p1"][0, 0] = low
    attention["p0"] = attention["p0"].repeat(2, 2)
    predictions = Instances((8, 8))
    predictions.pred_boxes = Boxes(torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]]))
    predictions.scores = torch.tensor([0.9, 0.2])
    return Recording(attention, torch.full((4, 4), 0.25), (4, 4), (0, 0, 8, 8), predictions)


def test_images_share_the_scale_of_a_level():
    record = {"image_id": "a", "height": 8, "width": 8, "annotations": []}
    recordings = [made_up_recording(low=0.25, high=0.5), made_up_recording(low=0.375, high=0.75)]
    rows = make_rows([record, record], recordings)
    for row in rows:
        titles = ["attention P1\n2 x 2", "attention P0\n4 x 4"]
        titles.append("segmentation\nprobability of a lesion")
        assert [heat_map.title for heat_map in row.heat_maps] == titles
        scales = [(heat_map.low, heat_map.high) for heat_map in row.heat_maps]
        assert scales == [(0.25, 0.75), (0.5, 0.75), (0, 1)]
        assert all(heat_map.values.shape == (8, 8) for heat_map in row.heat_maps)
        assert row.outcome is None
    assert rows[0].heat_maps[0].values[0, 0] == 0.25 and rows[0].heat_maps[0].values[7, 7] == 0.5
    judge_image = partial(match_outcome, score_threshold=0.5)
    rows = make_rows([record, record], recordings, judge_image=judge_image)
    assert rows[0].outcome.predictions.scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MODEL__UNET_FPN__ATTENTION": False},
            "MODEL.UNET_FPN.ATTENTION: found False with MODEL.BACKBONE.NAME",
        ),
        ({"MODEL__UNET_FPN__GATES": True}, "Non-existent key: MODEL.UNET_FPN.GATES"),
        ({"MODEL__VGG__WIDTH": 8}, "of the model's weights missing or of another shape, "),
    ],
)
def test_bad_models_are_one_line(tiny_phantom, weights, tmp_path, capsys, changes, message):
    output = ["--output", str(tmp_path / "out")]
    assert main(command(weights, *output, **changes)) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_weights_without_gates_are_refused(tiny_phantom, tmp_path, capsys):
    weights = save_weights(tmp_path, MODEL__UNET_FPN__ATTENTION=False)
    assert main(command(weights, "--output", str(tmp_path / "out"))) == 1
    error = capsys.readouterr().err
    assert "found 25 of the model's weights missing or of another shape, such as " in error
    assert "such as backbone.gates.p0.theta.weight; expected" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "missing.pth"], "missing.pth: no such weight file"),
        (["--config-file", "missing.yaml"], "--config-file missing.yaml: "),
        (["--dataset", "phantom_tset"], "found data set 'phantom_tset', which is not registered"),
        (["--channel", "3"], "--channel: found 3 with gates, which have one map for all channels"),
        (["--window", "240", "-160", "--num", "1"], "window: found '240 -160'"),
    ],
)
def test_bad_arguments_are_one_line(tiny_phantom, weights, tmp_path, capsys, arguments, message):
    assert main(command(weights, "--output", str(tmp_path / "out"), *arguments)) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"error: {message}")
