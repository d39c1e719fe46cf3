import itertools
import math

from lesion_d2.engine import load_config
from lesion_d2.inference import Ensemble
from lesion_d2.inference.ensemble import consolidate
from lesion_d2.inference.tiles import Tile, make_tiles

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from seeing_detector import SCORES, Seeing, make_image, make_inputs
from tiny_run import tiny_config, uldor_args
from whole_masks import whole_masks

FLIPS = ((), (-1,), (-2,), (-2, -1))  # of the views, in their order


def _truth(size, rectangles, scale):
    """Boxes and masks on a slice that has ``scale`` times the image's size."""
    height, width = (round(scale * s) for s in size)
    boxes = scale * torch.tensor(rectangles, dtype=torch.float64).reshape(-1, 4) - 0.5
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, (boxes + 0.5).round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return boxes, masks


# Multiples of 3 and 6, so that pixels of image and slice have common borders.
RECTANGLES = [(3, 6, 12, 9), (33, 0, 51, 27), (15, 12, 21, 33)]


@pytest.mark.parametrize("scale", [1, 2, 2 / 3, 4 / 3])
@pytest.mark.parametrize("size", [(33, 51), (57, 51)])
def test_every_view_comes_back_to_the_untouched_slice(size, scale):
    models = [Seeing(), Seeing(masks=True, trust=0.5)]
    image = make_image(size, RECTANGLES)
    detections = Ensemble(models).views(make_inputs(image, scale))
    boxes, masks = _truth(size, RECTANGLES, scale)

    for view in range(8):
        is_here = detections.view_ids == view
        found = detections.instances[is_here]
        assert found.image_size == tuple(masks.shape[1:])
        assert found.pred_classes.tolist() == [0, 1, 2]
        assert torch.equal(found.scores, SCORES * (1.0 if view < 4 else 0.5))
        np.testing.assert_allclose(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-4)
        assert torch.equal(whole_masks(detections, is_here), masks)
    assert len(detections.instances) == 24
    assert detections.num_views.tolist() == [8] * 24
    assert detections.center_weights.tolist() == [1.0] * 24
    for model in models:
        assert len(model.seen) == 4 and model.batches == [4]
        for seen, flip in zip(model.seen, FLIPS, strict=True):
            assert torch.equal(seen, image[0].flip(flip))


@pytest.mark.parametrize("method", ["wbc", "nms"])
def test_what_all_views_agree_on_stays_as_it_is(method):
    image = make_image((33, 51), RECTANGLES)
    ensemble = Ensemble([Seeing(), Seeing()], consolidation=method)
    [output] = ensemble([make_inputs(image)])
    boxes, masks = _truth((33, 51), RECTANGLES, 1)
    found = output["instances"]
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    np.testing.assert_allclose(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.scores, SCORES)
    assert found.pred_classes.tolist() == [0, 1, 2] and found.pred_classes.dtype == torch.int64
    assert torch.equal(found.pred_masks, masks)


def test_models_without_masks_and_the_most_detections():
    image = make_image((33, 51), RECTANGLES)
    found = Ensemble([Seeing(masks=False)], max_detections=2)([make_inputs(image)])[0]["instances"]
    assert not found.has("pred_masks")
    assert found.pred_classes.tolist() == [0, 1]


def test_a_missing_view_lowers_the_score():
    image = make_image((33, 51), RECTANGLES)
    models = [Seeing(blind=(1, 2)), Seeing(trust=0.8)]
    found = Ensemble(models)([make_inputs(image)])[0]["instances"]
    # Formula (2) with equal boxes, so equal weights: 2 views missing of 8.
    torch.testing.assert_close(found.scores, SCORES * (2 * 1.0 + 4 * 0.8) / 8)


