import json
import pickle
import re

from lesion_d2.importers.nnunet import ComponentOptions, list_nnunet
from lesion_d2.importers.running import run_import
from lesion_d2.importers.task_folders.images import Values
from lesion_d2.importers.task_folders.options import TaskOptions

import nibabel
import numpy as np
import pytest
from made_up_tasks import (
    affine_of,
    label_places,
    lesion_voxels,
    same_places,
    save,
    save_json,
    write_nnunet,
)
from PIL import Image
from round_trip import check_trains_and_evaluates
from skimage import measure

TUMOUR = ComponentOptions(lesion_labels=("tumour",))
STRAIGHT = [("LPS", 0)]


def read_case(root, name, components=TUMOUR, options=None):
    case = next(c for c in list_nnunet(root, components, options).cases if c.name == name)
    return pickle.loads(pickle.dumps(case.read))()


def edit_json(root, **changes):
    file = root / "dataset.json"
    content = {**json.loads(file.read_text()), **changes}
    save_json(file, {key: value for key, value in content.items() if value is not None})


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_labels_lie_where_nibabel_says_in_every_generation(tmp_path, generation):
    cases = {f"case_{n:04d}": (1, 2, 3) for n in range(4)} | {"empty": ()}
    root = write_nnunet(tmp_path, cases, generation=generation)
    listing = list_nnunet(root, ComponentOptions(("liver", "1")))
    assert listing.classes == ("liver", "tumour") and not listing.left_out
    assert [case.name for case in listing.cases] == sorted(cases)
    for case in listing.cases:
        volume = case.read().volume
        if case.name == "empty":
            assert volume.lesions == ()
            continue
        # halves of two balls that touch are one component of a semantic label
        assert [lesion.category for lesion in volume.lesions] == [0, 1]
        for lesion in volume.lesions:
            places = volume.to_patient(lesion_voxels(volume, lesion))
            label = 2 - lesion.category
            file = root / f"labelsTr/{case.name}.nii.gz"
            assert same_places(places, label_places(file, [label]))


@pytest.mark.parametrize("connectivity, neighbors", [(6, 1), (18, 2), (26, 3)])
def test_components_are_those_of_scikit_image(tmp_path, connectivity, neighbors):
    root = write_nnunet(tmp_path, {"a": ()}, orientations=STRAIGHT)
    labels = (np.random.default_rng(0).random((44, 48, 14)) < 0.02).astype(np.uint8)
    labels[3:5, 3:5, 3], labels[5, 5, 4] = 1, 1
    save(root / "labelsTr/a.nii.gz", labels, affine_of("LPS"))
    imported = read_case(root, "a", ComponentOptions(("1",), connectivity=connectivity))
    components = measure.label(labels[:, :, ::-1].T, connectivity=neighbors)
    expected = set()
    for region in measure.regionprops(components):
        z1, y1, x1, z2, y2, x2 = region.bbox
        expected.add((x1 - 0.5, y1 - 0.5, z1, x2 - 0.5, y2 - 0.5, z2 - 1, region.num_pixels))
    volume = imported.volume
    found = {(*le.box, len(lesion_voxels(volume, le))) for le in volume.lesions}
    assert found == expected and len(volume.lesions) == components.max()


def test_small_components_are_dropped_and_told(tmp_path):
    root = write_nnunet(tmp_path, {"a": (1,)}, orientations=[("PIL", 6)])
    file = root / "labelsTr/a.nii.gz"
    image = nibabel.load(file)
    labels = np.asarray(image.dataobj).copy()
    labels[0, 0, :3] = 1  # 3 voxels of 1.4 mm3
    save(file, labels, image.affine)
    whole = ComponentOptions(("tumour",), min_volume=4.2)
    assert len(read_case(root, "a", whole).volume.lesions) == 2
    imported = read_case(root, "a", ComponentOptions(("tumour",), min_volume=4.3))
    assert len(imported.volume.lesions) == 1
    (line,) = imported.left_out
    assert line.endswith("a.nii.gz: 1 components of 'tumour' below 4.3 mm3")


