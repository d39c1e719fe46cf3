import weakref

from lesion_d2.config import get_lesion_config
from lesion_d2.data.catalog import (
    keep_train_sets,
    load_records,
    load_train_dicts,
    suggest_names,
)
from lesion_d2.data.dataset_options import DatasetOptions

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts


def test_misspelled_names_get_the_like_of_their_kind():
    assert suggest_names("deeplesion_trian").split(", ")[0] == "deeplesion_train"
    names = suggest_names("deeplesion_volume_val", "lesion_volume").split(", ")
    assert names[0] == "deeplesion_volumes_val" and 1 <= len(names) <= 5
    kinds = {MetadataCatalog.get(name).evaluator_type for name in names}
    assert kinds == {"lesion_volume"}
    assert len(suggest_names("?").split(", ")) == 5  # like none of them: any five


def test_data_sets_of_volumes_are_named_before_those_that_may_have_no_files():
    DatasetCatalog.register("some_volumes", list)
    MetadataCatalog.get("some_volumes").set(evaluator_type="lesion", volume_set="/some_volumes")
    try:
        assert "some_volumes" in suggest_names("?").split(", ")
    finally:
        DatasetCatalog.remove("some_volumes")
        MetadataCatalog.pop("some_volumes", None)


def test_records_of_registered_data_sets_alone():
    with pytest.raises(ValueError, match=r"'deeplesion_tset', which is not .* as deeplesion_test"):
        load_records("deeplesion_tset")
    dicts: list[dict] = []
    DatasetCatalog.register("some_images", lambda: dicts)
    try:
        with pytest.raises(ValueError, match="data set 'some_images': found no images"):
            load_records("some_images")
        dicts.append({"image_id": "1"})
        assert load_records("some_images") == dicts
        with pytest.raises(ValueError, match="some_images: found a data set that can only be read"):
            load_records("some_images", DatasetOptions(allow_missing=True))
        dicts.append({"image_id": "2", "annotations": [{"lesion": 1}]})
        expected = "data set 'some_images', image 2: found the key 'lesion', expected 'lesion_id'"
        with pytest.raises(ValueError, match=expected):
            load_records("some_images")
        del dicts[1]["image_id"]
        with pytest.raises(ValueError, match="image None: found the key 'lesion'"):
            load_records("some_images")
    finally:
        DatasetCatalog.remove("some_images")
        MetadataCatalog.pop("some_images", None)


@pytest.fixture
def two_sets():
    """Of images with lesions, with regions to ignore alone, and with nothing."""
    read = []
    lesion = {"category_id": 1, "iscrowd": 0}
    region = {"category_id": 0, "iscrowd": 1}
    images = [[lesion, region], [region], [], [{"category_id": 0}]]
    for name in ("set_a", "set_b"):
        dicts = [{"image_id": f"{name} {i}", "annotations": a} for i, a in enumerate(images)]
        DatasetCatalog.register(name, lambda n=name, d=dicts: read.append(n) or [*d])
        MetadataCatalog.get(name).set(thing_classes=["x", "y"])
    yield read
    for name in ("set_a", "set_b"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config_of(*names, filter_empty=True):
    cfg = get_lesion_config()
    cfg.DATASETS.TRAIN = names
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    return cfg


@pytest.mark.parametrize("filter_empty", [True, False])
def test_training_dicts_and_their_histogram_are_detectron2s(two_sets, monkeypatch, filter_empty):
    said = []
    module = "detectron2.data.build.log_first_n"
    monkeypatch.setattr(module, lambda level, text, **_: said.append(text))
    names = ("set_a", "set_b")
    dicts = load_train_dicts(config_of(*names, filter_empty=filter_empty))
    assert dicts == get_detection_dataset_dicts(names, filter_empty=filter_empty)
    assert len(dicts) == (4 if filter_empty else 8)
    assert said[0] == said[1] and "total" in said[0]


def test_what_was_checked_is_not_read_again_by_the_loader_of_the_same_run(two_sets):
    cfg = config_of("set_a", "set_b")
    checked = [DatasetCatalog.get(name) for name in cfg.DATASETS.TRAIN]
    keep_train_sets(cfg, checked)
    assert len(load_train_dicts(cfg.clone())) == 4  # of another run
    assert two_sets == ["set_a", "set_b"] * 2
    assert load_train_dicts(cfg)[0] is checked[0][0]
    assert two_sets == ["set_a", "set_b"] * 2
    load_train_dicts(cfg)  # they were given away
    assert two_sets == ["set_a", "set_b"] * 3


def test_nothing_is_kept_longer_than_its_run(two_sets):
    cfg, image = config_of("set_a"), type("Image", (dict,), {})(annotations=[])
    gone = []
    weakref.finalize(image, gone.append, True)
    keep_train_sets(cfg, [[image]])
    del image
    assert not gone
    del cfg
    assert gone


def test_no_image_is_told(two_sets):
    cfg = config_of("set_a")
    keep_train_sets(cfg, [[{"annotations": []}]])
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN: found no image in set_a, expected"):
        load_train_dicts(cfg)