@pytest.mark.parametrize("seed", range(20))
def test_tiles_cover_the_image_evenly_and_overlap_enough(seed):
    rng = np.random.default_rng(seed)
    height, width, tile = rng.integers(1, 200, size=3).tolist()
    overlap = float(rng.choice([0.0, 0.1, 0.5, 0.9, 0.99]))
    tiles = make_tiles((height, width), tile, overlap)
    if height <= tile and width <= tile:
        assert tiles == [Tile((0, 0), (height, width))]
    lefts, tops = sorted({t.start[1] for t in tiles}), sorted({t.start[0] for t in tiles})

    assert [t.start for t in tiles] == list(itertools.product(tops, lefts))
    for starts, side, lengths in (
        (lefts, width, {t.size[1] for t in tiles}),
        (tops, height, {t.size[0] for t in tiles}),
    ):
        assert lengths == {min(tile, side)}
        assert starts[0] == 0 and starts[-1] + min(tile, side) == side
        gaps = np.diff(starts)
        if len(gaps):
            assert gaps.max() - gaps.min() <= 1
            # A gap of one pixel is the least there is.
            assert gaps.max() <= max(1, tile - overlap * tile + 1e-9)


@pytest.mark.parametrize("scale", [1, 2, 2 / 3])
def test_what_tiles_cut_comes_back_in_place(scale):
    size, tile_size = (60, 90), 36
    rectangles = [(6, 6, 12, 15), (30, 3, 48, 51), (78, 54, 90, 60)]
    image = make_image(size, rectangles)
    ensemble = Ensemble([Seeing(), Seeing()], tile_size=tile_size, tile_overlap=0.5)
    detections = ensemble.views(make_inputs(image, scale))
    tiles = make_tiles(size, tile_size, 0.5)
    assert [t.start[::-1] for t in tiles] == list(
        (x, y) for y in (0, 12, 24) for x in (0, 18, 36, 54)
    )

    num_cut = 0
    for view, (_, tile, _) in enumerate(itertools.product(range(2), tiles, range(4))):
        is_here = detections.view_ids == view
        found = detections.instances[is_here]
        cut = {}
        for category, (x1, y1, x2, y2) in enumerate(rectangles):
            box = (
                max(x1, tile.start[1]),
                max(y1, tile.start[0]),
                min(x2, tile.start[1] + tile_size),
                min(y2, tile.start[0] + tile_size),
            )
            if box[0] < box[2] and box[1] < box[3]:
                cut[category] = box
                num_cut += box != (x1, y1, x2, y2)
        assert found.pred_classes.tolist() == list(cut)
        boxes, masks = _truth(size, list(cut.values()), scale)
        np.testing.assert_allclose(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-4)
        assert torch.equal(whole_masks(detections, is_here), masks)
    assert num_cut > 8
    assert int(detections.view_ids.max()) < 2 * 12 * 4


def test_an_image_that_fits_into_a_tile_is_taken_whole():
    image = make_image((33, 51), RECTANGLES)
    plain = Ensemble([Seeing()], mirrors=False).views(make_inputs(image, 2))
    model = Seeing()
    tiled = Ensemble([model], mirrors=False, tile_size=51).views(make_inputs(image, 2))
    assert [tuple(seen.shape) for seen in model.seen] == [(33, 51)]
    assert torch.equal(tiled.instances.pred_boxes.tensor, plain.instances.pred_boxes.tensor)
    assert torch.equal(whole_masks(tiled), whole_masks(plain))
    assert tiled.center_weights.tolist() == [1.0] * 3 and tiled.num_views.tolist() == [1] * 3


