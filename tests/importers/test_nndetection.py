import collections
import json
import pickle
import re

from lesion_d2.importers.nndetection import list_nndetection
from lesion_d2.importers.running import run_import
from lesion_d2.importers.task_folders.images import Values
from lesion_d2.importers.task_folders.options import TaskOptions

import nibabel
import numpy as np
import pytest
import yaml
from made_up_tasks import (
    BALLS,
    ORIENTATIONS,
    affine_of,
    draw,
    hu_at,
    label_places,
    lesion_voxels,
    same_places,
    save,
    save_json,
    write_nndetection,
)
from PIL import Image
from round_trip import check_trains_and_evaluates, damaged_lines

ALL = {1: 0, 2: 1, 3: 1}


def read_all(root, options=None):
    listing = list_nndetection(root, options)
    assert not listing.damaged, listing.damaged
    return {case.name: pickle.loads(pickle.dumps(case.read))() for case in listing.cases}


@pytest.mark.parametrize("case", range(len(ORIENTATIONS)))
def test_instances_lie_where_nibabel_says_in_any_orientation(tmp_path, case):
    root = write_nndetection(tmp_path, {"a": ALL}, orientations=ORIENTATIONS[case:])
    (imported,) = read_all(root).values()
    volume, labels = imported.volume, root / "raw_splitted/labelsTr/a.nii.gz"
    assert [lesion.category for lesion in volume.lesions] == [0, 1, 1]
    assert volume.spacing == pytest.approx((0.8, 0.7, 2.5), abs=1e-5)
    for number, lesion in enumerate(volume.lesions, start=1):
        voxels = lesion_voxels(volume, lesion)
        expected = label_places(labels, [number])
        assert same_places(volume.to_patient(voxels), expected)
        # the box: within half a voxel of the voxels' centers
        box = np.reshape(lesion.box, (2, 3))
        assert np.array_equal(voxels.min(0) - (0.5, 0.5, 0), box[0])
        assert np.array_equal(voxels.max(0), box[1] - (0.5, 0.5, 0))
        middle = volume.to_patient(box.mean(0)[None])[0]
        if number == 3:
            assert np.abs(middle - BALLS[3][0]).max() < 0.5 * max(volume.spacing)
    at = lesion_voxels(volume, volume.lesions[0])
    x, y, z = np.vstack([at, at - (6, 0, 1)]).T
    points = volume.to_patient(np.stack([x, y, z], 1))
    image = root / "raw_splitted/imagesTr/a_0000.nii.gz"
    assert np.array_equal(imported.voxels[z, y, x], hu_at(image, points))


def test_lesions_that_touch_stay_two_and_empty_cases_stay(tmp_path):
    root = write_nndetection(tmp_path, {"touching": {1: 0, 2: 0}, "empty": {}})
    found = read_all(root)
    first, second = found["touching"].volume.lesions
    points = [lesion_voxels(found["touching"].volume, lesion) for lesion in (first, second)]
    gaps = np.abs(points[0][:, None] - points[1][None]).sum(-1)
    assert gaps.min() == 1  # neighbors
    assert found["empty"].volume.lesions == () and found["empty"].voxels.shape[0] == 14


def test_test_images_with_labels_are_a_split_and_others_are_told(tmp_path):
    root = write_nndetection(tmp_path, {"a": ALL})
    write_nndetection(root, {"t": ALL, "u": {}}, split="Ts")
    assert {c.name: c.split for c in list_nndetection(root).cases} == {
        "a": None,
        "t": "test",
        "u": "test",
    }
    for file in (root / "raw_splitted/labelsTs").iterdir():
        file.unlink()
    (root / "raw_splitted/labelsTs").rmdir()
    listing = list_nndetection(root)
    assert [case.name for case in listing.cases] == ["a"]
    assert listing.left_out[0].endswith("imagesTs: 2 images without labels")
    assert not listing.damaged


