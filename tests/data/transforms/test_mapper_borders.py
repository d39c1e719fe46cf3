import pickle
from itertools import pairwise
from pathlib import Path

import lesion_d2
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.phantoms.volumes import register_volumes
from lesion_d2.data.pseudo_masks import ellipse_mask
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.data.transforms.borders import body_extent, volume_extent

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from made_up_annotations import slice_record
from made_up_bodies import make_body
from pycocotools import mask as mask_util
from slice_files import write_slices

SIZE = (160, 200)
LESIONS = ([90.0, 60.0, 112.0, 74.0, 97.0, 71.0, 104.0, 63.0], [60, 70, 72, 70, 66, 66, 66, 74.5])
NEGATIVE_BOX = [120.0, 78.0, 138.0, 92.0]
_FLIPS = ("HFLIP_PROB", "VFLIP_PROB")
_WARPS = ("MAX_ROTATION", "MAX_SHEAR", "MAX_SCALE", "MAX_TRANSLATION")
NO_AUGMENTATION = [value for key in _FLIPS + _WARPS for value in (f"INPUT.AUG.{key}", 0.0)]


def _annotation(recist, row):
    x, y = recist[0::2], recist[1::2]
    box = [min(x) - 5, min(y) - 5, max(x) + 5, max(y) + 5]
    mode = BoxMode.XYXY_ABS
    return {"bbox": box, "bbox_mode": mode, "category_id": 0, "recist": list(recist), "row": row}


def _negative():
    x1, y1, x2, y2 = NEGATIVE_BOX
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    mask = ellipse_mask([x1, y, x2, y, x, y1, x, y2], *SIZE)
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"bbox": NEGATIVE_BOX, "category_id": 1, "segmentation": rle}


@pytest.fixture
def dataset_dict(tmp_path):
    """Five slices whose bodies differ in place and size; noise, so that each pixel is known."""
    rng = np.random.default_rng(0)
    slices = {}
    for number in range(8, 13):
        hu = make_body(SIZE, center=(75 + number, 100), radii=(40 + number, 70 - number))
        slices[number] = (hu + rng.integers(0, 60, SIZE)).astype(np.int16)
    folder = write_slices(tmp_path / "Images_png" / "000001_01_01", slices)
    annotations = [_annotation(recist, row) for row, recist in enumerate(LESIONS, 2)]
    return slice_record(folder, SIZE, annotations, slice_range=(8, 12), slice_index=10)


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.CT.IMAGE_SIZE = 0
    cfg.merge_from_list(list(opts))
    return cfg


CUT = ("INPUT.CT.CROP_TO_BODY", True)


def test_without_the_option_there_is_no_crop(dataset_dict):
    assert "crop" not in LesionDatasetMapper(_config(), False)(dataset_dict)


@pytest.mark.parametrize("window", [(-1024.0, 3071.0), (-175.0, 275.0), (-768.0, 240.0)])
def test_the_image_is_the_crop_of_the_whole_one(dataset_dict, window):
    opts = ("INPUT.CT.HU_WINDOW", window)
    whole = LesionDatasetMapper(_config(*opts), False)(dataset_dict)
    mapper = pickle.loads(pickle.dumps(LesionDatasetMapper(_config(*opts, *CUT), False)))
    cut = mapper(dataset_dict)
    x0, y0, x1, y1 = cut["crop"]
    assert cut["crop"] == body_extent(read_slice(dataset_dict["file_name"]), (0.8, 0.8))
    # Center (100, 85), radii 60 and 50, and 5 pixels around.
    np.testing.assert_allclose(cut["crop"], (35, 30, 166, 141), rtol=0, atol=3)
    assert torch.equal(cut["image"], whole["image"][:, y0:y1, x0:x1])
    assert (cut["height"], cut["width"]) == SIZE


def test_lesions_negatives_and_masks_move_along(dataset_dict):
    mapped = []
    for opts in ((), CUT):
        mapper = LesionDatasetMapper(_config(*opts, *NO_AUGMENTATION), True)
        mapper.hard_negatives = {dataset_dict["image_id"]: [_negative()]}
        mapped.append(mapper(dataset_dict))
    whole, cut = mapped
    x0, y0, x1, y1 = cut["crop"]
    before, after = whole["instances"], cut["instances"]
    assert after.image_size == (y1 - y0, x1 - x0) and after.gt_classes.tolist() == [0, 0, 1]
    boxes = torch.tensor([*(a["bbox"] for a in dataset_dict["annotations"]), NEGATIVE_BOX])
    torch.testing.assert_close(
        after.gt_boxes.tensor, boxes - torch.tensor([x0, y0, x0, y0]), atol=1e-4, rtol=0
    )
    assert torch.equal(after.gt_masks.tensor, before.gt_masks.tensor[:, y0:y1, x0:x1])
    assert after.gt_masks.tensor.sum() == before.gt_masks.tensor.sum() > 300


