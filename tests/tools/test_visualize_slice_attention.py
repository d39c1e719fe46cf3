import os
from functools import partial
from pathlib import Path

from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine import LesionCheckpointer, load_config
from lesion_d2.modeling import ContextualAttention, SliceImages, SpatialAttention
from lesion_d2.tools.visualize import slice_attention
from lesion_d2.tools.visualize.__main__ import get_parser, main
from lesion_d2.tools.visualize.attention import attention_config, load_attentive_model
from lesion_d2.tools.visualize.slice_attention import (
    SlicePage,
    SliceRecording,
    lesion_region,
    record_slices,
)
from lesion_d2.visualization import FALSE_POSITIVE_COLOR, HIT_COLOR, TRUTH_COLOR, match_outcome

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, Instances
from slice_files import write_slice
from speed_up import draw_small
from torch import nn

CONFIGS = Path(__file__).parents[2] / "configs" / "3dce_attention"
THIN = {
    "MODEL.VGG.WIDTH": 4,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "INPUT.CT.PIXEL_SPACING": 0.0,
    "INPUT.CT.MAX_SIZE": 0,
    "INPUT.CT.IMAGE_SIZE": 64,
    "INPUT.CT.CROP_TO_BODY": False,
}


def command(name, weights, *arguments, **changes):
    options = {**THIN, **{key.replace("__", "."): value for key, value in changes.items()}}
    words = ["attention", "--config-file", str(CONFIGS / f"{name}_phantom.yaml")]
    words += ["--weights", str(weights), "--dataset", "phantom_test", *arguments]
    return words + [str(word) for pair in options.items() for word in pair]


def save_weights(folder, name, **changes):
    """Weights of an untrained model whose attention is not the same everywhere."""
    cfg = load_config(get_parser().parse_args(command(name, "", **changes)))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    for attention in (model.backbone.contextual_attention, model.backbone.spatial_attention):
        if attention is not None:
            nn.init.normal_(attention.scores.weight)
    LesionCheckpointer(model, str(folder)).save(name, tag_last=False)
    return folder / f"{name}.pth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"), "3dce_9_cs")


def test_a_page_an_image_and_a_sheet_of_them(tiny_phantom, weights, tmp_path, capsys, monkeypatch):
    output = ["--pick", "first", "OUTPUT_DIR", str(tmp_path)]
    assert main(command("3dce_9_cs", weights, "--num", "2", *output)) == 0
    records = DatasetCatalog.get("phantom_test")[:2]
    assert [len(record["annotations"]) for record in records] == [1, 2]
    folder = tmp_path / "attention" / "phantom_test"
    names = [*(f"{record['image_id']}.png" for record in records), "contact_sheet.png"]
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    one, two, sheet = (cv2.imread(str(folder / name)) for name in names)
    slices, spatial = 40 + 512 + 8 + 8, 40 + 512 + 24 + 8 + 8
    table = 40 + 3 * 40 + 48 + 24 + 8 + 8
    lesion, title, legend = slices + table, 40 + 8 + 8, 26
    assert len(one) == slices + spatial + lesion + title + legend
    assert len(two) == len(one) + lesion
    assert (sheet == np.concatenate([one, two])).all()
    assert one.shape[1] == 3 * 512 + 4 * 8 + 2 * 8 + 2 * 8
    draw_small(monkeypatch)
    assert main(command("3dce_9_cs", weights, "--num", "1", *output)) == 0
    assert sorted(os.listdir(folder)) == sorted([names[0], names[2]])


@pytest.mark.parametrize(
    ("name", "has"), [("3dce_9_c", (True, False)), ("3dce_9_s", (False, True))]
)
def test_without_an_attention_its_part_is_left_out(tiny_phantom, tmp_path, capsys, name, has):
    weights = save_weights(tmp_path, name)
    arguments = ["--num", "1", "--pick", "first", "--output", str(tmp_path / "out")]
    arguments += ["--score-threshold", "0.1"]
    assert main(command(name, weights, *arguments)) == 0
    page = cv2.imread(capsys.readouterr().out.split()[0])
    parts = [568, has[1] * 592, has[0] * (568 + 248)]
    legend = 26
    assert len(page) == sum(parts) + 56 + legend


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "3dce_9",
            {},
            "MODEL.RFCN_3DCE: found CONTEXTUAL_ATTENTION False and SPATIAL_ATTENTION False, "
            "expected at least one of them True",
        ),
        (
            "3dce_9_cs",
            {"MODEL__VGG__WIDTH": 8},
            "of the model's weights missing or of another shape, ",
        ),
    ],
)
def test_bad_models_are_one_line(tiny_phantom, weights, tmp_path, capsys, name, changes, message):
    assert main(command(name, weights, "--output", str(tmp_path / "out"), **changes)) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("channel", [-1, 32])