def test_yaml_with_numbers_as_keys_and_images_directly_below(tmp_path):
    root = write_nndetection(tmp_path, {"a": ALL})
    for folder in (root / "raw_splitted").iterdir():
        folder.rename(root / folder.name)
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").unlink()
    content["labels"], content["modalities"] = {0: "cyst", 1: "tumour"}, {0: "CT"}
    (root / "dataset.yaml").write_text(yaml.safe_dump(content))
    listing = list_nndetection(root)
    assert listing.classes == ("cyst", "tumour") and len(listing.cases) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("labels: {0: ~}\nmodalities: {0: CT}", "labels: found the name None, expected text"),
        ("labels: {0: [a]}\nmodalities: {0: CT}", "labels: found the name .*a.*, expected text"),
        ("labels: {0: a}\nmodalities: {0: true}", "modalities: found the name True, expected"),
        ("a: &a [*a]\nlabels: {0: *a}", r"found invalid YAML \(line 1: found the alias \*a"),
        ("labels: {0: !!str a}", r"found invalid YAML \(line 1: found the tag"),
        ("labels: {0: a", "found invalid YAML"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path, text, message):
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"dataset\.yaml: {message}") as error:
        list_nndetection(tmp_path)
    assert "\n" not in str(error.value)


def test_labels_without_an_image_are_told(tmp_path):
    root = write_nndetection(tmp_path, {"a": {}, "b": {1: 0}}, orientations=[("LPS", 0)])
    write_nndetection(root, {"t": {}, "u": {}}, split="Ts", orientations=[("LPS", 0)])
    folder = root / "raw_splitted"
    save_json(folder / "labelsTr/c.json", {"instances": {}})
    (folder / "imagesTr/b_0000.nii.gz").unlink()
    (folder / "imagesTs/u_0000.nii.gz").unlink()
    listing = list_nndetection(root)
    assert [case.name for case in listing.cases] == ["a", "t"]
    first, second = listing.damaged
    assert re.search(r"labelsTr/b\.nii\.gz: found no image of this case in imagesTr, exp", first)
    assert re.search(r"labelsTr/c\.json: found no image of this case in imagesTr", second)
    (line,) = set(listing.left_out) - set(listing.damaged)
    assert re.search(r"labelsTs/u\.nii\.gz: found no image of this case in imagesTs, exp", line)


