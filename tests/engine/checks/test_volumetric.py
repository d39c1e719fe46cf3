"""What is told of a run of a model of volumes before it begins."""

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.engine import InputError, check_prediction, load_config
from lesion_d2.engine.checks import check_inputs
from lesion_d2.engine.checks.inputs import check_train_sets
from lesion_d2.engine.checks.unused import check_unused
from lesion_d2.engine.checks.volumetric import read_volumes

import pytest
from detectron2.data import DatasetCatalog
from tiny_run import tiny_args
from tiny_volume_run import NAME, balls, volume_args

TRAIN_SET = f"{NAME}_volumes_train"


@pytest.fixture(scope="module", autouse=True)
def data_set(tmp_path_factory):
    with balls(tmp_path_factory.mktemp("checked")):
        yield


def checked(tmp_path, *flags, **changes):
    args = volume_args(tmp_path, *flags, **changes)
    cfg = load_config(args)
    return check_inputs(cfg, args)


def test_an_epoch_has_as_many_patches_as_there_are_volumes(tmp_path):
    # Of four patients with two volumes each, of which one has no lesion.
    assert checked(tmp_path) == 4
    assert checked(tmp_path, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False) == 8
    with_empty = {
        "DATALOADER__FILTER_EMPTY_ANNOTATIONS": False,
        "DATALOADER__EMPTY_IMAGE_RATIO": 0.2,
    }
    assert checked(tmp_path, **with_empty) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"INPUT__VOLUME__PATCH_SIZE": (0, 0, 0)},
            r"INPUT.VOLUME.PATCH_SIZE: found \(0, 0, 0\), expected .* for a model of volumes",
        ),
        (
            {"INPUT__VOLUME__PATCH_SIZE": (16, 0, 32)},
            r"INPUT.VOLUME.PATCH_SIZE: found \(16, 0, 32\), expected depth, height and width",
        ),
        (
            {"MODEL__META_ARCHITECTURE": "RetinaUNet"},
            "META_ARCHITECTURE: found 'RetinaUNet', expected a model of volumes such as",
        ),
        ({"TEST__VOLUME_TILE_SIZE": (16, 32)}, r"VOLUME_TILE_SIZE: found \(16, 32\), expected"),
        (
            {"INPUT__VOLUME__SPACING": (1.0, -1.0, 1.0)},
            r"VOLUME.SPACING: found \(1.0, -1.0, 1.0\), expected x, y and z in mm",
        ),
        (
            {"INPUT__VOLUME__SPACING": (1e-9, 1.0, 1.0)},
            r"VOLUME.SPACING: found \(1e-09, 1.0, 1.0\), expected x, y and z in mm, .* 0.01 to 100",
        ),
        (
            {"INPUT__VOLUME__PATCH_SIZE": (10**5,) * 3},
            r"PATCH_SIZE: found \(100000, 100000, 100000\), expected .* no more than a scan has",
        ),
        (
            {"INPUT__CT__HU_WINDOW": (40000.0, 50000.0)},
            r"HU_WINDOW: found \(40000.0, 50000.0\), expected low < high, HU of 16 bits",
        ),
        (
            {"MODEL__MEAN_TEACHER__ENABLED": True},
            "TEACHER.ENABLED: found True, expected False",
        ),
        (
            {"MODEL__RETINA_UNET__CALIBRATION": 0.5},
            "CALIBRATION: found 0.5, expected 0 for a RetinaUNet3D",
        ),
        ({"MODEL__UNET_FPN__ATTENTION": True}, "UNET_FPN.ATTENTION: found True, expected False"),
        ({"INPUT__PATCH__SIZE": (32, 32)}, "INPUT.PATCH.SIZE: found .*INPUT.VOLUME.PATCH_SIZE is"),
        ({"TEST__ENSEMBLE__TILE_SIZE": 64}, "TILE_SIZE: found 64, .*TEST.VOLUME_TILE_SIZE is"),
        ({"INPUT__CT__CROP_TO_BODY": True}, "CROP_TO_BODY: found True, expected False"),
        ({"INPUT__CT__PIXEL_SPACING": 1.0}, "PIXEL_SPACING: found 1.0, .*INPUT.VOLUME.SPACING is"),
        ({"HARD_NEGATIVES__PERIOD": 2}, "HARD_NEGATIVES.PERIOD: found 2, expected 0.* on slices"),
        ({"TEST__LOSS_PERIOD": 2}, "TEST.LOSS_PERIOD: found 2, expected 0.* of slices"),
        ({"MODEL__PIXEL_MEAN": [127.5] * 3}, r"PIXEL_MEAN: found \[127.5, .*\], expected 1 number"),
        ({"INPUT__AUG__RESIZE_RANGE": (0.5, 1.0)}, "INPUT.AUG.RESIZE_RANGE: found"),
        (
            {"DATASETS__TEST": (f"{NAME}_val",)},
            "TEST, data set .* found single slices, expected all",
        ),
        (
            {"DATASETS__TRAIN": (f"{NAME}_train",)},
            f"'{NAME}_train': found single slices, expected all",
        ),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        checked(tmp_path, **changes)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_of_volumes_needs_patches_of_them(tmp_path):
    args = tiny_args(tmp_path, MODEL__META_ARCHITECTURE="RetinaUNet3D")
    with pytest.raises(
        InputError, match=r"PATCH_SIZE: found \(0, 0, 0\), .*ARCHITECTURE is RetinaUNet3D"
    ):
        check_inputs(load_config(args), args)


