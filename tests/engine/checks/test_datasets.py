import copy
import logging
import shutil

from lesion_d2.data.catalog import load_run_dicts, load_train_dicts
from lesion_d2.data.dataset_options import DatasetOptions, read_dataset
from lesion_d2.engine import InputError, load_config
from lesion_d2.engine.checks import check_inputs

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tiny_run import tiny_args, tiny_config, uldor_args

import train_net


def test_annotations_are_hidden_in_training_sets_only(tiny_phantom, tmp_path):
    before = DatasetCatalog.get("phantom_train")
    args = tiny_args(
        tmp_path, DATASETS__MISSING_ANNOTATION_RATIO=0.4, DATASETS__MISSING_ANNOTATION_SEED=5
    )
    cfg = load_config(args)
    check_inputs(cfg, args)
    whole = _num_annotations(before)
    hidden = whole - round(0.4 * whole)
    assert _num_annotations(load_train_dicts(cfg.clone())) == hidden  # read anew
    assert _num_annotations(load_train_dicts(cfg)) == hidden  # kept from the check
    assert "hidden_annotations" not in load_run_dicts(cfg, ["phantom_val"], "TEST")[0]
    assert _num_annotations(load_run_dicts(cfg, ["phantom_train"], "TEST")) == whole
    assert DatasetCatalog.get("phantom_train") == before


def _num_annotations(dicts: list[dict]) -> int:
    return sum(len(image["annotations"]) for image in dicts)


@pytest.fixture
def box_images():
    """A registered data set of another kind: three images with one box each."""
    box = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    images = [_image(i, [dict(box)]) for i in range(3)]
    DatasetCatalog.register("box_images", lambda: images)
    MetadataCatalog.get("box_images").set(evaluator_type="lesion")
    yield images
    DatasetCatalog.remove("box_images")
    MetadataCatalog.pop("box_images", None)


def _image(image_id: int, annotations: list[dict]) -> dict:
    return {
        "file_name": f"{image_id}.png",
        "image_id": image_id,
        "height": 16,
        "width": 16,
        "spacing": (1.0, 1.0, 1.0),
        "slice_range": None,
        "annotations": annotations,
    }


def test_a_training_set_without_masks_is_told_of(tiny_phantom, tmp_path, box_images):
    args = uldor_args(
        tmp_path,
        DATASETS__TRAIN=("phantom_train", "box_images"),
        HARD_NEGATIVES__PERIOD=2,
        INPUT__PSEUDO_MASK_FROM_BOX=False,
    )
    expected = r"DATASETS.TRAIN: found 3 of \d+ lesions without a mask .*\(the first: 0.png\)"
    with pytest.raises(InputError, match=expected):
        check_inputs(load_config(args), args)
    box_images[0]["annotations"][0]["segmentation"] = {"size": [16, 16], "counts": "P8"}
    box_images[2]["annotations"][0]["recist"] = [0.0] * 8
    with pytest.raises(InputError, match=r"found 1 of \d+ .*\(the first: 1.png\)"):
        check_inputs(load_config(args), args)
    args.opts += ["MODEL.MASK_ON", "False", "HARD_NEGATIVES.PERIOD", "0"]
    assert check_inputs(load_config(args), args) > 3


def test_mined_sets_share_no_images_but_the_same_slices(tiny_phantom, tmp_path):
    slices = DatasetCatalog.get("phantom_train")
    others = [{**image, "file_name": f"other_{image['image_id']}.png"} for image in slices]
    bare = [{**image, "image_id": f"bare_{i}", "annotations": []} for i, image in enumerate(slices)]
    sets = {"same_slices": slices, "other_slices": others, "bare_slices": bare}
    for name, images in sets.items():
        DatasetCatalog.register(name, lambda images=images: images)
    try:
        for names, mined, message in (
            (("phantom_train", "same_slices"), ("same_slices",), None),
            (("phantom_train", "same_slices"), (), f"found {len(slices)} images twice"),
            (("phantom_train", "other_slices"), ("phantom_train",), "images twice .the first: '"),
            (("phantom_train", "bare_slices"), ("phantom_train",), None),
            (("phantom_train", "bare_slices"), (), "bare_slices: found no lesion, expected some"),
        ):
            options = {"DATASETS__TRAIN": names, "HARD_NEGATIVES__DATASETS": mined}
            args = uldor_args(tmp_path, HARD_NEGATIVES__PERIOD=2, **options)
            if message is None:
                assert check_inputs(load_config(args), args) > 0
            else:
                with pytest.raises(InputError, match=message):
                    check_inputs(load_config(args), args)
    finally:
        for name in sets:
            DatasetCatalog.remove(name)