@pytest.mark.parametrize("codes, angle", ORIENTATIONS)
def test_boxes_in_voxels_and_in_mm_are_the_boxes_of_the_masks(tmp_path, codes, angle):
    root = write_nndetection(tmp_path, {"a": ALL, "b": {}}, orientations=[(codes, angle)])
    folder = root / "raw_splitted"
    labels = np.asarray(nibabel.load(folder / "labelsTr/a.nii.gz").dataobj)
    affine = nibabel.load(folder / "labelsTr/a.nii.gz").affine
    boxes = []
    for label, category in ALL.items():
        found = np.argwhere(labels == label)
        first, last = found.min(0), found.max(0)
        boxes.append({"class": category, "voxels": [first.tolist(), last.tolist()]})
        edges = np.array([first - 0.49, last + 0.49])
        ras = edges @ affine[:3, :3].T + affine[:3, 3]
        boxes.append({"class": category, "ras_mm": ras.tolist()})
        boxes.append({"class": category, "lps_mm": (ras * (-1, -1, 1)).tolist()})
    (folder / "labelsTr/b.nii.gz").unlink()
    save_json(folder / "labelsTr/b.json", {"boxes": boxes})
    found = read_all(root)
    masks, boxed = found["a"].volume.lesions, found["b"].volume.lesions
    assert [lesion.id for lesion in boxed] == list(range(1, 10))
    for number, lesion in enumerate(boxed):
        expected = masks[number // 3]
        assert lesion.category == expected.category and lesion.masks is None
        # "a" and "b" share a grid
        assert lesion.box == pytest.approx(expected.box, abs=1e-6 if number % 3 == 0 else 0.05)


def test_boxes_beside_an_instance_map_follow_its_lesions(tmp_path):
    root = write_nndetection(tmp_path, {"a": {1: 0}})
    file = root / "raw_splitted/labelsTr/a.json"
    box = {"class": 1, "voxels": [[3, 4, 5], [6, 8, 5]]}
    save_json(file, {"instances": {"1": 0}, "boxes": [box]})
    lesions = read_all(root)["a"].volume.lesions
    assert [(lesion.id, lesion.category) for lesion in lesions] == [(1, 0), (2, 1)]
    assert lesions[1].box == (2.5, 3.5, 8.0, 6.5, 8.5, 8.0)  # slice 5 from the feet of 14


def test_2d_pictures_and_nifti_of_one_slice(tmp_path):
    folder = tmp_path / "raw_splitted"
    save_json(
        tmp_path / "dataset.json",
        {"dim": 2, "labels": {"0": "lesion"}, "modalities": {"0": "CT"}},
    )
    values = np.full((20, 30), 10, np.uint8)
    values[4:9, 7:19] = 200
    labels = (values == 200).astype(np.uint8)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(values).save(folder / "imagesTr/png_0000.png")
    Image.fromarray(labels).save(folder / "labelsTr/png.png")
    # as SimpleITK writes a picture: columns to Left, rows to Posterior, 999 mm to no next slice
    affine = np.diag([-0.5, -0.6, 999.0, 1.0])
    save(folder / "imagesTr/nifti_0000.nii.gz", values.T[..., None], affine)
    save(folder / "labelsTr/nifti.nii.gz", labels.T[..., None], affine)
    save(folder / "imagesTr/flat_0000.nii", values.T, np.diag([-0.5, -0.6, 1.0, 1.0]))
    for case in ("png", "nifti"):
        save_json(folder / f"labelsTr/{case}.json", {"instances": {"1": 0}})
    box = {"class": 0, "voxels": [[7, 4], [18, 8]]}
    save_json(folder / "labelsTr/flat.json", {"boxes": [box]})
    found = read_all(tmp_path, TaskOptions(values=Values(hu_window=(-160, 240))))
    for name, spacing in {"png": None, "nifti": (0.5, 0.6, 1.0), "flat": (0.5, 0.6, 1.0)}.items():
        volume, voxels = found[name].volume, found[name].voxels
        assert voxels.shape == (1, 20, 30) and volume.spacing == spacing
        assert volume.window == (-160, 240)
        assert np.array_equal(voxels[0], np.rint(values / 255 * 400 - 160))
        assert volume.lesions[0].box == (6.5, 3.5, 0.0, 18.5, 8.5, 0.0)
    with pytest.raises(ValueError, match=r"png_0000\.png: found uint8 values, .*--hu-window"):
        read_case(tmp_path, "png")


def read_case(root, name, options=None):
    return next(c for c in list_nndetection(root, options).cases if c.name == name).read()


def edit_json(root, change):
    file = root / "dataset.json"
    content = json.loads(file.read_text())
    change(content)
    save_json(file, content)


def test_folders_that_are_no_task_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"away: no such folder, expected the task folder"):
        list_nndetection(tmp_path / "away")
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(FileNotFoundError, match=r"imagesTr: found no dataset.json or dataset.ya"):
        list_nndetection(tmp_path / "imagesTr")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["modalities"].update({"1": "PET"}), r"2 modalities \(0 'CT', 1 'PET'\)"),
        (lambda d: d["modalities"].update({"0": "MRI"}), "modality 'MRI', expected CT"),
        (lambda d: d.pop("modalities"), "modalities: found None"),
        (lambda d: d["labels"].update({"5": "x"}), "labels: found .* numbers from 0 as keys"),
        (
            lambda d: d.update(labels={"background": 0, "cyst": 1}),
            "from 0 as keys .*import_data nnunet",
        ),
        (lambda d: d["labels"].update({"1": "cyst"}), "expected unique names"),
        (lambda d: d.update(labels=[]), r"labels: found \[\]"),
    ],
)
def test_a_bad_dataset_file_is_one_line(tmp_path, change, message):
    root = write_nndetection(tmp_path, {"a": {}}, orientations=[("LPS", 0)])
    edit_json(root, change)
    with pytest.raises(ValueError, match=rf"dataset\.json: .*{message}") as error:
        list_nndetection(root)
    assert "\n" not in str(error.value)


