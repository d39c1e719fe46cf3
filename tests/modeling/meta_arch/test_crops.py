"""Models that see a part of the slice answer in pixels of the slice."""

import copy

import lesion_d2
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.pseudo_masks import ellipse_mask
from lesion_d2.engine import load_config

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from slice_files import write_slice
from tiny_run import tiny_args, uldor_args
from torch.nn import functional as F


def _model(architecture, **changes):
    torch.manual_seed(0)
    build_args = uldor_args if architecture == "LesionRCNN" else tiny_args
    options = {
        "MODEL__META_ARCHITECTURE": architecture,
        "MODEL__SEG_HEAD__PREDICT_MASKS": True,
        "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
        **changes,
    }
    model = build_model(load_config(build_args("output", **options))).eval()
    predictor = {"DetUNet": "head", "RetinaUNet": "seg_predictor"}.get(architecture)
    if predictor:  # so that masks are not empty
        torch.nn.init.zeros_(getattr(model, predictor).bias)
    return model


def _perfect(truth):
    """What a model would find that finds the truth exactly."""
    found = Instances(truth.image_size, pred_boxes=Boxes(truth.gt_boxes.tensor.clone()))
    found.scores = torch.linspace(0.9, 0.5, len(truth))
    found.pred_classes = torch.zeros(len(truth), dtype=torch.int64)
    return found


