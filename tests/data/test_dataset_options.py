import logging

from lesion_d2.data import dataset_options
from lesion_d2.data.dataset_options import (
    DatasetOptions,
    ExcludedSeries,
    exclude_series,
    read_dataset,
)

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_deeplesion import good_row, made_up_rows, write_dataset


def _rows(dicts, key="annotations"):
    return [a["row"] for image in dicts for a in image[key]]


def _without(*volumes: str) -> DatasetOptions:
    return DatasetOptions(excluded=ExcludedSeries.of(volumes))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_hidden_annotations_are_a_seeded_share_of_all(tmp_path, registered, caplog, share):
    rows = made_up_rows(200)
    rows = rows[1::2] + rows[::2]  # the rows of one image stand apart
    registered("lesions_hidden", str(write_dataset(tmp_path, rows)), None)
    whole = DatasetCatalog.get("lesions_hidden")
    in_file = sorted(_rows(whole))
    assert _rows(whole) != in_file  # so the file's order is not the dicts'
    order = np.random.default_rng(7).permutation(len(in_file))

    options = DatasetOptions(hidden_share=share, hidden_seed=7)
    with caplog.at_level(logging.INFO, logger=dataset_options.__name__):
        dicts = read_dataset("lesions_hidden", options)
    count = round(share * len(in_file))
    assert set(_rows(dicts, "hidden_annotations")) == {in_file[i] for i in order[:count]}
    for image, before in zip(dicts, whole, strict=True):
        both = image["annotations"] + image["hidden_annotations"]
        assert sorted(both, key=lambda a: a["row"]) == before["annotations"]
        rest = {k: v for k, v in image.items() if not k.endswith("annotations")}
        assert rest == {k: v for k, v in before.items() if k != "annotations"}
    num_bare = [len(image["annotations"]) for image in dicts].count(0)
    assert f"{count} of {len(in_file)} annotations are hidden" in caplog.text
    assert f"{num_bare} of {len(dicts)} key slices have none left" in caplog.text
    assert read_dataset("lesions_hidden", options) == dicts
    assert DatasetCatalog.get("lesions_hidden") == whole


def test_hidden_annotations_of_other_shares_and_seeds(tmp_path, registered):
    root = write_dataset(tmp_path, [good_row(i) for i in range(1, 41)])
    registered("lesions_hidden", str(root), None)
    whole = DatasetCatalog.get("lesions_hidden")

    def hidden(share, seed=0):
        options = DatasetOptions(hidden_share=share, hidden_seed=seed)
        return set(_rows(read_dataset("lesions_hidden", options), "hidden_annotations"))

    assert hidden(0.3) == hidden(0.3, 0) and hidden(0.3) < hidden(0.5)
    assert hidden(0.5, 1) != hidden(0.5, 2)
    assert hidden(0.001) == set()
    assert read_dataset("lesions_hidden") == whole  # without the key
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(
            ValueError, match=r"lesions_hidden: found a hidden share of .* \[0, 1\)"
        ):
            hidden(share)


def test_a_share_is_refused_where_nothing_can_be_hidden():
    dicts = [{"image_id": 1, "hidden_annotations": []}, {"image_id": 2}]
    DatasetCatalog.register("lesions_shown", lambda: dicts)
    try:
        expected = (
            "lesions_shown: found a data set whose annotations cannot be hidden, .* of 0, not 0.3"
        )
        with pytest.raises(ValueError, match=expected):
            read_dataset("lesions_shown", DatasetOptions(hidden_share=0.3))
        dicts[1]["hidden_annotations"] = []  # it is annotated completely, and says so
        assert read_dataset("lesions_shown", DatasetOptions(hidden_share=0.3)) == dicts
    finally:
        DatasetCatalog.remove("lesions_shown")
        MetadataCatalog.pop("lesions_shown", None)


def test_hidden_annotations_are_a_share_of_those_that_are_there(tmp_path, registered):
    rows = [good_row(i) for i in range(1, 11)]
    root = write_dataset(tmp_path, rows, without=[r["File_name"] for r in rows[:6]])
    registered("lesions_hidden", str(root), None)
    options = DatasetOptions(allow_missing=True, hidden_share=0.5)
    dicts = read_dataset("lesions_hidden", options)
    assert len(dicts) == 4 and len(_rows(dicts)) == 2