def test_one_of_several_modalities_and_images_that_are_no_ct(tmp_path):
    root = write_nndetection(tmp_path, {"a": ALL}, orientations=[("LPS", 0)])
    edit_json(root, lambda d: d.update(modalities={"0": "CT", "1": "MRI"}))
    affine = affine_of("LPS")
    mri = np.random.default_rng(0).uniform(3, 900, (44, 48, 14)).astype(np.float32)
    save(root / "raw_splitted/imagesTr/a_0001.nii.gz", mri, affine)
    assert read_case(root, "a", TaskOptions(modality=0)).voxels.min() == -1000
    with pytest.raises(ValueError, match="modality 'MRI', expected CT"):
        list_nndetection(root, TaskOptions(modality=1))
    told = TaskOptions(modality=1, values=Values(percentiles_to_hu=(-1000, 1000)))
    voxels = read_case(root, "a", told).voxels
    low, high = np.percentile(mri, (0.5, 99.5))
    expected = np.clip((mri - low) / (high - low), 0, 1) * 2000 - 1000
    assert np.abs(voxels - np.rint(expected)[:, :, ::-1].T).max() <= 1
    edit_json(root, lambda d: d["modalities"].update({"1": "CT of another tube"}))
    with pytest.raises(ValueError, match=r"expected HU, which are below 0.*--percentiles-to-hu"):
        read_case(root, "a", TaskOptions(modality=1))


def damage(root, kind):
    """Spoil the files of case "b"; what the line about it says."""
    folder = root / "raw_splitted"
    image, label = folder / "imagesTr/b_0000.nii.gz", folder / "labelsTr/b.nii.gz"
    classes, affine = folder / "labelsTr/b.json", affine_of("LPS")
    _, labels = draw(affine, (44, 48, 14), ALL)
    if kind == "json missing":
        classes.unlink()
        return r"b\.nii\.gz: found no b\.json"
    if kind == "labels missing":
        label.unlink(), classes.unlink()
        return r"b_0000\.nii\.gz: found no labels"
    if kind == "image missing":
        image.rename(image.with_name("b_0001.nii.gz"))
        return "imagesTr: found no modality 0 of case b"
    if kind == "name":
        image.rename(image.with_name("b.nii.gz"))
        return r"imagesTr.b\.nii\.gz: found this file name, expected <case>_0000"
    if kind == "no JSON":
        classes.write_text("{")
        return r"b\.json: found no readable JSON"
    if kind == "class":
        save_json(classes, {"instances": {"1": 0, "2": 2, "3": 1}})
        return r"b\.json: instance '2': found the class 2, expected 0 to 1"
    if kind == "instance not named":
        save_json(classes, {"instances": {"1": 0, "2": 1}})
        return r"b\.nii\.gz: found the instances 3, expected only those in b\.json"
    if kind == "instance not drawn":
        save_json(classes, {"instances": {**{str(k): v for k, v in ALL.items()}, "9": 0}})
        return r"b\.nii\.gz: found no voxel of the instances 9"
    if kind == "no integers":
        save(label, labels * np.float32(0.5), affine)
        return r"b\.nii\.gz: found the label 0\.5, expected integers"
    if kind == "negative":
        save(label, -labels.astype(np.int16), affine)
        return r"b\.nii\.gz: found the label -\d, expected integers"
    if kind == "size":
        save(label, labels[:-1], affine)
        return r"b\.nii\.gz: found 14 slices of 43 x 48 pixels, expected the .* of b_0000"
    if kind == "place":
        affine[0, 3] += 5
        save(label, labels, affine)
        return r"b\.nii\.gz: found corners 5 mm from those of b_0000.*--labels-by-voxel"
    if kind == "truncated":
        image.write_bytes(image.read_bytes()[:-2000])
        return r"b_0000\.nii\.gz: found a damaged NIfTI file"
    if kind == "box outside":
        save_json(classes, {"boxes": [{"class": 0, "voxels": [[44, 0, 0], [50, 5, 5]]}]})
        label.unlink()
        return r"b\.json: boxes, 0: found a box outside of the image"
    if kind == "box keys":
        save_json(classes, {"boxes": [{"class": 0, "bbox": [0, 0, 1, 1]}]})
        return r"b\.json: boxes, 0: found .*expected a 'class' and two opposite corners"
    raise AssertionError(kind)


