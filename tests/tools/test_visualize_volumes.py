"""Pictures of an evaluation in 3-D."""

import json

from lesion_d2.evaluation import Criterion, VolumeEvaluator
from lesion_d2.evaluation.volumetric.volumes import VolumeBoxes, VolumeTruth
from lesion_d2.structures import Boxes3D
from lesion_d2.tools.visualize.__main__ import main
from lesion_d2.tools.visualize.volumes import choose_slices, find_strips
from lesion_d2.visualization import (
    FALSE_POSITIVE_COLOR,
    HIT_COLOR,
    MASK_COLOR,
    TRUTH_COLOR,
    LesionVisualizer,
    match_volume_outcomes,
)

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, Instances
from slice_files import write_slice

NAME, SIZE, FIRST = "visualized_volumes", 64, 10
# Volume: lesions X1Y1Z1X2Y2Z2 with the first and last slice number, of slices 10 to 17.
LESIONS = {"a": [(40, 40, 10, 52, 52, 17), (8, 8, 12, 20, 20, 14)], "b": [(30, 8, 13, 40, 18, 13)]}
# Boxes and scores; a hit, one more on the same lesion, and two that hit nothing.
FOUND = {
    "a": [((9, 8, 12, 20, 20, 15), 0.9), ((8, 9, 12, 20, 20, 14), 0.8)],
    "b": [((4, 40, 11, 14, 56, 13), 0.7), ((50, 4, 15, 60, 9, 16), 0.1)],
}


def made_up_dicts(folder):
    dicts = []
    for volume, lesions in LESIONS.items():
        for number in range(FIRST, FIRST + 8):
            annotations = []
            for i, (x1, y1, z1, x2, y2, z2) in enumerate(lesions):
                if z1 <= number <= z2:
                    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
                    mask[y1 + 3 : y2 - 3, x1 + 3 : x2 - 3] = 1
                    annotation = {"bbox": [x1, y1, x2, y2], "bbox_mode": BoxMode.XYXY_ABS}
                    annotation |= {"category_id": 0, "lesion_id": i, "row": i}
                    annotations.append({**annotation, "true_segmentation": mask_util.encode(mask)})
            record = {"image_id": f"{volume}_{number}", "height": SIZE, "width": SIZE}
            record |= {"volume": volume, "slice_index": number, "annotations": annotations}
            file = folder / f"{volume}_{number}.png"
            dicts.append({**record, "file_name": str(file), "window": (-100.0, 100.0)})
    return dicts


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    """A registered data set of two volumes of eight slices."""
    made = made_up_dicts(tmp_path_factory.mktemp("volumes"))
    for record in made:
        write_slice(record["file_name"], np.full((SIZE, SIZE), -50))
    DatasetCatalog.register(NAME, lambda: made)
    MetadataCatalog.get(NAME).set(thing_classes=["lesion"], evaluator_type="lesion_volume")
    yield made
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def results(dicts, tmp_path_factory):
    """The volumes.json of an evaluation of :data:`FOUND`."""
    return evaluate(tmp_path_factory.mktemp("run"))


def evaluate(folder):
    evaluator = VolumeEvaluator(NAME, folder, link=None, distributed=False)
    for volume, found in FOUND.items():
        # In voxels of the run, with the edges of slices.
        boxes = np.array([box for box, _ in found]) - np.array([0, 0, 10.5, 0, 0, 9.5])
        instances = Instances((8, SIZE, SIZE))
        instances.pred_boxes = Boxes3D(torch.tensor(boxes))
        instances.scores = torch.tensor([score for _, score in found], dtype=torch.float64)
        instances.pred_classes = torch.zeros(len(found), dtype=torch.int64)
        sample = {"image_id": volume, "volume": volume, "first_slice": FIRST}
        evaluator.process([sample], [{"instances": instances}])
    evaluator.evaluate()
    return folder / "volumes.json"


def shows(picture, color):
    return (np.abs(picture.astype(int) - 255 * np.array(color)) < 40).all(axis=2).any()