def test_a_channel_that_is_not_there_is_one_line(tiny_phantom, weights, tmp_path, capsys, channel):
    arguments = ["--output", str(tmp_path / "out"), "--channel", str(channel)]
    assert main(command("3dce_9_cs", weights, *arguments)) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    expected = f"error: --channel: found {channel}, expected 0 to 31, a channel of the features"
    assert errors == [expected] and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_pictures")
def test_other_detectors_on_slice_images_have_attention_too(tiny_phantom, tmp_path):
    changes = {
        "MODEL__META_ARCHITECTURE": "LesionRCNN",
        "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
    }
    weights = save_weights(tmp_path, "3dce_9_cs", **changes)
    arguments = ["--num", "1", "--pick", "first", "--channel", "0", "--score-threshold", "0.1"]
    arguments += ["--output", str(tmp_path / "out")]
    assert main(command("3dce_9_cs", weights, *arguments, **changes)) == 0
    changes["MODEL__RFCN_3DCE__CONTEXTUAL_ATTENTION"] = False
    changes["MODEL__RFCN_3DCE__SPATIAL_ATTENTION"] = False
    cfg = attention_config(get_parser().parse_args(command("3dce_9_cs", weights, **changes)))
    with pytest.raises(ValueError, match="found CONTEXTUAL_ATTENTION False and SPATIAL"):
        load_attentive_model(cfg)


def test_weights_without_the_attention_are_refused(tiny_phantom, tmp_path, capsys):
    weights = save_weights(tmp_path, "3dce_9_c")
    assert main(command("3dce_9_cs", weights, "--output", str(tmp_path / "out"))) == 1
    error = capsys.readouterr().err
    assert "found 1 of the model's weights missing or of another shape, such as " in error
    assert "such as backbone.spatial_attention.scores.weight" in error