def test_which_labels_are_lesions_has_to_be_said(tmp_path):
    root = write_nnunet(tmp_path, {"a": (1, 3)}, orientations=STRAIGHT)
    with pytest.raises(ValueError, match=r"2 labels \('tumour' 1, 'liver' 2\).*--lesion-labels"):
        list_nnunet(root)
    for wrong in ("lung", "7", "0"):
        with pytest.raises(ValueError, match=rf"--lesion-labels: found '{wrong}', expected one of"):
            list_nnunet(root, ComponentOptions((wrong,)))
    edit_json(root, labels={"background": 0, "tumour": 1})
    assert list_nnunet(root).classes == ("tumour",)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: found the labels 2, expected those of"):
        list_nnunet(root).cases[0].read()


def test_regions_and_voxels_that_nobody_labelled(tmp_path):
    root = write_nnunet(tmp_path, {"a": (1, 3)}, orientations=STRAIGHT)
    file = root / "labelsTr/a.nii.gz"
    labels = np.asarray(nibabel.load(file).dataobj).copy()
    labels[40:, 40:, :2] = 3
    save(file, labels, affine_of("LPS"))
    edit_json(root, labels={"background": 0, "whole": [1, 2], "core": 1, "ignore": 3})
    lesions = read_case(root, "a", ComponentOptions(("whole", "core"))).volume.lesions
    assert [(le.id, le.category, le.ignore) for le in lesions] == [
        (1, 0, False),
        (2, 0, False),
        (3, 1, False),
        (4, 0, True),
        (5, 1, True),
    ]
    assert lesions[3].box == lesions[4].box == (39.5, 39.5, 12.0, 43.5, 47.5, 13.0)


def test_modalities_along_a_fourth_axis(tmp_path):
    root = write_nnunet(tmp_path, {"a": (1,)}, generation=0, orientations=STRAIGHT)
    file = root / "imagesTr/a.nii.gz"
    image = nibabel.load(file)
    hu = np.asarray(image.dataobj)
    save(file, np.stack([hu // 2, hu], -1), image.affine)
    edit_json(root, modality={"0": "MRI", "1": "CT"})
    with pytest.raises(
        ValueError, match=r"2 modalities \(0 'MRI', 1 'CT'\), expected one; .* --mod"
    ):
        list_nnunet(root, TUMOUR)
    with pytest.raises(ValueError, match="modality 'MRI', expected CT"):
        list_nnunet(root, TUMOUR, TaskOptions(modality=0))
    voxels = read_case(root, "a", options=TaskOptions(modality=1)).voxels
    assert np.array_equal(voxels, hu[:, :, ::-1].T)
    edit_json(root, modality={"0": "CT"})
    with pytest.raises(ValueError, match="found 2 volumes along the fourth axis, expected 1"):
        read_case(root, "a")


def test_cases_of_the_second_generation_by_their_paths(tmp_path):
    root = write_nnunet(tmp_path, {"a": (1,), "b": ()}, orientations=STRAIGHT)
    (root / "imagesTr/a_0000.nii.gz").rename(root / "scan.nii.gz")
    dataset = {"a": {"images": ["scan.nii.gz"], "label": "labelsTr/a.nii.gz"}}
    edit_json(root, dataset=dataset)
    assert [case.name for case in list_nnunet(root, TUMOUR).cases] == ["a"]
    assert read_case(root, "a").voxels.max() == 90
    edit_json(root, dataset={"a": {"images": ["../scan.nii.gz"]}})
    with pytest.raises(ValueError, match=r"dataset, 0: found .*expected paths .* in this folder"):
        list_nnunet(root, TUMOUR)


def test_pictures_of_8_bits(tmp_path):
    values = np.full((20, 30), 10, np.uint8)
    values[4:9, 7:19] = 200
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    Image.fromarray(values).save(tmp_path / "imagesTr/x_0000.png")
    Image.fromarray((values == 200).astype(np.uint8)).save(tmp_path / "labelsTr/x.png")
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}}
    save_json(tmp_path / "dataset.json", {**dataset, "file_ending": ".png"})
    options = TaskOptions(values=Values(hu_window=(-160, 240)))
    volume = read_case(tmp_path, "x", options=options).volume
    assert volume.lesions[0].box == (6.5, 3.5, 0.0, 18.5, 8.5, 0.0) and volume.spacing is None
    with pytest.raises(ValueError, match=r"x_0000\.png: found no spacing, expected one for"):
        read_case(tmp_path, "x", ComponentOptions(min_volume=1.0), options)


def test_test_cases_with_labels_and_without(tmp_path):
    root = write_nnunet(tmp_path, {"t": (1,), "u": ()}, split="Ts", orientations=STRAIGHT)
    write_nnunet(root, {"a": (1,)}, orientations=STRAIGHT)
    (root / "labelsTs/u.nii.gz").unlink()
    listing = list_nnunet(root, TUMOUR)
    assert [(case.name, case.split) for case in listing.cases] == [("a", None), ("t", "test")]
    (line,) = listing.left_out
    assert re.search(r"u_0000\.nii\.gz: found no label map, expected .*u\.nii\.gz", line)
    assert not listing.damaged


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": None}, "labels: found None, expected names and numbers"),
        ({"labels": {"background": 0}}, "labels: found .*expected a label other than background"),
        ({"labels": {"tumour": "1"}}, r"labels: found \['1'\] for 'tumour', expected an integer"),
        ({"channel_names": {"1": "CT"}}, "channel_names: found .* numbers from 0 as keys"),
        ({"channel_names": None}, "modality: found None.*task folders of nnD.*import_data nnd"),
        ({"training": {}}, "training: found {}, expected a list of cases"),
        ({"labels": {"background": 0, "ignore": 1}}, "labels: found .*, expected a label other"),
        (
            {"labels": {"a": [0, 1]}},
            r"labels: found \[0, 1\] for 'a', expected an integer from 0, or",
        ),
        ({"labels": {"a": 1, "ignore": [2, 3]}}, r"labels: found \[2, 3\] for 'ignore', expected"),
        ({"labels": {"background": 0, "": 1}}, "labels: found the name '', expected text"),
        ({"training": [{"label": "a"}]}, "training, 0: found .*, expected paths"),
        ({"training": [{"image": "/etc/a.nii"}]}, "training, 0: found .* in this folder"),
    ],
)
def test_a_bad_dataset_file_is_one_line(tmp_path, changes, message):
    root = write_nnunet(tmp_path, {"a": ()}, orientations=STRAIGHT)
    edit_json(root, **changes)
    with pytest.raises(ValueError, match=rf"dataset\.json: {message}") as error:
        list_nnunet(root, TUMOUR)
    assert "\n" not in str(error.value)


