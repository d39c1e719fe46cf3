import json
import logging
import pickle
from pathlib import Path

import lesion_d2
from lesion_d2.data.catalog import load_records
from lesion_d2.data.coco import load_ct_coco, register_ct_coco
from lesion_d2.data.dict_rules import check_dicts
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.pseudo_masks.files import load_mask_file
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.evaluation import LesionEvaluator
from lesion_d2.structures.rle import decode_mask, encode_mask
from lesion_d2.tools import prepare_masks

import nibabel
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.structures import Boxes, BoxMode, Instances
from made_up_coco import (
    HEIGHT,
    WIDTH,
    annotation_entry,
    coco_content,
    hu_image,
    image_entry,
    write_coco_file,
    write_png16,
)

LIVER = Path(__file__).parents[4] / "shared" / "data" / "liver_slices"
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[5:9, 6:12] = True


@pytest.fixture
def registered():
    names = []
    yield names
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def write_pictures(folder: Path) -> Path:
    """Two pictures, of classes 90 and 7, and one without an annotation."""
    for number in range(3):
        write_png16(folder / "images" / f"p{number}_s.png", hu_image(number))
    annotations = [
        annotation_entry(5, 10, [6, 5, 6, 4], 90, segmentation=encode_mask(MASK)),
        annotation_entry(2, 12, [1, 2, 9, 7], 7, segmentation=[[1, 2, 10, 2, 10, 9, 1, 9]]),
        annotation_entry(3, 12, [20, 2, 9, 7], 7, iscrowd=1),
    ]
    images = [image_entry(10 + n, f"images/p{n}_s.png") for n in range(3)]
    content = coco_content(images, annotations, [(90, "nodule"), (7, "cyst")])
    return write_coco_file(folder, content)


def write_volume(folder: Path) -> np.ndarray:
    """A volume that is stored with all axes flipped; returns it as stored, (Z, H, W)."""
    volume = np.stack([hu_image(10 + n) for n in range(4)])
    image = nibabel.Nifti1Image(volume.T, np.diag([0.7, 0.7, 3, 1]))
    folder.mkdir(exist_ok=True)
    nibabel.save(image, folder / "ct.nii.gz")
    return volume


# --- dicts ----------------------------------------------------------------------------------------


def test_pictures_with_an_offset_are_dicts_of_one_slice(tmp_path, caplog):
    file = write_pictures(tmp_path)
    with caplog.at_level(logging.INFO, logger=lesion_d2.__name__):
        dicts = load_ct_coco(file, tmp_path, hu_offset=32768, patient=r"(p\d)_")
    assert (
        "2 lesions, 2 with masks, on 3 images, 1 of them without annotations; 1 reg" in caplog.text
    )
    assert [d["image_id"] for d in dicts] == [10, 11, 12]
    assert [d["patient"] for d in dicts] == ["p0", "p1", "p2"]
    for number, image in enumerate(pickle.loads(pickle.dumps(dicts))):  # as loader workers get it
        assert (read_slice(image["file_name"]) == hu_image(number)).all()
        assert (image["height"], image["width"]) == (HEIGHT, WIDTH)
        assert image["spacing"] is None and image["slice_range"] == (0, 0)
        assert "volume" not in image and image["window"] == (-160, 240)
    first, empty, last = (d["annotations"] for d in dicts)
    assert empty == []
    [lesion] = first
    assert lesion["bbox"] == [5.5, 4.5, 11.5, 8.5] and lesion["bbox_mode"] == BoxMode.XYXY_ABS
    assert (lesion["category_id"], lesion["row"]) == (1, 5) and "iscrowd" not in lesion
    assert (decode_mask(lesion["segmentation"]) == MASK).all()
    assert [a.get("iscrowd", 0) for a in last] == [0, 1]
    rows, columns = np.nonzero(decode_mask(last[0]["segmentation"]))
    box = [columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5]
    assert last[0]["bbox"] == box  # a mask's pixels and the box agree


def test_boxes_and_classes_are_those_of_detectron2s_own_reader(tmp_path, registered):
    file = write_pictures(tmp_path)
    registered.append("their_coco")
    theirs = load_coco_json(str(file), str(tmp_path), "their_coco")
    ours = load_ct_coco(file, tmp_path, hu_offset=32768)
    for a, b in zip(theirs, ours, strict=True):
        assert a["image_id"] == b["image_id"]
        for one, other in zip(a["annotations"], b["annotations"], strict=True):
            assert one["category_id"] == other["category_id"]
            box = BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS)
            assert other["bbox"] == [edge - 0.5 for edge in box]


