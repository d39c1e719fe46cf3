import copy

from lesion_d2.engine import InputError, load_config
from lesion_d2.engine.checks import check_inputs

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from tiny_run import tiny_args

IMAGE = {
    "file_name": "a.png",
    "image_id": "a",
    "height": 64,
    "width": np.int64(64),
    "spacing": (0.8, np.float32(0.8), 2),
    "slice_range": None,
    "annotations": [{"bbox": [1, 2, 9, 9.5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}],
}
POLYGON = [[1, 1, 9, 1, 9, 9]]


@pytest.fixture
def register():
    """Register dicts as the data set "made_up"; gives its metadata."""

    def register(dicts: list[dict], **metadata) -> None:
        DatasetCatalog.register("made_up", lambda: copy.deepcopy(dicts))
        MetadataCatalog.get("made_up").set(**metadata)

    yield register
    DatasetCatalog.pop("made_up", None)
    MetadataCatalog.pop("made_up", None)


def _changed(image: dict, key: str, value: object = None) -> dict:
    """A copy with another value of a key of the image or of its annotation, or without it."""
    image = copy.deepcopy(image)
    target = image if key in image else image["annotations"][0]
    if value is None:
        target.pop(key, None)
    else:
        target[key] = value
    return image


def _check(folder, kind: str, **changes) -> None:
    options = {f"DATASETS__{kind}": ("made_up",), "MODEL__MASK_ON": False, **changes}
    options.setdefault("MODEL__RETINA_UNET__SEG_LOSS_WEIGHT", 0.0)
    args = tiny_args(folder / "output", **options)
    check_inputs(load_config(args), args)


@pytest.mark.parametrize("kind", ["TRAIN", "TEST"])
@pytest.mark.parametrize(
    "key, value, message",
    [
        *((key, None, f"found no '{key}'$") for key in IMAGE),
        *((key, None, f"found no '{key}' in an annotation") for key in IMAGE["annotations"][0]),
        ("height", 64.5, "found height 64.5, expected a whole number of pixels"),
        ("spacing", (0.8, 0.8), r"found spacing \(0.8, 0.8\), expected for x, y and z"),
        ("spacing", (0.8, 0.8, 0.0), "found spacing .* expected for x, y and z a number of mm"),
        ("spacing", (0.8, 1e300, 1.0), r"found spacing .* from 0.01 to 100"),
        ("spacing", "0.8", "found spacing '0.8', expected for x"),
        ("slice_range", (1,), "found slice_range .1,., expected the first and last slice"),
        ("annotations", {"bbox": 1}, "found annotations .*, expected a list"),
        ("annotations", [None], "found annotation None, expected a dict"),
        ("bbox", [9, 2, 1, 9], r"found bbox .* \(XYXY_ABS\), expected a width and height above 0"),
        ("bbox_mode", BoxMode.XYXY_REL, r"found bbox_mode XYXY_REL, expected BoxMode.XYXY_ABS or"),
        ("bbox", [1, 2, 3], r"found bbox \[1, 2, 3\], expected four finite numbers"),
        ("bbox", [1, 2, float("nan"), 4], "found bbox .*nan.*, expected four finite numbers"),
        ("category_id", 1, "found category_id 1, expected 0 to 0"),
        ("category_id", "lesion", "found category_id 'lesion', expected 0 to 0"),
        ("iscrowd", "no", "found iscrowd 'no', expected 1 .* or 0"),
    ],
)
def test_faults_of_a_data_set_are_told_of_before_any_work(
    tiny_phantom, tmp_path, register, kind, key, value, message
):
    other = {**IMAGE, "image_id": "b"}
    register(
        [other, _changed(IMAGE, key, value)], evaluator_type="lesion", thing_classes=["lesion"]
    )
    with pytest.raises(InputError, match=message) as error:
        _check(tmp_path, kind)
    assert str(error.value).startswith(f"DATASETS.{kind}, made_up: its 2 images")
    assert not (tmp_path / "output").exists()


def test_all_faults_are_told_of_at_once(tiny_phantom, tmp_path, register):
    dicts = [{**_changed(IMAGE, "spacing"), "image_id": i} for i in range(3)]
    register(dicts, evaluator_type="lesion", thing_classes=["lesion"])
    with pytest.raises(InputError) as error:
        _check(tmp_path, "TEST")
    first, *lines = str(error.value).splitlines()
    assert first == "DATASETS.TEST, made_up: its 3 images: 3 problems"
    assert lines == [f"  image {i}: found no 'spacing'" for i in range(3)]


def test_images_may_be_repeated_in_training_alone(tiny_phantom, tmp_path, register):
    register([IMAGE, IMAGE], evaluator_type="lesion", thing_classes=["lesion"])
    _check(tmp_path, "TRAIN")
    with pytest.raises(InputError, match=r"made_up: .*image 'a': found its image_id 2 times"):
        _check(tmp_path, "TEST")


@pytest.mark.parametrize("metadata", [{}, {"evaluator_type": "coco"}])
def test_a_test_set_without_an_evaluation_is_told_of(tiny_phantom, tmp_path, register, metadata):
    register([IMAGE], **metadata)
    _check(tmp_path, "TRAIN")
    message = r"^DATASETS\.TEST, made_up: found evaluator_type .*'lesion_volume': register a file"
    with pytest.raises(InputError, match=message):
        _check(tmp_path, "TEST")
    assert not (tmp_path / "output").exists()


def test_what_detectron2_registered_is_told_how_to_register(tiny_phantom, tmp_path, register):
    register([_changed(IMAGE, "spacing")], evaluator_type="coco")
    with pytest.raises(InputError, match=r"found no 'spacing'; a file .* with .*register_ct_coco"):
        _check(tmp_path, "TRAIN")


def test_a_bad_coco_file_is_told_by_the_data_set(tiny_phantom, tmp_path):
    (tmp_path / "no_categories.json").write_text('{"images": [], "annotations": []}')
    register_coco_instances("bad_coco", {}, str(tmp_path / "no_categories.json"), str(tmp_path))
    try:
        with pytest.raises(InputError, match=r"^DATASETS\.TRAIN, bad_coco: .*categories.*register"):
            _check(tmp_path, "TRAIN", DATASETS__TRAIN=("bad_coco",))
    finally:
        DatasetCatalog.pop("bad_coco")
        MetadataCatalog.pop("bad_coco")


@pytest.mark.parametrize(
    "mask",
    [
        POLYGON,
        {"size": [64, 64], "counts": [4096]},
        {"size": [32, 64], "counts": "PP2"},
        {"counts": "PP2"},
    ],
)
def test_masks_that_training_cannot_read_are_told_of(tiny_phantom, tmp_path, register, mask):
    image = _changed(IMAGE, "segmentation", mask)
    register([image], evaluator_type="lesion", thing_classes=["lesion"])
    _check(tmp_path, "TRAIN")  # it learns no masks
    _check(tmp_path, "TEST")
    message = r"TRAIN, made_up: .*image 'a': found segmentation .*, expected COCO's compressed RLE"
    with pytest.raises(InputError, match=message):
        _check(tmp_path, "TRAIN", MODEL__MASK_ON=True, MODEL__RETINA_UNET__SEG_LOSS_WEIGHT=1.0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"SOLVER__PLATEAU_PATIENCE": 2}, "PLATEAU_PATIENCE is 2"),
        ({"SOLVER__EARLY_STOP_PATIENCE": 3}, "EARLY_STOP_PATIENCE is 3"),
        ({"TEST__NUM_BEST_CHECKPOINTS": 4}, "NUM_BEST_CHECKPOINTS is 4"),
    ],
)
def test_a_validation_set_without_lesions_is_told_of(
    tiny_phantom, tmp_path, register, caplog, changes, message
):
    image = {**IMAGE, "annotations": []}
    register([image], evaluator_type="lesion", thing_classes=["lesion"])
    with pytest.raises(InputError, match=f"made_up: found no lesion, .*bbox/AP50 .*{message}"):
        _check(tmp_path, "TEST", **changes)
    by_loss = {"TEST__LOSS_PERIOD": 1, "SOLVER__PATIENCE_METRIC": "validation_loss"}
    _check(tmp_path, "TEST", **changes, **by_loss)
    assert not caplog.records
    _check(tmp_path, "TEST")
    assert "found no lesion, expected some, which define bbox/AP50: there will be no" in caplog.text


def test_a_metric_that_volumes_do_not_have_is_told_before_the_training(
    tiny_phantom, tmp_path, caplog
):
    message = "TEST.BEST_METRIC: found 'bbox/AP50', expected volume/AP10 for phantom_volumes_val: "
    volumes = ("phantom_volumes_val",)
    _check(tmp_path, "TEST", DATASETS__TEST=volumes, TEST__BEST_METRIC="volume/AP10")
    assert "TEST.BEST_METRIC" not in caplog.text
    _check(tmp_path, "TEST", DATASETS__TEST=volumes)
    assert f"{message}there will be no model_best.pth" in caplog.text