def _let_find(model, architecture, truth):
    """Let a model find boxes and masks; what comes after is its own."""
    masks = truth.gt_masks.tensor
    logits = 20.0 * F.one_hot(masks.any(dim=0).long(), 2).permute(2, 0, 1)[None].float()
    height, width = (-(-side // 32) * 32 for side in masks.shape[1:])  # the batch's padding
    logits = F.pad(logits, (0, width - masks.shape[2], 0, height - masks.shape[1]))
    if architecture == "DetUNet":
        model.head.forward = lambda p0: logits
        return
    if architecture == "RetinaUNet":
        model.forward_inference = lambda *args: [_perfect(truth)]
        model.predict_segmentation = lambda *args: logits
        return
    found = _perfect(truth)
    found.pred_masks = torch.ones(len(truth), 1, 28, 28)
    model.roi_heads.forward = lambda *args: ([found], {})


def _sample(tmp_path, seed, *opts, even=False):
    """A slice with a body in a random place, three lesions in it, and what the mapper makes of it.

    ``even``: lesions and crop begin and end at even pixels.
    """
    rng = np.random.default_rng(seed)
    height, width = (rng.integers(60, 75, 2) * 2).tolist()
    x0, y0 = (rng.integers(3, 14, 2) * 2).tolist()
    x1, y1 = width - int(rng.integers(3, 8) * 2), height - int(rng.integers(3, 8) * 2)
    hu = np.full((height, width), -1000)
    hu[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5] = 30  # and a margin of 5
    write_slice(tmp_path / "010.png", hu)
    annotations = []
    for row, left in enumerate((0.05, 0.36, 0.68)):
        left += x0 + left * (x1 - x0) + rng.uniform(0, 4)
        top = y0 + rng.uniform(2, 40)
        w, h = rng.uniform(8, 20), rng.uniform(8, 24)
        box = np.array([left, top, left + w, top + h])
        if even:  # outer borders of pixels
            box = (box / 2).round() * 2 - 0.5
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        recist = [box[0], y, box[2], y, x, box[1], x, box[3]]
        annotations.append(
            {
                "bbox": box.tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "recist": recist,
                "row": row,
            }
        )
    spacing = tuple(rng.uniform(0.5, 1.2, 2).tolist())
    record = {"file_name": str(tmp_path / "010.png"), "image_id": "010", "window": (-175, 275)}
    record |= {"height": height, "width": width, "spacing": (*spacing, 2.0)}
    record |= {"slice_range": (10, 10), "slice_index": 10, "annotations": annotations}
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.merge_from_list(["INPUT.CT.CROP_TO_BODY", True, "MODEL.MASK_ON", True, *opts])
    inference = LesionDatasetMapper(cfg, False)
    training = LesionDatasetMapper(cfg, True, augmentations=inference.augmentations.augs)
    sample = inference(record)
    assert sample["crop"] == (x0, y0, x1, y1)
    return sample, training(record)["instances"], annotations


SIZES = (
    ("INPUT.CT.IMAGE_SIZE", 0),
    ("INPUT.CT.IMAGE_SIZE", 97),
    ("INPUT.CT.PIXEL_SPACING", 0.8),
    ("INPUT.CT.PIXEL_SPACING", 0.31, "INPUT.CT.MAX_SIZE", 131),
)


@pytest.mark.parametrize("architecture", ["LesionRCNN", "RetinaUNet"])
@pytest.mark.parametrize("opts", SIZES)
def test_boxes_come_back_to_the_slice_that_the_mapper_cut(architecture, opts, tmp_path):
    model = _model(architecture, MODEL__MASK_ON=architecture == "LesionRCNN")
    for seed in range(8):
        sample, truth, annotations = _sample(tmp_path, seed, *opts)
        _let_find(model, architecture, truth)
        with torch.no_grad():
            found = model([sample])[0]["instances"]
        assert found.image_size == (sample["height"], sample["width"])
        expected = torch.tensor([a["bbox"] for a in annotations])
        torch.testing.assert_close(found.pred_boxes.tensor, expected, atol=1e-3, rtol=0)
        assert found.pred_masks.shape == (3, *found.image_size)


@pytest.mark.parametrize("scale", [1, 2])
def test_components_come_back_to_the_slice_that_the_mapper_cut(scale, tmp_path):
    """At sizes where components keep their pixels: the image's, and half of it."""
    model = _model("DetUNet", INPUT__BOX_MARGIN=0.0)
    for seed in range(8):
        sample, _, annotations = _sample(tmp_path, seed, "INPUT.CT.IMAGE_SIZE", 0, even=True)
        x0, y0, x1, y1 = sample["crop"]
        size = ((y1 - y0) // scale, (x1 - x0) // scale)
        sample["image"] = F.interpolate(sample["image"][None], size)[0]
        truth = Instances(size)
        masks = torch.zeros(3, *size, dtype=torch.bool)
        boxes = torch.tensor([a["bbox"] for a in annotations])
        corners = (boxes + 0.5 - torch.tensor([x0, y0, x0, y0])).round().int() // scale
        for mask, (left, top, right, bottom) in zip(masks, corners.tolist(), strict=True):
            mask[top:bottom, left:right] = True
        truth.gt_masks = BitMasks(masks)
        _let_find(model, "DetUNet", truth)
        with torch.no_grad():
            found = model([sample])[0]["instances"]
        order = found.pred_boxes.tensor[:, 0].argsort()
        torch.testing.assert_close(found.pred_boxes.tensor[order], boxes, atol=1e-3, rtol=0)
        for mask, box in zip(found.pred_masks[order], boxes, strict=True):
            left, top, right, bottom = (box + 0.5).round().int().tolist()
            assert mask[top:bottom, left:right].all()
            assert mask.sum() == (bottom - top) * (right - left)


def test_masks_come_back_to_the_same_pixels(tmp_path):
    model = _model("RetinaUNet")
    for seed in range(4):
        sample, truth, annotations = _sample(tmp_path, seed, "INPUT.CT.IMAGE_SIZE", 0)
        _let_find(model, "RetinaUNet", truth)
        with torch.no_grad():
            found = model([sample])[0]["instances"]
        for mask, annotation in zip(found.pred_masks, annotations, strict=True):
            expected = ellipse_mask(annotation["recist"], sample["height"], sample["width"])
            assert np.array_equal(mask, expected) and expected.sum() > 40


@pytest.mark.parametrize(
    "architecture, calibration",
    [("LesionRCNN", 0.0), ("RetinaUNet", 0.0), ("RetinaUNet", 1.0), ("DetUNet", 0.0)],
)
def test_a_crop_is_seen_as_a_slice_of_its_size(architecture, calibration):
    """With all it does in pixels of the slice: margins, calibration, masks."""
    model = _model(architecture, MODEL__RETINA_UNET__CALIBRATION=calibration)
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    x0, y0, x1, y1 = crop = (17, 8, 17 + 90, 8 + 70)
    plain = {"image": image, "height": y1 - y0, "width": x1 - x0}
    cut = {"image": image, "height": 150, "width": 120, "crop": crop}
    before = copy.deepcopy({k: v for k, v in cut.items() if k != "image"})
    with torch.no_grad():
        # One at a time: a processor may add up the second image of a batch in another order.
        expected, found = (model([sample])[0]["instances"] for sample in (plain, cut))
    assert {k: v for k, v in cut.items() if k != "image"} == before
    assert found.image_size == (150, 120) and len(found) == len(expected) > 2
    offset = torch.tensor([x0, y0, x0, y0])
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor + offset)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert torch.equal(found.pred_masks[:, y0:y1, x0:x1], expected.pred_masks)
    assert found.pred_masks.sum() == expected.pred_masks.sum() > 0