def test_slices_of_a_volume_have_neighbors(tmp_path):
    volume = write_volume(tmp_path / "images")
    content = coco_content(
        [image_entry(1, "ct.nii.gz#1", patient="x"), image_entry(2, "ct.nii.gz#3")],
        [annotation_entry(1, 1, [6, 5, 6, 4], segmentation=encode_mask(MASK))],
    )
    file = write_coco_file(tmp_path, content)
    dicts = load_ct_coco(file, tmp_path / "images", spacing=(0.7, 0.7, 3))
    options = {"num_slices": 3, "slice_interval": 3, "hu_window": (-1024, 1000)}
    mapper = LesionDatasetMapper(True, augmentations=[], mask_method="ellipse", **options)
    for image, slices in zip(dicts, ([0, 1, 2], [2, 3, 3]), strict=True):
        assert image["volume"] == "ct.nii.gz" and image["slice_range"] == (0, 3)
        assert image["spacing"] == pytest.approx((0.7, 0.7, 3))
        assert (mapper.load(image)["image"].numpy() == volume[slices]).all()
    instances = mapper(dicts[0])["instances"]
    assert (instances.gt_masks.tensor[0].numpy() == MASK).all()
    assert instances.gt_boxes.tensor.tolist() == [[5.5, 4.5, 11.5, 8.5]]


def test_entries_come_before_options(tmp_path):
    write_png16(tmp_path / "a.png", hu_image(0), 1024)
    write_png16(tmp_path / "b.png", hu_image(0), 2000)
    images = [
        image_entry(1, "a.png", hu_offset=1024, spacing=[1, 1, 5], patient="anna", window=[0, 80]),
        image_entry(2, "b.png"),
    ]
    file = write_coco_file(tmp_path, coco_content(images, []))
    options = {"hu_offset": 2000, "spacing": [2, 2, 2], "patient": "^.", "window": [-10, 10]}
    a, b = load_ct_coco(file, tmp_path, **options)
    assert (read_slice(a["file_name"]) == read_slice(b["file_name"])).all()
    assert (a["spacing"], a["patient"], a["window"]) == ((1, 1, 5), "anna", (0, 80))
    assert (b["spacing"], b["patient"], b["window"]) == ((2, 2, 2), "b", (-10, 10))


def test_the_mapper_reads_pictures_of_unknown_spacing(tmp_path):
    dicts = load_ct_coco(write_pictures(tmp_path), tmp_path, hu_offset=32768)
    options = {"num_slices": 3, "slice_interval": 2, "hu_window": (-1024, 1000)}
    mapper = LesionDatasetMapper(True, augmentations=[], mask_method="ellipse", **options)
    for number, image in enumerate(dicts):
        mapped = mapper.load(image)
        assert (mapped["image"].numpy() == hu_image(number)).all()
    instances = mapped["instances"]
    assert sorted(instances.gt_classes.tolist()) == [-1, 0]  # the region is of no class
    assert (mapper.load(dicts[0])["instances"].gt_masks.tensor[0].numpy() == MASK).all()


# --- the catalog ----------------------------------------------------------------------------------


def test_results_are_in_cocos_coordinates_with_its_ids(tmp_path, registered):
    file = write_pictures(tmp_path)
    register_ct_coco("my_coco", file, tmp_path, hu_offset=32768)
    registered.append("my_coco")
    metadata = MetadataCatalog.get("my_coco")
    check_dicts(load_records("my_coco"), metadata.thing_classes, unique=True, with_masks=True)
    assert metadata.thing_classes == ["cyst", "nodule"] and metadata.evaluator_type == "lesion"

    records = load_records("my_coco")
    evaluator = LesionEvaluator("my_coco", tmp_path / "results", num_bootstrap=0)
    evaluator.reset()
    for record in records:
        output = Instances((HEIGHT, WIDTH))
        found = record["annotations"]  # also what is in a region to be ignored: no false positive
        output.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in found]).reshape(-1, 4))
        output.scores = torch.ones(len(found))
        output.pred_classes = torch.tensor([a["category_id"] for a in found], dtype=torch.int64)
        evaluator.process([record], [{"instances": output}])
    results = evaluator.evaluate()

    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["froc"]["mean_sens"] == 100
    assert (
        json.loads((tmp_path / "results" / "froc.json").read_text())["curve"]["fps_per_image"][-1]
        == 0
    )

    written = json.loads((tmp_path / "results" / "coco_instances_results.json").read_text())
    found = [(r["image_id"], r["category_id"], r["bbox"]) for r in written]
    assert found == [(10, 90, [6, 5, 6, 4]), (12, 7, [1, 2, 9, 7]), (12, 7, [20, 2, 9, 7])]