KINDS = (
    "json missing|labels missing|image missing|name|no JSON|class|instance not named|"
    "instance not drawn|no integers|negative|size|place|truncated|box outside|box keys"
)


@pytest.mark.parametrize("kind", KINDS.split("|"))
def test_a_damaged_case_is_one_line_and_the_others_go_on(tmp_path, kind):
    root = write_nndetection(tmp_path, {"a": {}, "b": ALL}, orientations=[("LPS", 0)])
    message = damage(root, kind)
    listing = list_nndetection(root)
    (line,) = damaged_lines(listing)
    assert re.search(message, line) and "\n" not in line
    assert listing.cases[0].name == "a"


def test_labels_of_another_place_can_be_taken_voxel_by_voxel(tmp_path):
    root = write_nndetection(tmp_path, {"b": ALL}, orientations=[("LPS", 0)])
    before = read_case(root, "b").volume.lesions
    damage(root, "place")
    assert read_case(root, "b", TaskOptions(labels_by_voxel=True)).volume.lesions == before


def test_label_maps_may_have_their_axes_in_another_order(tmp_path):
    root = write_nndetection(tmp_path, {"a": ALL}, orientations=[("LPS", 0)])
    before = read_case(root, "a").volume.lesions
    file = root / "raw_splitted/labelsTr/a.nii.gz"
    image = nibabel.load(file)
    ornt = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("SAR")
    )
    nibabel.save(image.as_reoriented(ornt), file)
    assert read_case(root, "a").volume.lesions == before


def test_a_patient_of_several_cases_by_their_names(tmp_path):
    root = write_nndetection(
        tmp_path, {"p1_a": {}, "p1_b": {}, "p2_a": {}}, orientations=[("LPS", 0)]
    )
    listing = list_nndetection(root, TaskOptions(patient_pattern="(p.)_"))
    assert [case.patient for case in listing.cases] == ["p1", "p1", "p2"]
    with pytest.raises(ValueError, match="--patient-pattern: found no patient in the case 'p1_a'"):
        list_nndetection(root, TaskOptions(patient_pattern="(q.)_"))


def test_the_folds_of_the_task_are_taken(tmp_path):
    root = write_nndetection(tmp_path, {case: {} for case in "abc"}, orientations=[("LPS", 0)])
    file = root / "preprocessed/splits_final.pkl"
    file.parent.mkdir()
    splits = [
        collections.OrderedDict(train=np.array(list(train)), val=np.array(list(val)))
        for train, val in (("bc", "a"), ("ac", "b"), ("ab", "c"))
    ]
    file.write_bytes(pickle.dumps(splits))
    folds = list_nndetection(root).folds
    assert folds[0] == {"train": ("c",), "val": ("b",), "test": ("a",)}
    assert [fold["test"] for fold in folds] == [("a",), ("b",), ("c",)]
    # with a test split of its own
    write_nndetection(root, {"t": {}}, split="Ts", orientations=[("LPS", 0)])
    assert list_nndetection(root).folds[0] == {"train": ("b", "c"), "val": ("a",), "test": ("t",)}
    write_nndetection(root, {"a": {}}, split="Ts", orientations=[("LPS", 0)])
    (line,) = list_nndetection(root).damaged
    assert "imagesTs" in line and "found a case of this name in imagesTr" in line


def test_an_import_trains_and_evaluates_perfectly_on_its_truth(tmp_path):
    listing = list_nndetection(
        write_nndetection(tmp_path / "task", {"a": ALL, "b": {1: 1}, "empty": {}})
    )
    run_import(listing, tmp_path / "made_nndetection", format="nndetection", workers=1)
    volume_set = check_trains_and_evaluates(tmp_path / "made_nndetection", tmp_path)
    assert [volume.name for volume in volume_set.volumes] == ["a", "b", "empty"]