@pytest.mark.usefixtures("small_pictures")
def test_pictures_of_an_evaluation_in_3d(results, capsys):
    options = ["--results", str(results), "--slices", "1", "--findings", "2", "--num", "1"]
    assert main(["volumes", *options, "--pick", "best", "worst", "random"]) == 0
    line, *paths = capsys.readouterr().out.splitlines()
    assert line == (
        "score threshold 0.000: 1 of 3 lesions found at 1.00 false positives per volume, 2 volumes"
    )
    names = ["worst_01_b.png", "random_01_a.png", "contact_sheet.png"]  # a lesion of each is missed
    assert paths == [str(results.parent / "pictures" / name) for name in names]
    worst, other, sheet = (cv2.imread(path)[:, :, ::-1] for path in paths)
    assert other.shape == worst.shape and other.shape[1] == 2 * 128 + 3 * 8
    assert sheet.shape[1] == 4 * 128 + 5 * 8
    tile = other[216:344, 8:136]  # the whole slice of the second lesion's center, under its title
    # Enlarged twice; the mask is part of the picture itself.
    mask = tile[2 * 14 + 1, 2 * 14 + 1].astype(float)
    gray = tile[2 * 60, 1].astype(float)
    np.testing.assert_allclose(mask, 0.65 * gray + 0.35 * 255 * np.array(MASK_COLOR), atol=1.5)
    assert shows(tile, HIT_COLOR) and shows(tile, TRUTH_COLOR)
    assert not shows(tile, FALSE_POSITIVE_COLOR)


def test_the_threshold_is_of_false_positives_per_volume(results, capsys, monkeypatch):
    monkeypatch.setattr("lesion_d2.tools.visualize.volumes.pick_outcomes", lambda *_, **__: [])
    for option, kept in (("0.5", 1), ("0", 0)):
        arguments = ["volumes", "--results", str(results), "--fps-per-volume", option]
        assert main(arguments) == 1  # nothing was picked
        printed = capsys.readouterr().out
        assert f"at {kept / 2:.2f} false positives per volume" in printed


def boxes_of(rows, scores=None):
    rows = np.array(rows, float).reshape(-1, 6)
    scores = np.ones(len(rows)) if scores is None else np.array(scores, float)
    return VolumeBoxes(rows, scores, np.zeros(len(rows), int))


def outcomes_of(dicts, **options):
    truth = VolumeTruth.from_dicts(dicts)
    found = {v: boxes_of([b for b, _ in f], [s for _, s in f]) for v, f in FOUND.items()}
    return match_volume_outcomes(truth, found, Criterion("iou", 0.1), **options)


def test_detections_are_judged_as_the_curve_counts_them(tmp_path):
    a, b = outcomes_of(made_up_dicts(tmp_path))
    assert (a.name, b.name) == ("a", "b") and a.scores.tolist() == [0.9, 0.8]
    assert a.is_hit.tolist() == [True, False] and a.is_repeat.tolist() == [False, True]
    assert a.is_found.tolist() == [False, True] and a.reached.tolist() == [1, 1]
    assert b.is_false_positive.all() and not b.is_found.any() and b.quality == 0
    # The box of 11 x 12 x 4 in the union with that of 12 x 12 x 3; the other is of 12 x 11 x 3.
    ious = 0.9 * 396 / 564, 0.8 * 396 / 432
    assert a.quality == pytest.approx(max(ious) / 2)
    fewer = outcomes_of(made_up_dicts(tmp_path), score_threshold=0.5)
    assert [len(o.scores) for o in fewer] == [2, 1]


def test_a_slice_shows_what_it_cuts(tmp_path):
    dicts = made_up_dicts(tmp_path)
    a, b = outcomes_of(dicts)
    shown = {d["image_id"]: o.on_slice(d) for o in (a, b) for d in dicts if d["volume"] == o.name}
    assert [len(shown[f"a_{n}"].predictions) for n in range(11, 17)] == [0, 2, 2, 2, 1, 0]
    assert [len(shown[f"b_{n}"].predictions) for n in range(10, 18)] == [0, 1, 1, 1, 0, 1, 1, 0]
    on_15 = shown["a_15"]  # the first lesion has ended, the detection on it has not
    assert on_15.predictions.pred_boxes.tensor.tolist() == [[9, 8, 20, 20]]
    assert on_15.is_hit.tolist() == [True] and on_15.is_found.tolist() == [False]
    assert [x["bbox"] for x in on_15.record["annotations"]] == [[40, 40, 52, 52]]
    assert shown["b_13"].is_found.tolist() == [False] and shown["b_13"].is_false_positive.all()