def test_test_sets_need_masks_for_the_loss_only(tiny_phantom, tmp_path, box_images, caplog):
    caplog.set_level(logging.INFO)
    args = uldor_args(tmp_path, DATASETS__TEST=("box_images",))
    assert check_inputs(load_config(args), args) > 0
    args.opts += ["TEST.LOSS_PERIOD", "1"]
    check_inputs(load_config(args), args)
    told = "DATASETS.TEST: found 3 of 3 lesions without a mask"
    assert "their masks are made of their boxes (INPUT.PSEUDO_MASK 'ellipse')" in caplog.text
    assert told in caplog.text
    args.opts += ["INPUT.PSEUDO_MASK_FROM_BOX", "False"]
    with pytest.raises(InputError, match=told):
        check_inputs(load_config(args), args)


def test_without_spacing_nothing_goes_by_it(tmp_path, box_images, caplog):
    caplog.set_level(logging.INFO)
    box_images[1]["spacing"] = None
    args = tiny_args(tmp_path, DATASETS__TRAIN=("box_images",), DATASETS__TEST=())
    assert check_inputs(load_config(args), args) == 3
    assert "box_images: found 1 of 3 images without spacing (the first: 1): their" in caplog.text
    args.opts += ["INPUT.CT.PIXEL_SPACING", "0.8"]
    expected = (
        r"INPUT.CT.PIXEL_SPACING: found 0.8, expected 0 for DATASETS.TRAIN, box_images: found 1"
    )
    with pytest.raises(InputError, match=expected):
        check_inputs(load_config(args), args)


def test_a_data_set_that_cannot_hide_annotations_is_told_of(tmp_path, box_images):
    args = tiny_args(
        tmp_path, DATASETS__TRAIN=("box_images",), DATASETS__MISSING_ANNOTATION_RATIO=0.5
    )
    expected = r"TRAIN, box_images: found .*annotations cannot be hidden, expected .* of 0, not 0.5"
    with pytest.raises(InputError, match=expected):
        check_inputs(load_config(args), args)


_VOLUMES = "phantom_volumes_annotated"  # of phantom_train's first patients


@pytest.mark.parametrize("name", ["phantom_train", "phantom_volumes_train"])
def test_series_are_excluded_from_training_sets_only(tiny_phantom, tmp_path, name):
    whole = DatasetCatalog.get(name)
    patients = {image["patient"] for image in DatasetCatalog.get(_VOLUMES)}
    options = {"DATASETS__EXCLUDED_VOLUMES": (_VOLUMES,), "DATASETS__TEST": (_VOLUMES,)}
    args = tiny_args(tmp_path, DATASETS__TRAIN=(name,), **options)
    cfg = load_config(args)
    num_images = check_inputs(cfg, args)
    left = read_dataset(name, DatasetOptions.from_config(cfg, name, "TRAIN"))
    assert left == [image for image in whole if image["patient"] not in patients] != whole
    assert num_images == sum(1 for image in left if image["annotations"])
    tested = load_run_dicts(cfg, [_VOLUMES], "TEST")
    assert {image["patient"] for image in tested} == patients
    assert DatasetCatalog.get(name) == load_run_dicts(cfg, [name], "TEST") == whole


def test_excluded_volumes_that_are_a_training_set_themselves_stay_there(tiny_phantom, tmp_path):
    whole = DatasetCatalog.get(_VOLUMES)
    train = ("phantom_train", _VOLUMES)
    args = tiny_args(tmp_path, DATASETS__TRAIN=train, DATASETS__EXCLUDED_VOLUMES=(_VOLUMES,))
    cfg = load_config(args)
    check_inputs(cfg, args)
    others, kept = (read_dataset(n, DatasetOptions.from_config(cfg, n, "TRAIN")) for n in train)
    assert kept == whole
    patients = {image["patient"] for image in others}
    assert patients.isdisjoint(image["patient"] for image in whole)


@pytest.mark.parametrize(
    "train, test, excluded, expected",
    [
        ("phantom_train", (), "phantom_volumes_trai", "{}: found 'phantom_volumes_trai', .* such "),
        ("phantom_train", (), "phantom_val", "{}: found 'phantom_val', expected a data set of vol"),
        (
            "phantom_train",
            (),
            "deeplesion_volumes_val",
            r"{}: .*volumes_val\.json: no such annotat",
        ),
        (
            "box_images",
            (),
            _VOLUMES,
            "{}: box_images: found a data set that can only be read completely",
        ),
        (
            _VOLUMES,
            (),
            "phantom_volumes_train",
            rf"DATASETS.TRAIN, {_VOLUMES}: found all \d+ images in series of the excluded vol",
        ),
        (
            "phantom_train",
            ("phantom_train",),
            _VOLUMES,
            r"DATASETS.TEST: found \('phantom_train',\), expected none of .* have excluded volumes",
        ),
    ],
)
def test_wrong_exclusions_stop_a_run(
    tiny_phantom, tmp_path, box_images, train, test, excluded, expected
):
    options = {"DATASETS__TRAIN": (train,), "DATASETS__TEST": test}
    args = tiny_args(
        tmp_path, DATASETS__EXCLUDED_VOLUMES=(excluded,), TEST__EVAL_PERIOD=0, **options
    )
    expected = expected.replace("{}", "DATASETS.EXCLUDED_VOLUMES")
    with pytest.raises(InputError, match=f"^{expected}") as error:
        check_inputs(load_config(args), args)
    assert "\n" not in str(error.value)