def test_files_of_no_case_are_told(tmp_path):
    root = write_nnunet(tmp_path, {"a": (), "b": (1,), "c": ()}, orientations=STRAIGHT)
    (root / "imagesTr/b_0000.nii.gz").unlink()
    listing = list_nnunet(root, TUMOUR)
    assert [case.name for case in listing.cases] == ["a", "c"]
    (line,) = listing.damaged
    assert re.search(r"labelsTr/b\.nii\.gz: found no image of this case in imagesTr, exp", line)
    edit_json(root, training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}])
    listing = list_nnunet(root, TUMOUR)
    assert [case.name for case in listing.cases] == ["a"] and not listing.damaged
    (line,) = listing.left_out
    assert re.search(
        "2 cases of imagesTr or labelsTr are not among the training .*such as 'b'", line
    )


def test_damaged_cases_are_told_and_the_others_go_on(tmp_path):
    root = write_nnunet(
        tmp_path, dict.fromkeys(["a", "b", "c"], ()), generation=1, orientations=STRAIGHT
    )
    (root / "labelsTr/b.nii.gz").unlink()
    (root / "imagesTr/c_0000.nii.gz").unlink()
    listing = list_nnunet(root, TUMOUR)
    assert [case.name for case in listing.cases] == ["a"]
    first, second = listing.damaged
    assert re.search(r"b_0000\.nii\.gz: found no label map, expected .*b\.nii\.gz", first)
    assert re.search(r"c\.nii\.gz: no such image, nor c_0000 with an extension", second)
    save(root / "imagesTr/a.nii.gz", np.zeros((4, 4, 4)), np.eye(4))
    assert re.search("found a_0000.nii.gz as well", list_nnunet(root, TUMOUR).damaged[0])


def test_an_import_trains_and_evaluates_perfectly_on_its_truth(tmp_path):
    listing = list_nnunet(
        write_nnunet(tmp_path / "task", {"a": (1, 2, 3), "b": (1,), "empty": ()}),
        ComponentOptions(("tumour", "liver")),
    )
    run_import(listing, tmp_path / "made_nnunet", format="nnunet", workers=1)
    volume_set = check_trains_and_evaluates(tmp_path / "made_nnunet", tmp_path)
    assert [volume.name for volume in volume_set.volumes] == ["a", "b", "empty"]
