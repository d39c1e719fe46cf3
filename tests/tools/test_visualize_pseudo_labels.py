from pathlib import Path

from lesion_d2.data.dataset_options import DatasetOptions, read_dataset
from lesion_d2.data.deeplesion.key_slices import register_deeplesion
from lesion_d2.data.phantoms.phantom import write_phantom
from lesion_d2.engine import LesionPredictor, Trainer
from lesion_d2.modeling.pseudo_labels import PseudoLabelCounts
from lesion_d2.tools.visualize import pseudo_labels
from lesion_d2.tools.visualize.__main__ import get_parser, main
from lesion_d2.tools.visualize.pseudo_labels import (
    TeacherImage,
    generate_pseudo_labels,
    pick_images,
    teacher_config,
)
from lesion_d2.visualization import truth_boxes

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from slow_boxes import slow_iou
from tiny_run import tiny_command, tiny_config


def command(output, *flags, **changes):
    return ["pseudo_labels", *tiny_command(output, *flags, **changes)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of an untrained model."""
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": Trainer.build_model(tiny_config()).state_dict()}, file)
    return str(file)


@pytest.fixture
def hidden(tiny_phantom):
    """The images of phantom_train, half of whose annotations are hidden."""
    images = read_dataset("phantom_train", DatasetOptions(hidden_share=0.5))
    return [image for image in images if image["annotations"]]


class Finder:
    """In place of a predictor: finds all lesions, with a score of 0.95 the hidden ones."""

    def __init__(self, cfg):
        pass

    def __call__(self, record):
        boxes = [truth_boxes(record, key) for key in ("annotations", "hidden_annotations")]
        wrong = [[0.0, 0.0, 5.0, 5.0]] * 2
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.from_numpy(np.concatenate([*boxes, wrong])).float())
        scores = [0.97] * len(boxes[0]) + [0.95] * len(boxes[1]) + [0.93, 0.89]
        found.scores = torch.tensor(scores)
        return {"instances": found}


@pytest.mark.usefixtures("small_pictures")
def test_the_pseudo_labels_of_a_config_and_its_weights(hidden, weights, tmp_path, capsys):
    flags = ["--weights", weights, "--num", "2", "--score-threshold", "0.005"]
    changes = {
        "DATASETS__MISSING_ANNOTATION_RATIO": 0.5,
        "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    }
    words = command(tmp_path, *flags, **changes)
    assert main(words) == 0

    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "pseudo_labels" / "phantom_train"
    assert sorted(map(str, folder.iterdir())) == sorted(lines[1:]) and len(lines) == 4
    assert lines[-1] == str(folder / "contact_sheet.png")

    cfg = teacher_config(get_parser().parse_args(words))
    counts = PseudoLabelCounts()
    images = list(generate_pseudo_labels(cfg, hidden, counts))
    predictor = LesionPredictor(cfg)

    for image, record in zip(images, hidden, strict=True):
        found = predictor(record)["instances"]
        truth = [tuple(box) for box in truth_boxes(record)]
        kept = [
            (box, score)
            for box, score in zip(
                found.pred_boxes.tensor.tolist(), found.scores.tolist(), strict=True
            )
            if score >= 0.005 and all(slow_iou(box, t) <= 0.7 for t in truth)
        ]
        assert image.pseudo_labels.pred_boxes.tensor.tolist() == [box for box, _ in kept]
        assert image.pseudo_labels.scores.tolist() == [score for _, score in kept]
    assert counts["pseudo_labels"] == sum(len(image.pseudo_labels) for image in images) > 0


def test_the_name_of_earlier_versions_is_accepted_and_not_in_the_help(tmp_path):
    words = command(tmp_path)[1:]
    now, before = (get_parser().parse_args([name, *words]) for name in ("pseudo_labels", "mined"))
    assert vars(now) == vars(before) and now.job is pseudo_labels.draw_pseudo_labels
    assert "mined" not in get_parser().format_help()


def test_annotated_lesions_are_no_pseudo_labels_and_hidden_ones_are_counted(
    hidden, weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pseudo_labels, "LesionPredictor", Finder)
    # The weights' key serves as well as --weights; the data set is that of the training.
    changes = {"DATASETS__MISSING_ANNOTATION_RATIO": 0.5, "MODEL__WEIGHTS": weights}
    changes["DATALOADER__FILTER_EMPTY_ANNOTATIONS"] = True
    flags = ["--output", str(tmp_path / "out"), "--pick", "most", "--num", "1"]
    assert main(command(tmp_path, *flags, **changes)) == 0
    lines = capsys.readouterr().out.splitlines()
    numbers = {image["image_id"]: len(image["hidden_annotations"]) for image in hidden}
    total, num_images = sum(numbers.values()), len(hidden)
    assert lines[0].startswith(f"{total + num_images} pseudo-labels in {num_images} of ")
    share = total / (total + num_images)
    assert f"; precision {share:.1%}; recall of hidden lesions 100.0%" in lines[0]
    name, sheet = (path.rsplit("/", 1)[1] for path in lines[1:])
    assert numbers[name.removesuffix(".png")] == max(numbers.values())
    assert sheet == "contact_sheet.png" and cv2.imread(lines[1]).shape[1] == 1024 + 16


@pytest.mark.usefixtures("small_pictures")
def test_the_data_set_has_the_options_of_the_config(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "LesionPredictor", Finder)
    root, name = tmp_path / "phantom", "phantom_labels_missing"
    write_phantom(root, num_patients=3, size=64, extent_mm=0, workers=1)
    register_deeplesion(name, str(root), None)
    try:
        images = DatasetCatalog.get(name)
        Path(images[0]["file_name"]).unlink()
        changes = {"MODEL__WEIGHTS": weights, "DATASETS__MISSING_ANNOTATION_RATIO": 0.5}
        changes["DATALOADER__FILTER_EMPTY_ANNOTATIONS"] = False
        words = ["--dataset", name, "--num", "1"]
        assert main(command(tmp_path, *words, **changes)) == 1
        assert images[0]["file_name"] in capsys.readouterr().err
        changes["DATASETS__ALLOW_MISSING"] = True
        assert main(command(tmp_path, *words, "--pick", "most", **changes)) == 0
        assert f" in {len(images) - 1} of {len(images) - 1} images" in capsys.readouterr().out
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_lesions_of_a_fully_annotated_volume_alone_are_pseudo_labels_there(
    hidden, weights, monkeypatch
):
    monkeypatch.setattr(pseudo_labels, "LesionPredictor", Finder)
    cfg = tiny_config(MODEL__WEIGHTS=weights)
    record = {**hidden[0], "annotations": [], "hidden_annotations": []}
    for boxes, scores in (([[0, 0, 5, 6]], [0.93]), ([[50, 50, 60, 60]], []), ([], [])):
        [found] = generate_pseudo_labels(
            cfg, [{**record, "volume_boxes": boxes}], PseudoLabelCounts()
        )
        assert found.pseudo_labels.scores.tolist() == pytest.approx(scores)


def image(name, *scores, hidden=None):
    """Boxes beside each other, and hidden ones."""
    boxes = torch.tensor([[10.0 * i, 0, 10 * i + 9, 9] for i in range(len(scores))])
    record = {"image_id": name, "annotations": []}
    if hidden is not None:
        annotations = [{"bbox": box, "bbox_mode": 0} for box in hidden]
        record["hidden_annotations"] = annotations
    found = Instances((64, 64), pred_boxes=Boxes(boxes), scores=torch.tensor(scores))
    return TeacherImage(record, found)


def test_images_are_picked_as_they_come_or_by_their_pseudo_labels():
    images = [image("a", 0.99), image("b"), image("c", 0.9, 0.9), image("d", 0.98, 0.91)]
    looked_at = []

    def come():
        for one in images:
            looked_at.append(one.record["image_id"])
            yield one

    def names(pick, num):
        return "".join(i.record["image_id"] for i in pick_images(come(), pick, num))

    assert names("random", 2) == "ac" and looked_at == ["a", "b", "c"]
    assert names("random", 9) == "acd"
    assert names("most", 9) == "dca" and names("most", 1) == "d"


def test_titles_tell_how_many_pseudo_labels_are_hidden_ones():
    assert image("a", 0.9).title() == "a\n1 pseudo-label"
    assert image("a", 0.9, hidden=[]).title() == "a\n1 pseudo-label, 0 of them hidden lesions"
    boxes = [[0, 0, 9, 8], [30, 30, 40, 40]]
    assert (
        image("a", 0.9, 0.9, hidden=boxes).title() == "a\n2 pseudo-labels, 1 of them hidden lesions"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--weights: found none, expected a checkpoint's path, or MODEL.WEIGHTS"),
        ({"MODEL__WEIGHTS": "gone.pth"}, "gone.pth"),
        ({"MODEL__WEIGHTS": "x", "DATASETS__TRAIN": ()}, "--dataset: found none, expected a name"),
        (
            {"MODEL__WEIGHTS": "x", "DATASETS__TRAIN": ("phantom_trian",)},
            "found 'phantom_trian', expected",
        ),
        ({"MODEL__WEIGHTS": "x", "MODEL__NAME": "x"}, "MODEL.NAME"),
        (
            {"MODEL__WEIGHTS": "x", "DATASETS__EXCLUDED_VOLUMES": ("phantom_volume",)},
            "DATASETS.EXCLUDED_VOLUMES: ",
        ),
    ],
)
def test_bad_arguments_are_one_line(tiny_phantom, tmp_path, capsys, changes, message):
    assert main(command(tmp_path, **changes)) == 1
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_that_nothing_reaches_is_one_line(hidden, weights, tmp_path, capsys):
    words = command(tmp_path, "--weights", weights, "--score-threshold", "1.0")
    assert main(words) == 1
    output = capsys.readouterr()
    assert output.out.startswith("0 pseudo-labels in ")
    assert "SCORE_THRESH: found 1.0, expected a lower score" in output.err