def test_the_recorded_weights_are_those_of_the_forward_pass(tiny_phantom, weights):
    """Against equations (1) to (8), written out in NumPy."""
    cfg = attention_config(get_parser().parse_args(command("3dce_9_cs", weights)))
    model, mapper = load_attentive_model(cfg), LesionDatasetMapper(cfg, is_train=False)
    record = DatasetCatalog.get("phantom_test")[0]
    recording = record_slices(model, mapper, record)
    assert recording.stride == 4 and recording.interval == 2.0
    assert recording.channels == "mean of 32 channels"

    mean, std = (torch.tensor(cfg.MODEL[key])[:, None, None] for key in ("PIXEL_MEAN", "PIXEL_STD"))
    images = (mapper(record)["image"] - mean) / std
    with torch.inference_mode():
        features = [model.backbone.backbone(images[None, 3 * m : 3 * m + 3]) for m in range(3)]
    x = np.stack([f["c5"][0].double().numpy() for f in features])  # M, D, h, w
    phi_c = model.backbone.contextual_attention.scores.weight[:, :, 0, 0].detach().double().numpy()
    phi_s = model.backbone.spatial_attention.scores.weight[:, :, 0, 0].detach().double().numpy()
    c = np.exp(np.einsum("ed,mdhw->mehw", phi_c, x) / 2.0)
    c /= c.sum(axis=0)
    c /= c.max(axis=0)
    s = np.exp(np.einsum("ed,mdhw->mehw", phi_s, c * x) / 3.0)
    s /= s.sum(axis=(2, 3), keepdims=True)
    s /= s.max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(recording.contextual, c.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(recording.spatial, s.mean(axis=1), atol=1e-4)

    one = record_slices(model, mapper, record, channel=31)
    assert one.channels == "channel 31"
    np.testing.assert_allclose(one.contextual, c[:, 31], atol=1e-4)
    np.testing.assert_allclose(one.spatial, s[:, 31], atol=1e-4)
    assert one.contextual.amax(dim=0).min() == 1 and one.spatial.amax(dim=(1, 2)).min() == 1
    assert np.ptp(c.mean(axis=1)) > 0.1 and np.ptp(s.mean(axis=1)) > 0.1

    low, high = mapper.hu_window
    middle = mapper(record)["image"][1::3] / 255 * (high - low) + low
    np.testing.assert_allclose(recording.slices.clip(low, high), middle, atol=1e-2)
    assert recording.slices.base is None  # of the whole stack


class Intensity(Backbone):
    """One feature: the mean intensity of the middle channel in 4 x 4 pixels."""

    def forward(self, x):
        return {"c5": F.avg_pool2d(x[:, 1:2], 4)}

    def output_shape(self):
        return {"c5": ShapeSpec(channels=1, stride=4)}


class FindsNothing(nn.Module):
    """A model that looks at slices, padded at the right and below, and finds nothing in them."""

    def __init__(self, padding=(0, 0)):
        super().__init__()
        self.padding = padding
        contextual, spatial = ContextualAttention(1), SpatialAttention(1)
        contextual.scores.weight.data.fill_(0.5)
        spatial.scores.weight.data.fill_(0.5)
        self.backbone = SliceImages(
            Intensity(), "c5", 3, contextual_attention=contextual, spatial_attention=spatial
        )

    def forward(self, batched_inputs):
        image = batched_inputs[0]["image"]
        rows, columns = self.padding
        self.backbone(F.pad(image, (0, columns, 0, rows))[None], [tuple(image.shape[-2:])])
        nothing = Instances((32, 48), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        return [{"instances": nothing}]


def write_record(folder, bright, size=(32, 48)):
    """Slices 1 to 9 at 2 mm, of 32 x 48 pixels, the key slice is 5; one patch is bright."""
    number, rows, columns = bright
    for index in range(1, 10):
        hu = np.full(size, -50)
        if index == number:
            hu[rows, columns] = 100
        write_slice(folder / f"{index:03d}.png", hu)
    # Of pixels named by whole numbers: the box's edges are at 12 and 20, 8 and 16.
    lesion = {"bbox": [11.5, 7.5, 19.5, 15.5], "bbox_mode": 0, "category_id": 0, "row": 2}
    return {
        "image_id": "a",
        "file_name": str(folder / "005.png"),
        "height": size[0],
        "width": size[1],
        "spacing": (1.0, 1.0, 2.0),
        "slice_range": (1, 9),
        "window": (-100.0, 100.0),
        "annotations": [lesion],
    }


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize(("number", "name"), [(2, "K-1"), (5, "K"), (8, "K+1")])
def test_the_bright_slice_wins_where_it_is_bright(tmp_path, monkeypatch, number, name):
    record = write_record(tmp_path, (number, slice(12, 16), slice(12, 16)))
    mapper = LesionDatasetMapper(False, augmentations=[], num_slices=9, hu_window=(-50, 50))
    recording = record_slices(FindsNothing().eval(), mapper, record)
    index = (2, 5, 8).index(number)
    assert recording.name(index) == name
    tables = []
    draw = slice_attention.heat_table

    def keep(values, rows, columns, **options):
        """Keep what is drawn."""
        tables.append((values, rows, columns))
        return draw(values, rows, columns, **options)

    monkeypatch.setattr(slice_attention, "heat_table", keep)
    SlicePage(recording).draw()
    [(values, rows, columns)] = tables
    assert rows == ["K-1", "K", "K+1"] and columns == ["0, 0", "0, 1", "1, 0", "1, 1"]
    expected = np.ones((3, 4))
    expected[:, 2] = np.exp(-0.5 * 255 / 2)  # the lower left cell
    expected[index, 2] = 1
    np.testing.assert_allclose(values, expected, atol=1e-6)
    # The bright patch alone is looked at in its slice; the others are plain.
    spatial = np.ones((3, 8, 12))
    spatial[index] = np.exp(-0.5 * 255 / 3)
    spatial[index, 3, 3] = 1
    np.testing.assert_allclose(recording.spatial, spatial, atol=1e-6)


@pytest.mark.parametrize("padding", [(2, 1), (10, 5)])  # to the stride, and beyond
def test_maps_of_a_padded_image_are_those_of_its_part(tmp_path, padding):
    record = write_record(tmp_path, (5, slice(8, 12), slice(8, 12)), size=(30, 47))
    mapper = LesionDatasetMapper(False, augmentations=[], num_slices=9, hu_window=(-150, 250))
    model = FindsNothing(padding).eval()
    model.backbone.spatial_attention.scores.weight.data.fill_(-0.5)  # most for the padding's 0
    recording = record_slices(model, mapper, record)
    assert recording.image_size == (30, 47) and recording.extent == (0, 0, 47, 30)
    intensity = np.full((3, 8, 12), 255 / 4)
    intensity[1, 2, 2] *= 2.5
    intensity[:, 7] *= 2 / 4  # two rows of four are the image's
    intensity[:, :, 11] *= 3 / 4
    contextual = np.exp(0.5 * (intensity - intensity.max(axis=0)) / 2)
    np.testing.assert_allclose(recording.contextual, contextual, atol=1e-5)
    scores = -0.5 * contextual * intensity
    spatial = np.exp((scores - scores.max(axis=(1, 2), keepdims=True)) / 3)
    np.testing.assert_allclose(recording.spatial, spatial, atol=1e-5)


@pytest.mark.parametrize("stride", [4, 8])
def test_a_lesions_region_is_every_position_that_it_has_a_part_of(stride):
    rng = np.random.default_rng(stride)
    size = (40 // stride, 56 // stride)
    for _ in range(50):
        corner = rng.uniform(-0.5, [54, 38])
        box = [*corner, *np.minimum(corner + rng.uniform(0.5, 30, 2), [55.5, 39.5])]
        if rng.random() < 0.3:
            box = (np.round(np.array(box) / stride) * stride - 0.5).tolist()
            box[2:] = np.maximum(box[2:], np.array(box[:2]) + stride)
        found = np.zeros(size, bool)
        found[lesion_region(box, stride, size)] = True
        left, top, right, bottom = np.array(box) + 0.5
        for i in range(size[0]):
            for j in range(size[1]):
                width = min(right, stride * (j + 1)) - max(left, stride * j)
                height = min(bottom, stride * (i + 1)) - max(top, stride * i)
                assert found[i, j] == (width > 0 and height > 0)


@pytest.mark.parametrize(
    ("box", "region"), [([60, 60, 70, 70], (9, 13)), ([-9, -9, -5, -5], (0, 0))]
)
def test_a_lesion_outside_of_the_image_has_the_nearest_position(box, region):
    rows, columns = lesion_region(box, 4, (10, 14))
    assert (rows, columns) == tuple(slice(i, i + 1) for i in region)


def made_up_recording(**changes):
    """Of a slice of 40 x 60 pixels, of which the image has 32 x 48 at twice the size."""
    lesion = {"bbox": [19.5, 11.5, 12.0, 10.0], "bbox_mode": 1, "category_id": 0, "row": 2}
    record = {"image_id": "a", "height": 40, "width": 60, "annotations": [lesion]}
    record |= {"window": (-100.0, 100.0)}
    predictions = Instances((40, 60))
    boxes = [[20.5, 12.5, 31.5, 21.5], [41.5, 23.5, 51.5, 33.5], [11.5, 25.5, 15.5, 33.5]]
    predictions.pred_boxes = Boxes(torch.tensor(boxes))
    predictions.scores = torch.tensor([0.9, 0.8, 0.1])
    fields = {
        "record": record,
        "slices": np.zeros((3, 40, 60), np.int16),
        "contextual": None,
        "spatial": None,
        "channels": "channel 0",
        "stride": 8,
        "image_size": (64, 96),
        "extent": (10, 4, 58, 36),
        "interval": 2.0,
        "predictions": predictions,
    }
    return SliceRecording(**{**fields, **changes})


def tile_of(page, index, top=0):
    """One of the tiles in a row of pictures of the slice, 9 times as large."""
    left = 8 + index * (60 * 9 + 8)
    return page[top + 40 : top + 40 + 40 * 9, left : left + 60 * 9]


def outline(tile, color, scale=9):
    """x0, y0, x1, y1 of what has a color, in pixels of the slice."""
    rows, columns = np.nonzero((np.abs(tile - 255 * np.array(color)) < 60).all(axis=2))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / scale


def test_lesions_and_detections_are_drawn_at_their_place_on_the_key_slice():
    recording = made_up_recording()
    page = SlicePage(recording).draw()
    # The edges of a box lie half a pixel from the middle of the pixels that it names.
    assert np.abs(outline(tile_of(page, 1), TRUTH_COLOR) - [20, 12, 32, 22]).max() < 0.4
    others = [tile_of(page, index) for index in (0, 2)]
    assert all(np.ptp(tile.astype(int), axis=2).max() == 0 for tile in others)
    found = tile_of(SlicePage(recording).draw(partial(match_outcome, score_threshold=0.5)), 1)
    # Away from the corners, where the score stands.
    (x0, _, x1, _), (_, y0, _, y1) = (
        outline(found[15 * 9 : 20 * 9], HIT_COLOR),
        outline(found[:, 29 * 9 : 31 * 9], HIT_COLOR),
    )
    assert np.abs(np.array([x0, y0, x1, y1]) - [21, 13, 32, 22]).max() < 0.4
    assert np.abs(outline(found[24 * 9 :], FALSE_POSITIVE_COLOR)[0] - 42) < 0.4
    assert not (np.abs(found[:, : 18 * 9] - 255 * np.array(FALSE_POSITIVE_COLOR)) < 60).all(2).any()


def test_the_masks_of_detections_lie_on_the_slice():
    recording = made_up_recording()
    recording.predictions.pred_masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    recording.predictions.pred_masks[0, 15:19, 24:28] = True
    tile = tile_of(SlicePage(recording).draw(partial(match_outcome, score_threshold=0.5)), 1)
    inside = tile[14 * 9 : 20 * 9, 22 * 9 : 30 * 9].astype(int)
    rows, columns = np.nonzero(inside[..., 1] - inside[..., 0] > 10)  # green
    assert (rows.min(), rows.max() + 1) == (9, 45) and (columns.min(), columns.max() + 1) == (
        18,
        54,
    )


def test_the_cells_around_a_lesion_are_those_of_the_features():
    page = SlicePage(made_up_recording(contextual=torch.ones(3, 8, 12))).draw()
    tile = tile_of(page, 0, 40 + 40 * 9 + 8 + 8)
    lines = np.ptp(tile.astype(int), axis=2) > 20
    # The lesion is at x 20 to 44 and y 16 to 36 of the image, so in columns 2 to 5 and rows 2 to 4
    # of the features. Those are x 18 to 34 and y 12 to 24 of the slice, and in the middle of a view
    # twice as high: 36 x 24 pixels from (8, 6) on, each of them 15 pixels of the tile.
    for axis, edges, across in (
        (0, np.arange(18, 35, 4) - 8, slice(6 * 15, 18 * 15)),
        (1, np.arange(12, 25, 4) - 6, slice(10 * 15, 26 * 15)),
    ):
        found = np.flatnonzero((lines[across] if axis == 0 else lines[:, across]).all(axis=axis))
        expected = [edge * 15 + side for edge in edges for side in (-1, 0)]
        assert set(found) <= set(expected)
        assert len({expected.index(i) // 2 for i in found}) == len(edges)
    assert not lines[:, : 10 * 15 - 1].any() and not lines[:, 26 * 15 + 1 :].any()
    assert not lines[: 6 * 15 - 1].any() and not lines[18 * 15 + 1 :].any()


def test_spatial_maps_share_a_scale():
    maps = torch.full((3, 8, 12), 0.2)
    maps[0] = 0.8
    maps[1, 5, 9] = 1.0
    page = SlicePage(made_up_recording(spatial=maps)).draw()
    slices = 40 + 40 * 9 + 8 + 8
    tiles = [tile_of(page, index, slices).astype(int) for index in range(3)]
    plain, key, low = (tile[4 * 9 : 36 * 9, 10 * 9 : 58 * 9] for tile in tiles)  # the image
    assert np.ptp(plain.reshape(-1, 3), axis=0).max() <= 1
    assert np.ptp(low.reshape(-1, 3), axis=0).max() <= 1
    assert plain[0, 0, 0] > low[0, 0, 0] + 50

    red = key[..., 0] - key[..., 1]  # not the yellow box
    y, x = np.argwhere(red == red.max()).mean(axis=0) / 9
    assert abs(y - 4 * 5.5) < 0.5 and abs(x - 4 * 9.5) < 0.5
    assert np.abs(key[-1, 0] - low[0, 0]).max() <= 1
    for tile in tiles:
        borders = [tile[: 4 * 9], tile[36 * 9 :], tile[:, : 10 * 9], tile[:, 58 * 9 :]]
        assert not np.any([np.ptp(border, axis=2).any() for border in borders])

    bars = [page[slices + 40 + 40 * 9 :, 8 + i * 548 :][:24, : 60 * 9] for i in range(3)]
    assert (bars[0] == bars[1]).all() and (bars[0] == bars[2]).all() and bars[0].any()


@pytest.mark.usefixtures("small_pictures")
def test_only_the_first_lesions_have_tables():
    recording = made_up_recording(contextual=torch.ones(3, 8, 12))
    lesion = recording.record["annotations"][0]
    heights = []
    for number in (1, 2, 4, 5):
        recording.record["annotations"] = [lesion] * number
        heights.append(len(SlicePage(recording).draw()))
    part = heights[1] - heights[0]
    assert heights == [heights[0] + part * more for more in (0, 1, 3, 3)]


@pytest.mark.usefixtures("small_pictures")
def test_an_image_without_lesions_has_no_tables():
    recording = made_up_recording(contextual=torch.ones(3, 8, 12))
    recording.record["annotations"] = []
    page = SlicePage(recording).draw()
    assert len(page) == len(SlicePage(made_up_recording()).draw())
