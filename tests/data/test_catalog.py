from lesion_d2.data.catalog import load_records, suggest_names

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


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
    with pytest.raises(ValueError, match=r"'deeplesion_tset' is not registered.*deeplesion_test"):
        load_records("deeplesion_tset")
    dicts: list[dict] = []
    DatasetCatalog.register("some_images", lambda: dicts)
    try:
        with pytest.raises(ValueError, match="data set 'some_images' has no images"):
            load_records("some_images")
        dicts.append({"image_id": "1"})
        assert load_records("some_images") == dicts
        with pytest.raises(ValueError, match="some_images: found a data set that is read as a wh"):
            load_records("some_images", allow_missing=True)
    finally:
        DatasetCatalog.remove("some_images")
        MetadataCatalog.pop("some_images", None)