@pytest.mark.parametrize(
    ("key", "value"), [("INPUT__VOLUME__NOISE", 20.0), ("TEST__VOLUME_TILE_SIZE", (16, 32, 32))]
)
def test_keys_of_volumes_are_refused_for_a_model_of_slices(tmp_path, key, value):
    args = tiny_args(tmp_path, **{key: value})
    name = key.replace("__", ".")
    with pytest.raises(InputError, match=f"{name}: found .*, expected .* looks at slices"):
        check_unused(load_config(args))
    check_unused(load_config(tiny_args(tmp_path, INPUT__VOLUME__SPACING=(0.7, 0.7, 1.25))))


def num_volumes(cfg):
    """What the check of the training set counts."""
    return check_train_sets(cfg)


def test_volumes_without_what_a_model_goes_by_are_refused(tmp_path, monkeypatch):
    dicts = DatasetCatalog.get(TRAIN_SET)
    cfg = load_config(volume_args(tmp_path, INPUT__VOLUME__SPACING=(1.0, 1.0, 1.0)))
    assert num_volumes(cfg) == 4
    for d in dicts[:20]:
        d["spacing"] = None
    monkeypatch.setitem(DatasetCatalog.data, TRAIN_SET, lambda: dicts)
    with pytest.raises(InputError, match=r"TRAIN: volume v0: found spacing None, .*SPACING is"):
        num_volumes(cfg)
    cfg.INPUT.VOLUME.SPACING = (0.0, 0.0, 0.0)
    assert num_volumes(cfg) == 4

    masked = [a for d in dicts for a in d["annotations"] if "segmentation" in a]
    assert masked
    del masked[0]["segmentation"]
    assert num_volumes(cfg) == 4  # made of its box
    cfg.INPUT.PSEUDO_MASK_FROM_BOX = False
    with pytest.raises(
        InputError, match=r"found 1 of \d lesions without a mask .*INPUT.PSEUDO_MASK_FROM_BOX"
    ):
        num_volumes(cfg)
    cfg.MODEL.MASK_ON = False
    assert num_volumes(cfg) == 4
    for d in dicts:
        d["annotations"] = []
    with pytest.raises(InputError, match=f"DATASETS.TRAIN: found no lesion in {TRAIN_SET}"):
        num_volumes(cfg)


def test_a_data_set_is_read_once_for_all_checks(tmp_path, monkeypatch):
    args = volume_args(tmp_path)
    cfg, reads = load_config(args), []
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        read = DatasetCatalog.data[name]
        counted = lambda name=name, read=read: reads.append(name) or read()  # noqa: E731
        monkeypatch.setitem(DatasetCatalog.data, name, counted)
    check_inputs(cfg, args)
    assert sorted(reads) == sorted((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def test_a_prediction_needs_weights_and_patches(tmp_path):
    cfg = load_config(volume_args(tmp_path))
    with pytest.raises(InputError, match=r"MODEL.WEIGHTS: found none"):
        check_prediction(cfg)
    cfg.INPUT.VOLUME.PATCH_SIZE = (0, 0, 0)
    with pytest.raises(InputError, match="expected depth, height and width of patches"):
        check_prediction(cfg)


def test_boxes_on_key_slices_alone_are_told_of(tmp_path, caplog):
    dicts, cfg = DatasetCatalog.get(TRAIN_SET), load_config(volume_args(tmp_path))
    read_volumes(cfg, "TRAIN", [dicts])
    assert "single slice" not in caplog.text
    seen = set()
    for d in dicts:
        d["annotations"] = [
            a for a in d["annotations"] if (d["volume"], a["lesion_id"]) not in seen
        ]
        seen |= {(d["volume"], a["lesion_id"]) for a in d["annotations"]}
    read_volumes(cfg, "TRAIN", [dicts])
    told = f"found {len(seen)} of {len(seen)} lesions on a single slice (the first in volume v0)"
    assert told in caplog.text