def test_a_lesion_is_clipped_at_the_crop_as_at_an_images_border(dataset_dict):
    skin = _annotation([20.0, 80.0, 60.0, 80.0, 40.0, 75.0, 40.0, 85.0], 4)  # x from 15 to 65
    outside = _annotation([8.0, 20.0, 16.0, 20.0, 12.0, 17.0, 12.0, 23.0], 5)
    dataset_dict["annotations"] = [skin, outside]
    mapped = LesionDatasetMapper(_config(*CUT, *NO_AUGMENTATION), True)(dataset_dict)
    x0, y0 = mapped["crop"][:2]
    assert 16 < x0 < 40
    expected = [[-0.5, 70 - y0, 65 - x0, 90 - y0]]
    np.testing.assert_allclose(mapped["instances"].gt_boxes.tensor, expected, atol=1e-4)


def test_augmentations_come_after_the_crop(dataset_dict):
    opts = ("INPUT.CT.PIXEL_SPACING", 0.4, "INPUT.CT.MAX_SIZE", 180, "INPUT.AUG.RESIZE_RANGE")
    mapper = LesionDatasetMapper(_config(*CUT, *opts, (0.5, 1.0)), True)
    np.random.seed(0)
    sizes = set()
    for _ in range(12):
        mapped = mapper(dataset_dict)
        x0, y0, x1, y1 = mapped["crop"]
        height, width = mapped["image"].shape[1:]
        assert width <= 180 and height / width == pytest.approx((y1 - y0) / (x1 - x0), rel=0.01)
        instances = mapped["instances"]
        for box, mask in zip(instances.gt_boxes, instances.gt_masks, strict=True):
            y, x = torch.nonzero(mask, as_tuple=True)
            center = torch.stack([x.float().mean(), y.float().mean()])
            # The lesion's ellipses are not quite in the middle of the box.
            assert ((box[:2] + box[2:]) / 2 - center).norm() < 5
        sizes.add(width)
    assert len(sizes) > 4 and 180 in sizes


def test_masks_at_inference_stay_on_the_slice(dataset_dict):
    with_masks = [
        LesionDatasetMapper(_config(*opts), False, with_masks=True)(dataset_dict)["lesion_masks"]
        for opts in ((), CUT)
    ]
    assert with_masks[0].shape == (2, *SIZE) and torch.equal(*with_masks)


def test_slices_of_one_volume_share_one_crop(dataset_dict):
    mapper = LesionDatasetMapper(_config(*CUT), False)
    folder, crops, images = Path(dataset_dict["file_name"]).parent, set(), []
    for number in range(8, 13):
        file = str(folder / f"{number:03d}.png")
        mapped = mapper({**dataset_dict, "file_name": file, "volume": "000001_01_01"})
        crops.add(mapped["crop"])
        images.append(mapped["image"])
        own = body_extent(read_slice(file), (0.8, 0.8))
        assert own != mapped["crop"]
    assert crops == {volume_extent(str(folder), (8, 12), (0.8, 0.8))}
    for image, following in pairwise(images):  # the slices that both have are the same
        assert torch.equal(image[1:], following[:2])


def test_a_volume_whose_slice_range_is_not_known_has_the_crop_of_all_slices(dataset_dict):
    folder, crops = Path(dataset_dict["file_name"]).parent, []
    mapper = LesionDatasetMapper(_config(*CUT), False)
    for slice_range in (None, [8, 12], (8, 12), (10, 10)):
        record = {**dataset_dict, "volume": "000001_01_01", "slice_range": slice_range}
        crops.append(mapper(record)["crop"])
    assert crops[0] == crops[1] == crops[2] == volume_extent(str(folder), None, (0.8, 0.8))
    assert crops[3] == body_extent(read_slice(dataset_dict["file_name"]), (0.8, 0.8)) != crops[0]


def test_a_registered_volume_is_cut_and_its_lesions_are_inside(tiny_phantom):
    name = "cut_volumes"
    register_volumes(name, str(tiny_phantom / "phantom"), None)
    try:
        records = DatasetCatalog.get(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    mapper, crops = LesionDatasetMapper(_config(*CUT), False), {}
    for record in records:
        x0, y0, x1, y1 = crop = mapper(record)["crop"]
        crops.setdefault(record["volume"], set()).add(crop)
        for annotation in record["annotations"]:
            left, top, right, bottom = annotation["bbox"]
            assert x0 - 0.5 <= left < right <= x1 - 0.5
            assert y0 - 0.5 <= top < bottom <= y1 - 0.5
    assert len(crops) > 2 and all(len(shared) == 1 for shared in crops.values())