@pytest.mark.parametrize("consolidation", ["wbc", "nms"])
def test_tiles_leave_no_fragments_of_an_object_at_their_seams(consolidation):
    """65 places of an object, and a detector that finds exactly what each tile shows of it.

    Its score is the share of the object that it sees.
    """
    size = 24 * 20
    counts = {None: 0, 0.2: 0}
    for threshold in counts:
        options = {"tile_size": 64, "mirrors": False, "consolidation": consolidation}
        model = Seeing(masks=False)
        look = model.look

        def look_and_doubt(inputs, look=look):
            found = look(inputs)
            found.scores = found.scores * (inputs["image"][0] > 0).sum() / size
            return found

        model.look = look_and_doubt
        ensemble = Ensemble([model], iou_threshold=threshold, **options)
        for left, top in itertools.product(range(10, 75, 5), range(20, 70, 10)):
            image = make_image((128, 128), [(left, top, left + 24, top + 20)])
            [output] = ensemble([make_inputs(image, 1)])
            counts[threshold] += len(output["instances"]) > 1
    assert counts[None] == 0  # by default
    assert counts[0.2] > 0  # as without tiles


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    "rectangle, num_tiles",
    [((4, 4, 10, 12), 1), ((24, 4, 30, 12), 2), ((24, 26, 32, 34), 4), ((34, 4, 42, 12), 2)],
)
def test_an_object_in_several_tiles_keeps_its_score(rectangle, num_tiles, scale):
    image = make_image((60, 60), [rectangle])
    model = Seeing()
    ensemble = Ensemble([model], mirrors=False, tile_size=40)
    detections = ensemble.views(make_inputs(image, scale))
    assert detections.num_views.tolist() == [num_tiles] * num_tiles

    seen = [(left, top) for top in (0, 20) for left in (0, 20)]
    for weight, view, box in zip(
        detections.center_weights.tolist(),
        detections.view_ids.tolist(),
        ((detections.instances.pred_boxes.tensor + 0.5) / scale - 0.5).tolist(),
        strict=True,
    ):
        left, top = seen[view]
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        densities = [
            math.exp(-(((c - (start + 19.5)) / (0.4 * 40)) ** 2) / 2)
            for c, start in ((x, left), (y, top))
        ]
        assert weight == pytest.approx(math.prod(densities), abs=1e-6)

    [output] = ensemble([make_inputs(image, scale)])
    torch.testing.assert_close(output["instances"].scores, SCORES[:1])
    # Blind in one of the tiles, where each sees the whole object:
    model = Seeing(blind=(int(detections.view_ids[0]),))
    [output] = Ensemble([model], mirrors=False, tile_size=40)([make_inputs(image, scale)])
    expected = SCORES[:1] * (num_tiles - 1) / num_tiles
    torch.testing.assert_close(output["instances"].scores, expected[: num_tiles - 1])


@pytest.mark.parametrize("method", ["wbc", "nms"])
@pytest.mark.parametrize("masks", [True, False])
def test_nothing_found_in_any_view(method, masks):
    ensemble = Ensemble([Seeing(masks=masks)], tile_size=20, consolidation=method)
    [output] = ensemble([make_inputs(torch.zeros(3, 33, 51), 2)])
    found = output["instances"]
    assert len(found) == 0 and found.image_size == (66, 102)
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.has("pred_masks") == masks
    if masks:
        assert found.pred_masks.shape == (0, 66, 102)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="models: found none"):
        Ensemble([])
    with pytest.raises(ValueError, match="consolidation: found 'mean', expected 'wbc' or 'nms'"):
        Ensemble([Seeing()], consolidation="mean")
    for name, value in (
        ("tile_size", -1),
        ("tile_overlap", 1.0),
        ("tile_overlap", -0.5),
        ("iou_threshold", 1.0),
        ("max_detections", 0),
    ):
        with pytest.raises(ValueError, match=f"{name}: found {value}, expected"):
            Ensemble([Seeing()], **{name: value})
    ensemble = Ensemble([Seeing()])
    assert not ensemble.training and not ensemble.models[0].training
    with pytest.raises(RuntimeError, match="training mode"):
        ensemble.train()([make_inputs(torch.zeros(3, 8, 8))])


@pytest.mark.parametrize("method", ["wbc", "nms"])
def test_a_score_that_is_no_number_is_refused(method):
    image = make_image((20, 30), [(3, 4, 10, 12)])
    ensemble = Ensemble([Seeing(trust=math.nan)], consolidation=method)
    with pytest.raises(ValueError, match="scores of 4 detections: found a number that is not"):
        ensemble([{"image": image}])


@pytest.fixture(scope="module")
def retina_unet():
    torch.manual_seed(0)
    cfg = tiny_config(MODEL__RETINANET__SCORE_THRESH_TEST=0.0, MODEL__SEG_HEAD__PREDICT_MASKS=True)
    model = build_model(cfg).eval()
    torch.nn.init.zeros_(model.seg_predictor.bias)  # so that masks are not empty
    return model