def _unchanged(annotations: list[dict]) -> None:
    pass


def _without_key(annotations: list[dict]) -> None:
    next(a for a in annotations if "is_key" in a).pop("is_key")


def _all_keys(annotations: list[dict]) -> None:
    for annotation in annotations:
        annotation["is_key"] = True


def _without_lesion(annotations: list[dict]) -> None:
    annotations[-1].pop("lesion_id")


@pytest.mark.parametrize(
    "criteria, change, expected",
    [
        (("p3d@0.5",), _without_key, ", key_volumes, volume 0.*: found no key slice of the lesion"),
        (("iou@0.3", "p3d@0.5"), _without_key, ", key_volumes, volume 0.*'is_key' for p3d@0.5$"),
        (("iou@0.3", "iobb@0.3"), _without_key, None),
        (("p3d@0.5",), _unchanged, None),
        (("p3d@0.5",), _all_keys, r": key_volumes, .*, lesion \d+: found key slices \d+ and"),
        (
            ("iou@0.1",),
            _without_lesion,
            ": key_volumes, .* found an annotation without 'lesion_id'",
        ),
    ],
)
def test_volumes_that_cannot_be_evaluated_stop_a_run(
    tiny_phantom, tmp_path, criteria, change, expected
):
    images = copy.deepcopy(DatasetCatalog.get("phantom_volumes_val"))
    change([annotation for image in images for annotation in image["annotations"]])
    DatasetCatalog.register("key_volumes", lambda: images)
    MetadataCatalog.get("key_volumes").set(evaluator_type="lesion_volume")
    args = tiny_args(tmp_path, DATASETS__TEST=("key_volumes",), TEST__VOLUME_CRITERIA=criteria)
    try:
        if expected is None:
            assert check_inputs(load_config(args), args) > 0
        else:
            with pytest.raises(InputError, match=f"^DATASETS.TEST{expected}") as error:
                check_inputs(load_config(args), args)
            assert "\n" not in str(error.value)
    finally:
        DatasetCatalog.remove("key_volumes")
        MetadataCatalog.remove("key_volumes")


def test_an_empty_split_stops_a_run(tiny_phantom, tmp_path, monkeypatch):
    _copy_without(tiny_phantom, tmp_path, monkeypatch, lambda line: line.endswith(",2"))
    with pytest.raises(InputError, match=r"DATASETS.TEST, phantom_val: .*no lesions"):
        train_net.main(tiny_args(tmp_path / "output"))


def test_images_without_lesions_only_are_no_training_set(tmp_path):
    DatasetCatalog.register("empty_images", lambda: [_image(i, []) for i in range(3)])
    try:
        cfg = tiny_config(DATASETS__TRAIN=("empty_images",))
        with pytest.raises(InputError, match="found no lesion in empty_images"):
            check_inputs(cfg, tiny_args(tmp_path))
        cfg = tiny_config(DATASETS__TRAIN=("empty_images",), DATASETS__TEST=())
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        assert check_inputs(cfg, tiny_args(tmp_path)) == 3
    finally:
        DatasetCatalog.remove("empty_images")


def test_slices_that_were_not_prepared_stop_a_run(tiny_phantom, tmp_path):
    args = tiny_args(tmp_path, DATASETS__PREPARED_SLICES=True)
    with pytest.raises(InputError, match=r"PREPARED_SLICES.*\n.*no such file of prepared slice"):
        check_inputs(load_config(args), args)


def test_missing_files_stop_a_run_unless_they_may_be_missing(tiny_phantom, tmp_path, monkeypatch):
    _copy_without(tiny_phantom, tmp_path, monkeypatch, lambda line: False)
    gone = DatasetCatalog.get("phantom_train")[0]
    num_images = len(DatasetCatalog.get("phantom_train"))
    shutil.move(gone["file_name"], tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"DATASETS\.TRAIN, phantom_train: .*found no file"):
        train_net.main(tiny_args(tmp_path / "output"))
    args = tiny_args(tmp_path / "output", DATASETS__ALLOW_MISSING=True)
    assert check_inputs(load_config(args), args) == num_images - 1
    with pytest.raises(InputError, match="found no file"):  # the key counts anew in every run
        train_net.main(tiny_args(tmp_path / "output"))


@pytest.mark.parametrize("name", ["phantom_volumes_val", "box_images"])
def test_a_data_set_that_leaves_nothing_out_is_told_of(tiny_phantom, tmp_path, box_images, name):
    args = tiny_args(tmp_path, DATASETS__TEST=(name,), DATASETS__ALLOW_MISSING=True)
    for _ in range(2):  # the check itself makes no data set able to
        with pytest.raises(InputError, match=rf"DATASETS.ALLOW_MISSING: {name}: found"):
            check_inputs(load_config(args), args)


def _copy_without(source, folder, monkeypatch, is_left_out) -> None:
    shutil.copytree(source / "phantom", folder / "phantom")
    file = folder / "phantom" / "DL_info.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not is_left_out(line)) + "\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