def test_masks_of_boxes_are_prepared_under_its_ids(tmp_path, registered):
    write_png16(tmp_path / "a.png", hu_image(0))
    annotations = [annotation_entry(4, 11, [6, 5, 12, 8])]
    file = write_coco_file(tmp_path, coco_content([image_entry(11, "a.png")], annotations))
    register_ct_coco("my_coco", file, tmp_path, hu_offset=32768)
    registered.append("my_coco")
    output = tmp_path / "masks.json"
    words = ["--dataset", "my_coco", "--method", "ellipse", "--output", str(output)]
    assert prepare_masks.main([*words, "--workers", "1"]) == 0
    masks = load_mask_file(output)
    ends = [5.5, 8.5, 17.5, 8.5, 11.5, 4.5, 11.5, 12.5]  # the box's middle lines
    [image] = DatasetCatalog.get("my_coco")
    [lesion] = image["annotations"]
    assert masks.covers(11) and masks.mask(image, lesion).sum() > 50
    assert masks.entry(image, lesion)["recist"] == ends


def test_registering_reads_the_file_and_finds_its_folder(tmp_path, monkeypatch, registered):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_pictures(tmp_path / "mine")
    root = "$DETECTRON2_DATASETS/mine"
    register_ct_coco("my_coco", f"{root}/coco.json", root, hu_offset=32768)
    registered.append("my_coco")
    assert len(load_records("my_coco")) == 3
    with pytest.raises(FileNotFoundError, match="expected COCO's JSON"):
        register_ct_coco("no_coco", f"{root}/none.json", root)
    assert "no_coco" not in DatasetCatalog


@pytest.mark.skipif(not LIVER.is_dir(), reason="no real slices beside the project")
def test_real_slices_are_read_once_their_offset_is_given():
    file = LIVER / "annotations.json"
    with pytest.raises(ValueError, match=r"24 problems, the first 20\n.*expected hu_offset"):
        load_ct_coco(file, LIVER)
    dicts = load_ct_coco(file, LIVER, hu_offset=32768, patient=r"/(\d+)_")
    assert len(dicts) == 24 and {len(d["annotations"]) for d in dicts} == {1}
    assert {d["spacing"] for d in dicts} == {None} and len({d["patient"] for d in dicts}) == 11
    hu = read_slice(dicts[0]["file_name"])
    assert (
        hu.shape == (512, 512) and -3100 < hu.min() < -900 and np.median(hu[200:300, 200:300]) > 0
    )
    x1, y1, x2, y2 = dicts[0]["annotations"][0]["bbox"]
    assert [x1 + 0.5, y1 + 0.5, x2 - x1, y2 - y1] == [258, 190, 32, 29]


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"file_name": "none.png"}, {}, "image 10: .*none.png: no such picture"),
        (
            {"height": HEIGHT - 2},
            {},
            "image 10: .* found 32 x 24 pixels, expected 32 x 22 .width x height",
        ),
        ({"file_name": "ct.nii.gz#4"}, {}, "image 10: .*: found 4 slices, expected slice 4"),
        (
            {"file_name": "ct.nii.gz#2", "spacing": [0.7, 0.7, 2]},
            {},
            r"image 10: .*ct.nii.gz: found the spacing .* expected \(0.7, 0.7, 2.0\)",
        ),
        (
            {},
            {"hu_offset": None},
            "image 10: .* 16-bit values with an unknown conversion .* hu_of",
        ),
        ({}, {"hu_offset": -5}, "hu_offset: found -5, expected a whole number from 0 to 65535"),
        ({}, {"spacing": (1, 1)}, "spacing: found .* expected x, y and z"),
        ({}, {"hu_window": (1, 0)}, "hu_window: found .* low < high"),
        ({}, {"patient": "("}, "patient: found '\\(', expected a regular expression"),
        ({}, {"patient": "(q)?p"}, "image 10: file_name: found .*, expected a match of patient"),
        ({}, {"patient": "q"}, "image 10: file_name: found 'images/p0_s.png', expected a match of"),
    ],
)
def test_what_does_not_fit(tmp_path, change, options, message):
    write_pictures(tmp_path)
    write_volume(tmp_path)
    content = json.loads((tmp_path / "coco.json").read_text())
    content["images"] = [{**content["images"][0], **change}]
    content["annotations"] = []
    file = write_coco_file(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        load_ct_coco(file, tmp_path, **{"hu_offset": 32768, **options})
    assert "\n" not in str(error.value)


def test_no_folder_of_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
        load_ct_coco(write_pictures(tmp_path), tmp_path / "nowhere")
