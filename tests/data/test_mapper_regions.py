"""Regions to ignore (``iscrowd``) from a data set's dicts to training samples."""

import lesion_d2
from lesion_d2.data.dataset_options import hide_annotations
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.transforms.lesion_transforms import transform_lesions

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from made_up_annotations import slice_record
from pycocotools import mask as mask_util

SIZE = (48, 64)
LESION = {
    "bbox": [10.0, 10.0, 24.0, 22.0],
    "bbox_mode": BoxMode.XYXY_ABS,
    "category_id": 0,
    "recist": [12.0, 16.0, 22.0, 16.0, 17.0, 12.0, 17.0, 20.0],
    "row": 2,
}
REGION = {
    "bbox": [30.0, 20.0, 25.0, 20.0],
    "bbox_mode": BoxMode.XYWH_ABS,
    "category_id": 0,
    "iscrowd": 1,
}
REGION_BOX = [30.0, 20.0, 55.0, 40.0]


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.INPUT.CT.IMAGE_SIZE = 0
    cfg.MODEL.MASK_ON = True
    keys = ("HFLIP_PROB", "VFLIP_PROB", "MAX_ROTATION", "MAX_SHEAR", "MAX_SCALE", "MAX_TRANSLATION")
    cfg.merge_from_list([value for key in keys for value in (f"INPUT.AUG.{key}", 0.0)])
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.fixture
def record(tmp_path):
    folder = tmp_path / "000001_01_01"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(32000, 33500, SIZE).astype(np.uint16)
    cv2.imwrite(str(folder / "010.png"), pixels)
    return slice_record(folder, SIZE, [LESION])


def test_a_region_is_an_instance_of_class_minus_1_and_changes_nothing_else(record):
    mapper = LesionDatasetMapper(_config(), True)
    np.random.seed(0)
    without = mapper(record)
    np.random.seed(0)
    mapped = mapper({**record, "annotations": [LESION, REGION]})
    assert torch.equal(mapped["image"], without["image"])
    found, expected = mapped["instances"], without["instances"]
    assert found.gt_classes.tolist() == [-1, 0] and found.is_region == [True, False]
    assert found.gt_boxes.tensor[0].tolist() == REGION_BOX
    assert torch.equal(found.gt_boxes.tensor[1:], expected.gt_boxes.tensor)
    assert torch.equal(found.gt_masks.tensor[1:], expected.gt_masks.tensor)
    assert not expected.has("is_region")
    y, x = np.nonzero(found.gt_masks.tensor[0].numpy())  # the whole box, corners too
    assert len(y) == 26 * 21 and (x.min(), y.min(), x.max(), y.max()) == (30, 20, 55, 40)


def test_a_regions_own_mask_goes_before_its_box(record):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[25:30, 35:40] = 1
    region = {**REGION, "segmentation": mask_util.encode(mask)}
    mapped = LesionDatasetMapper(_config(), True)({**record, "annotations": [LESION, region]})
    assert np.array_equal(mapped["instances"].gt_masks.tensor[0], mask)


def test_at_inference_masks_are_those_of_lesions_alone(record):
    mapper = LesionDatasetMapper(_config(), False, mask_method="ellipse")
    masks = [
        mapper({**record, "annotations": annotations})["lesion_masks"]
        for annotations in ([LESION], [REGION, LESION])
    ]
    assert len(masks[0]) == 1 and torch.equal(*masks)


def test_what_an_image_shows_of_a_region_stays():
    """Its center may be outside, where a lesion would be dropped."""
    crop = T.CropTransform(50, 0, 14, 48, SIZE[1], SIZE[0])
    for annotation, left in ((REGION, 1), ({**REGION, "iscrowd": 0}, 0)):
        instances = transform_lesions([annotation], None, crop, (48, 14))
        assert len(instances) == left
    [box] = transform_lesions([REGION], None, crop, (48, 14)).gt_boxes.tensor.tolist()
    assert box == [-0.5, 20, 5, 40]
    gone = T.CropTransform(56, 0, 8, 48, SIZE[1], SIZE[0])
    assert len(transform_lesions([REGION], None, gone, (48, 8))) == 0


def test_a_turned_region_keeps_its_corners():
    """A lesion's outline is an ellipse; what is in a region may be in its corners."""
    turn = T.RotationTransform(48, 64, 90)
    boxes = [
        transform_lesions([{**REGION, "iscrowd": crowd}], None, turn, (64, 48)).gt_boxes.tensor
        for crowd in (0, 1)
    ]
    torch.testing.assert_close(*boxes)
    turn = T.RotationTransform(48, 64, 30, expand=False)
    small, large = (
        transform_lesions([{**REGION, "iscrowd": crowd}], None, turn, SIZE).gt_boxes.tensor[0]
        for crowd in (0, 1)
    )
    assert (large[:2] < small[:2]).all() and (large[2:] > small[2:]).all()


def test_regions_are_never_hidden():
    dicts = [{"annotations": [REGION, {**LESION, "row": i}]} for i in range(10)]
    hide_annotations("hidden_with_regions", dicts, 0.9, seed=0)
    assert all(d["annotations"][0] is REGION for d in dicts)
    hidden = [a for d in dicts for a in d["hidden_annotations"]]
    assert len(hidden) == 9 and REGION not in hidden