@pytest.fixture
def volumes():
    """Registers dicts of (patient, study, series) as sets that can exclude each other's series."""
    names = []

    def register(name, series):
        keys = ("patient", "study", "series")
        dicts = [{"image_id": i, **dict(zip(keys, s, strict=False))} for i, s in enumerate(series)]
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(evaluator_type="lesion_volume", can_exclude_volumes=True)
        names.append(name)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_images_of_excluded_series_are_left_out(tmp_path, registered, volumes, caplog):
    rows = [  # two slices a series, one lesion each
        good_row(
            patient,
            10 + slice_index,
            File_name=f"{patient:06d}_{study:02d}_{series:02d}_{10 + slice_index:03d}.png",
            Study_index=str(study),
            Series_ID=str(series),
        )
        for slice_index in (1, 0)
        for patient, study, series in np.ndindex(4, 3, 2)
    ]
    registered("lesions_excluding", str(write_dataset(tmp_path, rows)), None)
    whole = DatasetCatalog.get("lesions_excluding")
    assert len(whole) == 48
    # Twice the same volume; one with a series of another patient, study and series; a strange one.
    gone = [(1, 1, 1), (1, 1, 1), (1, 2, 0), (3, 0, 1), (9, 9, 9)]
    volumes("volumes_a", gone[:2])
    volumes("volumes_b", gone[2:])

    excluded = ExcludedSeries.of(["volumes_a", "volumes_b"])
    with caplog.at_level(logging.INFO, logger=dataset_options.__name__):
        left = read_dataset("lesions_excluding", DatasetOptions(excluded=excluded))
    kept = [d for d in whole if (d["patient"], d["study"], d["series"]) not in gone]
    assert left == kept and len(kept) == 42
    expected = "6 of 48 images are left out, from 3 series of excluded volumes (volumes_a, volume"
    assert expected in caplog.text
    # The volumes' dicts do not tell their slices here: none of the images' sub-volumes is theirs.
    assert "volumes_b): 3 sub-volumes, 3 of them with other slices of these series" in caplog.text
    both = DatasetOptions(excluded=excluded, hidden_share=0.5)  # of what is left
    assert len(_rows(read_dataset("lesions_excluding", both), "hidden_annotations")) == 21
    assert len(read_dataset("lesions_excluding", _without("volumes_a"))) == 46
    assert DatasetCatalog.get("lesions_excluding") == whole


def test_excluded_volumes_are_whole_themselves(volumes):
    volumes("volumes_a", [(1, 1, 1), (2, 1, 1)])
    volumes("volumes_b", [(1, 1, 1), (3, 1, 1)])
    assert [d["patient"] for d in read_dataset("volumes_a", _without("volumes_b"))] == [2]
    assert [d["patient"] for d in read_dataset("volumes_b", _without("volumes_a"))] == [3]


def test_what_cannot_be_excluded_is_told_of(volumes):
    volumes("volumes_a", [(1, 1, 1), (2, 1, 1)])
    volumes("volumes_b", [(2, 1, 1), (2, 1)])
    volumes("volumes_c", [(2, 1, 1), (1, 1, 1)])
    with pytest.raises(ValueError, match="volumes_b, 1: found no 'series', expected patient, stud"):
        ExcludedSeries.of(["volumes_b"])
    with pytest.raises(KeyError, match="'volumes_d' is not registered"):
        ExcludedSeries.of(["volumes_d"])
    with pytest.raises(
        ValueError, match="toys: found a data set that can only be read completely, expect"
    ):
        read_dataset("toys", _without("volumes_c"))
    for name in ("volumes_a", "volumes_c"):
        expected = rf"volumes_a: found all 2 images in series of the excluded volumes \({name}\)"
        with pytest.raises(ValueError, match=expected):
            read_dataset("volumes_a", _without(name))


def test_phantom_volumes_leave_series_out_too(tiny_phantom):
    annotated = {d["patient"] for d in DatasetCatalog.get("phantom_volumes_annotated")}
    for name in ("phantom_volumes_train", "phantom_train"):
        whole = DatasetCatalog.get(name)
        left = read_dataset(name, _without("phantom_volumes_annotated"))
        assert left == [d for d in whole if d["patient"] not in annotated]
        assert 0 < len(left) < len(whole)


def test_sub_volumes_that_go_with_excluded_ones_are_counted(volumes, caplog):
    """An excluded volume takes the other sub-volumes of its series with it."""

    def image(patient, first, last, number):
        keys = {"patient": patient, "study": 1, "series": 1, "slice_range": (first, last)}
        return {"image_id": f"{patient}_{first}_{number}", **keys}

    dicts = [image(1, 10, 20, 15), image(1, 10, 20, 16), image(1, 30, 40, 33), image(1, 50, 60, 51)]
    dicts += [image(2, 1, 9, 4)]
    volumes("volumes_b", [])
    DatasetCatalog["volumes_b"] = lambda: dicts[:1]
    excluded = ExcludedSeries.of(["volumes_b"])
    with caplog.at_level(logging.INFO, logger=dataset_options.__name__):
        assert exclude_series("volumes_a", dicts, excluded) == dicts[4:]
    expected = (
        "volumes_a: 4 of 5 images are left out, from 1 series of excluded volumes (volumes_b): 3 "
        "sub-volumes, 2 of them with other slices of these series"
    )
    assert expected in caplog.text