def test_regions_to_ignore_stay_on_their_slices(tmp_path):
    dicts = made_up_dicts(tmp_path)
    region = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1}
    dicts[1]["annotations"].append(region)
    outcome = outcomes_of(dicts)[0]
    assert outcome.on_slice(dicts[1]).record["annotations"][-1] == region
    assert all("iscrowd" not in x for x in outcome.on_slice(dicts[2]).record["annotations"])


def test_strips_are_lesions_then_false_positives(tmp_path):
    a, b = outcomes_of(made_up_dicts(tmp_path))
    strips = find_strips(a, range(10, 18), 3)
    assert [(s.title, s.center, s.numbers) for s in strips] == [
        ("lesion 1 of 2, slices 10 to 17, missed", 13, [10, 13, 17]),
        ("lesion 2 of 2, slices 12 to 14, found at 0.90", 13, [12, 13, 15]),
    ]
    assert strips[1].boxes.tolist() == [[8, 8, 20, 20], [9, 8, 20, 20]]
    assert [s.title for s in find_strips(b, range(10, 18), 3)] == [
        "lesion 1 of 1, slices 13 to 13, missed",
        "false positive 0.70, slices 11 to 13",
        "false positive 0.10, slices 15 to 16",
    ]


@pytest.mark.parametrize(
    ("numbers", "ends", "center", "length", "expected"),
    [
        (range(100), (10, 20), 14, 5, [10, 12, 14, 18, 20]),
        (range(100), (10, 20), 15, 3, [10, 15, 20]),
        (range(100), (50, 50), 50, 5, [48, 49, 50, 51, 52]),
        (range(100), (0, 0), 0, 3, [0, 1, 2]),
        (range(100), (99, 99), 99, 4, [96, 97, 98, 99]),
        (range(2), (0, 1), 0, 5, [0, 1]),
        (range(100), (10, 20), 15, 1, [15]),
        ([3, 4, 9, 10], (2, 9), 1, 3, [3, 4, 9]),
    ],
)
def test_slices_of_a_strip(numbers, ends, center, length, expected):
    numbers = np.array(numbers)
    assert numbers[choose_slices(numbers, ends, center, length)].tolist() == expected


def test_a_box_beside_the_view_gets_no_label():
    visualizer = LesionVisualizer(np.full((SIZE, SIZE, 3), 90, np.uint8), side=256)
    visualizer.zoom(np.array([[4.0, 4, 12, 12]]), min_side=32)
    for box, count in (([50, 50, 60, 60], 0), ([4, 4, 12, 12], 1)):
        visualizer.draw_label("missed", box, TRUTH_COLOR)
        assert len(visualizer.output.ax.texts) == count


def test_a_volume_without_findings_has_its_middle(tmp_path):
    dicts = made_up_dicts(tmp_path)
    for record in dicts[8:]:
        record["annotations"] = []
    truth = VolumeTruth.from_dicts(dicts)
    outcome = match_volume_outcomes(truth, {}, Criterion("iou", 0.1))[1]
    assert outcome.summary() == "no findings"
    (strip,) = find_strips(outcome, range(10, 18), 3)
    assert (strip.title, strip.center, strip.numbers) == ("no findings", 14, [13, 14, 15])
    assert len(strip.boxes) == 0


def test_bad_files_are_named(results, tmp_path, capsys):
    file = tmp_path / "volumes.json"
    for content, expected in (
        ([], "no 'dataset'"),
        ({"dataset": "nothing_such"}, "not registered"),
        ({"dataset": NAME}, "no readable evaluation of volumes"),
    ):
        file.write_text(json.dumps(content))
        assert main(["volumes", "--results", str(file)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1
    content = json.loads(results.read_text())
    content["detections"][0]["volume"] = "other"
    file.write_text(json.dumps(content))
    assert main(["volumes", "--results", str(file)]) == 1
    assert "found volume 'other'" in capsys.readouterr().err
    assert main(["predictions", "--dataset", NAME, "--results", str(file)]) == 1
    assert "`visualize volumes`" in capsys.readouterr().err
