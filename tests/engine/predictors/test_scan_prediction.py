"""Scans in memory against data sets of the same slices in PNG files."""

import hashlib
import json
from dataclasses import replace

from lesion_d2.engine import (
    LesionCheckpointer,
    LesionPredictor,
    Trainer,
    detect_slices,
    load_config,
    predict_scan,
)
from lesion_d2.engine.predictors.algorithm import class_names
from lesion_d2.evaluation import VolumeEvaluator
from lesion_d2.findings import OperatingPoint, decode_mask
from lesion_d2.inference import Linker, build_linker
from lesion_d2.modeling import ImageStack
from lesion_d2.scans import Scan, SliceSource

import cv2
import numpy as np
import pytest
import torch
from config_values import CONFIGS, reduced
from detectron2.data import DatasetCatalog, MetadataCatalog
from slice_files import write_slice
from tiny_run import tiny_config, uldor_args
from torch import nn

NAME = "scan_in_files"
DEPTH, SIZE, SPACING = 6, (44, 60), (0.9, 0.8, 4.0)
# An untrained model is sure of nothing.
TINY = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, "TEST__DETECTIONS_PER_IMAGE": 6}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A scan, whose slices are the PNG files of the data set ``NAME`` too."""
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, -900, (DEPTH, *SIZE)).astype(np.int16)
    for index, hu in enumerate(volume):
        hu[6:38, 8 + index : 50] = rng.integers(-100, 100, (32, 42 - index))
        cv2.circle(hu, (20 + 2 * index, 22), 4 + index, 700, -1)
    volume[:, :2] = -3024
    folder = tmp_path_factory.mktemp("files") / "000001_01_01"
    records = []
    for index, hu in enumerate(volume):
        file = write_slice(folder / f"{index:03d}.png", hu)
        records.append(
            {
                "file_name": str(file),
                "image_id": f"{folder.name}_{index:03d}",
                "volume": folder.name,
                "slice_index": index,
                "slice_range": None,
                "height": SIZE[0],
                "width": SIZE[1],
                "spacing": SPACING,
                "annotations": [],
            }
        )
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["lesion"], evaluator_type="lesion_volume")
    yield Scan(
        name="made_up",
        volume=volume,
        spacing=SPACING,
        origin=np.array([-10.0, 20.0, 30.0]),
        direction=np.diag([1.0, 1.0, -1.0]),
        sources=tuple(SliceSource(record["file_name"]) for record in records),
        format="png",
        messages=("made up",),
    )
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def _from_file(name, **changes):
    cfg = reduced(CONFIGS / name)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.TEST.DETECTIONS_PER_IMAGE = 8
    cfg.merge_from_list([x for k, v in changes.items() for x in (k.replace("__", "."), v)])
    return cfg


def _tiny(**changes):
    return lambda: tiny_config(**TINY, **changes)


def _uldor():
    changes = {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0, "TEST__DETECTIONS_PER_IMAGE": 8}
    return load_config(uldor_args("output", **changes))


_MODELS = {
    "retina_unet": _tiny(MODEL__SEG_HEAD__PREDICT_MASKS=True),
    "eight_classes": _tiny(MODEL__RETINANET__NUM_CLASSES=8, INPUT__CT__IMAGE_SIZE=96),
    "cut_borders": _tiny(INPUT__CT__CROP_TO_BODY=True, MODEL__SEG_HEAD__PREDICT_MASKS=True),
    "det_unet": _tiny(MODEL__META_ARCHITECTURE="DetUNet", MODEL__SEG_HEAD__PREDICT_MASKS=True),
    "ensemble_of_tiles": _tiny(
        MODEL__SEG_HEAD__PREDICT_MASKS=True,
        TEST__ENSEMBLE__ENABLED=True,
        TEST__ENSEMBLE__TILE_SIZE=48,
    ),
    "uldor": _uldor,
    "3dce": lambda: _from_file(
        "3dce_attention/3dce_9_cs_phantom.yaml",
        INPUT__CT__PIXEL_SPACING=1.0,
        INPUT__CT__CROP_TO_BODY=True,
    ),
    "fused_densenet": lambda: _from_file(
        "mean_teacher/add_phantom.yaml", INPUT__CT__SLICE_INTERVAL=2.5
    ),
}


def _make_predictor(cfg):
    """With a segmentation that is drawn: it starts from background everywhere."""
    torch.manual_seed(0)
    predictor = LesionPredictor(cfg)
    for module in predictor.model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None and module.bias[0] > 4:
            nn.init.normal_(module.weight, std=2.0)
            nn.init.zeros_(module.bias)
    return predictor


@pytest.mark.parametrize("name", _MODELS)
def test_detections_are_those_of_a_data_set(scan, name):
    predictor = _make_predictor(_MODELS[name]())
    found = sorted(detect_slices(predictor, scan), key=lambda d: d.slice_index)
    assert [d.slice_index for d in found] == list(range(DEPTH))

    number = num_masks = 0
    for detections, record in zip(found, DatasetCatalog.get(NAME), strict=True):
        expected = predictor(record)["instances"]
        for array, other in (
            (detections.boxes, expected.pred_boxes.tensor.double()),
            (detections.scores, expected.scores.double()),
            (detections.classes, expected.pred_classes),
        ):
            np.testing.assert_array_equal(array, other.numpy())
        assert (detections.masks is not None) == expected.has("pred_masks")
        if detections.masks is not None:
            masks = [mask.whole(*SIZE) for mask in detections.masks]
            assert len(masks) == len(expected)
            for mask, other in zip(masks, expected.pred_masks, strict=True):
                np.testing.assert_array_equal(mask, other.numpy())
                num_masks += mask.any()
        number += len(expected)
    assert number >= DEPTH
    assert num_masks > 0 or name in ("eight_classes", "3dce", "fused_densenet")


def test_images_are_convolved_once(scan):
    """At one slice an interval, a stack of three images has one that the next key slice has not."""
    predictor = LesionPredictor(
        _from_file("3dce_attention/3dce_9_phantom.yaml", INPUT__CT__SLICE_INTERVAL=4.0)
    )
    thin = replace(scan, volume=np.concatenate([scan.volume + np.int16(9 * i) for i in range(3)]))
    [stack] = [m for m in predictor.model.modules() if isinstance(m, ImageStack)]
    counts = []
    stack.backbone.register_forward_hook(lambda module, args, output: counts.append(len(args[0])))
    for spacing in (4.0, 2.0):  # in the second, the order of slices makes it so
        counts.clear()
        list(detect_slices(predictor, replace(thin, spacing=(0.9, 0.8, spacing))))
        ends = 2 * 4 * round(4 / spacing)
        assert len(thin.volume) <= sum(counts) <= len(thin.volume) + ends
        assert sum(counts) < 0.6 * 3 * len(thin.volume)
    assert stack.memory is None


@pytest.mark.parametrize("linking", ["merge", "track"])
def test_findings_are_those_of_an_evaluation_of_volumes(scan, tmp_path, linking):
    cfg = tiny_config(
        **TINY,
        MODEL__SEG_HEAD__PREDICT_MASKS=True,
        TEST__LINKING=linking,
        DATASETS__TEST=(NAME,),
    )
    predictor = _make_predictor(cfg)
    evaluator = VolumeEvaluator(NAME, tmp_path, link=build_linker(cfg), distributed=False)
    for record in DatasetCatalog.get(NAME):
        evaluator.process([record], [predictor(record)])
    evaluator.evaluate()
    expected = json.loads((tmp_path / "volumes.json").read_text())["detections"]
    found = predict_scan(predictor, scan, config_file="a.yaml")

    assert [f.score for f in found.findings] == [d["score"] for d in expected]
    assert [list(f.box) for f in found.findings] == [d["box3d"] for d in expected]
    assert [f.number for f in found.findings] == list(range(1, len(expected) + 1))
    assert any(len(f.slices) > 1 for f in found.findings)

    # From a score on, as volumes are evaluated.
    point = OperatingPoint(found.findings[4].score, 0.5, "volume", "phantom_val")
    fewer = predict_scan(predictor, scan, score_threshold=point)
    assert fewer.findings == found.findings[:5] and fewer.operating_point == point
    assert found.operating_point == OperatingPoint(0.0)

    # What the findings are on their slices, and where.
    by_slice = {d.slice_index: d for d in detect_slices(predictor, scan)}
    for finding in found.findings:
        assert finding.category == "lesion" and finding.measured_on in ("mask", "box")
        for part in finding.slices:
            detections = by_slice[part.slice_index]
            [i] = np.flatnonzero((detections.boxes == part.box).all(axis=1))
            assert part.score == detections.scores[i] <= finding.score
            mask = detections.masks[i].whole(*SIZE)
            np.testing.assert_array_equal(decode_mask(part.mask), mask)
            assert part.file == scan.sources[part.slice_index].file
    assert (found.scan_name, found.shape, found.spacing) == ("made_up", scan.volume.shape, SPACING)
    assert found.messages == ("made up",)

    points = np.array([[0, 0, 0], [3, 2, 1]])
    np.testing.assert_allclose(found.to_patient(points), scan.to_patient(points))


@pytest.mark.parametrize(
    "architecture, pixels", [("RetinaUNet", (0.5, 0.5)), ("DetUNet", SPACING[:2])]
)
def test_margins_of_boxes_are_pixels_that_the_model_sees(scan, architecture, pixels):
    cfg = tiny_config(
        **TINY,
        MODEL__META_ARCHITECTURE=architecture,
        INPUT__BOX_MARGIN=1.5,
        MODEL__SEG_HEAD__PREDICT_MASKS=False,
        INPUT__CT__PIXEL_SPACING=0.5,
    )
    findings = predict_scan(_make_predictor(cfg), scan).findings
    assert findings
    for finding in findings:
        boxes = np.array([part.box for part in finding.slices])
        sides = (boxes[:, 2:] - boxes[:, :2]) * SPACING[:2] - 2 * 1.5 * np.array(pixels)
        expected = np.maximum(sides, SPACING[:2]).max()  # a pixel at least
        assert finding.measured_on == "box"
        assert finding.long_diameter.length_mm == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("linking", ["merge", "track"])
def test_a_threshold_of_boxes_on_slices_leaves_out_what_lies_below(scan, tmp_path, linking):
    cfg = tiny_config(**TINY, TEST__LINKING=linking, DATASETS__TEST=(NAME,))
    predictor = _make_predictor(cfg)
    scores = np.concatenate([d.scores for d in detect_slices(predictor, scan)])
    threshold = float(np.median(scores))
    evaluator = VolumeEvaluator(NAME, tmp_path, link=build_linker(cfg), distributed=False)
    for record in DatasetCatalog.get(NAME):
        instances = predictor(record)["instances"]
        sure = instances[instances.scores.double() >= threshold]
        evaluator.process([record], [{"instances": sure}])
    evaluator.evaluate()
    expected = json.loads((tmp_path / "volumes.json").read_text())["detections"]
    for score_threshold in (threshold, OperatingPoint(threshold, 0.5, "image", "phantom_val")):
        found = predict_scan(predictor, scan, score_threshold=score_threshold).findings
        assert [list(f.box) for f in found] == [d["box3d"] for d in expected]
        assert min(part.score for finding in found for part in finding.slices) >= threshold
    everything = predict_scan(predictor, scan).findings
    assert sum(len(f.slices) for f in found) < sum(len(f.slices) for f in everything)


def test_a_mean_teachers_checkpoint_and_what_is_told_of_it(scan, tmp_path):
    cfg = tiny_config(
        **TINY, MODEL__MEAN_TEACHER__ENABLED=True, MODEL__MEAN_TEACHER__PSEUDO_LABELS="none"
    )
    teacher, student = (Trainer.build_model(cfg) for _ in range(2))
    LesionCheckpointer(teacher, str(tmp_path), student=student).save("model_final")
    file = tmp_path / "model_final.pth"
    cfg.MODEL.WEIGHTS = str(file)
    predictor = LesionPredictor(cfg)
    with torch.no_grad():
        sample = predictor.mapper(DatasetCatalog.get(NAME)[3])
        scores = teacher.eval()([sample])[0]["instances"].scores
    [middle] = [d for d in detect_slices(predictor, scan) if d.slice_index == 3]
    assert middle.scores.tolist() == scores.tolist() and len(scores) == 6
    algorithm = predict_scan(predictor, scan, config_file="a.yaml").algorithm
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (algorithm.weights, algorithm.weights_sha256) == (str(file), digest)
    assert (algorithm.config_file, algorithm.meta_architecture) == ("a.yaml", "RetinaUNet")


@pytest.mark.parametrize(
    "cfg, names",
    [
        (_tiny(), ["lesion"]),
        (_tiny(DATASETS__TEST=("phantom_volumes_test_types",)), ["bone"]),
        (
            _tiny(
                DATASETS__TEST=("gone", "phantom_volumes_val_types"),
                MODEL__RETINANET__NUM_CLASSES=8,
            ),
            ["bone", "abdomen", "mediastinum", "liver", "lung", "kidney", "soft tissue", "pelvis"],
        ),
        (_tiny(MODEL__RETINANET__NUM_CLASSES=3), ["lesion", "class 1", "class 2"]),
        (  # registered where it is asked for
            _tiny(DATASETS__TEST=("toy_donuts_shape_test_6",), MODEL__RETINANET__NUM_CLASSES=2),
            ["circle", "donut"],
        ),
        (_tiny(DATASETS__TEST=("gone",), DATASETS__TRAIN=()), ["lesion"]),
        (_uldor, ["lesion", "false positive"]),
    ],
)
def test_names_of_classes(cfg, names):
    assert class_names(cfg()) == names


def test_what_cannot_be_predicted_is_one_line(scan, monkeypatch):
    predictor = LesionPredictor(tiny_config(**TINY, INPUT__CT__SLICE_INTERVAL=20.0))
    with pytest.raises(ValueError, match="made_up: found 6 slices of 4 mm, expected 11 or more"):
        predict_scan(predictor, scan)
    predictor = LesionPredictor(tiny_config(**TINY))
    forward = predictor.model.forward

    def broken(batch):
        [output] = forward(batch)
        output["instances"].scores[0] = float("nan")
        return [output]

    monkeypatch.setattr(predictor.model, "forward", broken)
    with pytest.raises(ValueError, match=r"made_up, slice \d: found a box or score that is not"):
        predict_scan(predictor, scan)


def test_a_scan_without_detections_has_no_findings(scan):
    cfg = tiny_config(MODEL__RETINANET__SCORE_THRESH_TEST=1.0)
    assert predict_scan(LesionPredictor(cfg), scan).findings == ()
    assert Linker("merge", {"iou_threshold": 0.1}) == build_linker(cfg)