def test_one_plain_view_is_the_model_itself(retina_unet):
    inputs = {"image": torch.rand(3, 64, 52) * 255, "height": 90, "width": 80}
    with torch.no_grad():
        [expected] = retina_unet([inputs])
    expected = expected["instances"]
    iou_threshold = retina_unet.test_nms_thresh
    ensemble = Ensemble(
        [retina_unet],
        mirrors=False,
        consolidation="nms",
        iou_threshold=iou_threshold,
        max_detections=retina_unet.max_detections_per_image,
    )
    views = ensemble.views(inputs)
    found = views.instances
    fields = ("scores", "pred_classes", "pred_masks")

    assert len(expected) > 50 and expected.pred_masks.any() and not found.scores.requires_grad
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    for field in fields[:2]:
        assert torch.equal(found.get(field), expected.get(field))
    assert torch.equal(whole_masks(views), expected.pred_masks)

    # The model cuts boxes at the border after its NMS, so that a second one finds some more.
    boxes = expected.pred_boxes.tensor
    kept = batched_nms(boxes, expected.scores, expected.pred_classes, iou_threshold)
    found, expected = ensemble([inputs])[0]["instances"], expected[kept]
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    for field in fields:
        assert torch.equal(found.get(field), expected.get(field))


def test_mirrored_views_of_a_mirrored_image_are_the_same_views(retina_unet):
    image = torch.rand(3, 64, 52) * 255
    here, mirrored = (
        Ensemble([retina_unet]).views({"image": view, "height": 90, "width": 80})
        for view in (image, image.flip(-1))
    )
    for view, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        is_here, is_there = here.view_ids == view, mirrored.view_ids == other
        found, expected = here.instances[is_here], mirrored.instances[is_there]
        boxes = expected.pred_boxes.tensor[:, [2, 1, 0, 3]]
        boxes[:, [0, 2]] = 79 - boxes[:, [0, 2]]
        torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-4)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(whole_masks(here, is_here), whole_masks(mirrored, is_there).flip(-1))


@pytest.mark.parametrize("method", ["wbc", "nms"])
@pytest.mark.parametrize("tile_size", [0, 48])
def test_half_precision_finds_about_the_same(retina_unet, method, tile_size):
    inputs = {"image": torch.rand(3, 64, 90) * 255, "height": 128, "width": 180}
    options = {"tile_size": tile_size, "consolidation": method, "iou_threshold": 0.2}
    ensemble = Ensemble([retina_unet], **options)
    [expected] = ensemble([inputs])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        detections = ensemble.views(inputs)
        [output] = ensemble([inputs])
    assert detections.instances.scores.dtype == torch.bfloat16  # what autocast gives, not us
    assert detections.center_weights.dtype == torch.float32
    boxes = consolidate(detections, method).pred_boxes.tensor  # without autocast
    assert torch.equal(boxes, output["instances"].pred_boxes.tensor)
    found, expected = output["instances"], expected["instances"]
    assert len(found) > 10 and found.pred_masks.shape == (len(found), 128, 180)
    assert found.pred_boxes.tensor.dtype == torch.float32
    best = slice(0, 5)  # bfloat16 rounds by 2^-8 in each of some layers
    torch.testing.assert_close(found.scores[best].float(), expected.scores[best], rtol=0.03, atol=0)


def test_a_two_stage_model_in_tiles():
    torch.manual_seed(0)
    cfg = load_config(uldor_args("output", MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0))
    model = build_model(cfg)
    ensemble = Ensemble([model], tile_size=48)
    found = ensemble([{"image": torch.rand(3, 64, 90) * 255, "height": 128, "width": 180}])[0][
        "instances"
    ]
    assert len(found) > 5 and found.pred_masks.shape[1:] == (128, 180)
    assert not found.scores.diff().gt(0).any()
    boxes = found.pred_boxes.tensor
    assert boxes.min() >= -2 and boxes[:, 2].max() <= 182 and boxes[:, 3].max() <= 130
