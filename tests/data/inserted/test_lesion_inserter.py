"""Lesions inserted into training images."""

import lesion_d2
from lesion_d2.data.inserted.augmentation import LesionInserter
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine.checks.datasets import load_datasets
from lesion_d2.engine.input_errors import InputError
from lesion_d2.scans.png import write_png
from lesion_d2.structures.rle import decode_mask

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from made_up_stacks import PIXEL, make_stack

REAL = [60.0, 90.0, 80.0, 110.0]
SPACING = (PIXEL, PIXEL, 2.0)
KEY = "INPUT.INSERTED_LESIONS"
ON = (f"{KEY}.PROBABILITY", 1.0)


def make_image(folder, number: int = 3, annotations=True) -> dict:
    stack = make_stack(number=number)
    for index, hu in enumerate(stack):
        write_png(folder / f"{index:03d}.png", (hu.astype(np.int32) + 32768).astype(np.uint16))
    real = {"bbox": REAL, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "row": 1}
    return {
        "file_name": str(folder / f"{number // 2:03d}.png"),
        "image_id": "made_up",
        "height": 200,
        "width": 200,
        "spacing": SPACING,
        "slice_range": (0, number - 1),
        "slice_index": number // 2,
        "window": (-175.0, 275.0),
        "annotations": [real] if annotations else [],
    }


def make_mapper(*options, is_train=True, window=(-2000.0, 2000.0)):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.CT.IMAGE_SIZE = 0
    cfg.INPUT.CT.HU_WINDOW = window
    aug = ("HFLIP_PROB", "VFLIP_PROB", "MAX_ROTATION", "MAX_SHEAR", "MAX_SCALE", "MAX_TRANSLATION")
    for key in aug:
        cfg.INPUT.AUG[key] = 0.0
    cfg.merge_from_list(list(options))
    return LesionDatasetMapper(cfg, is_train)


def mapped(mapper, image, seed=0):
    np.random.seed(seed)
    return mapper.load(image)


def test_lesions_are_painted_and_annotated(tmp_path):
    image = make_image(tmp_path)
    found = mapped(make_mapper(*ON, f"{KEY}.MAX_LESIONS", 6), image, seed=3)
    instances = found["instances"]
    before, after = make_stack().astype(int), found["image"].numpy()
    assert len(instances) > 2 and len(image["annotations"]) == 1
    assert instances.gt_boxes.tensor[0].tolist() == pytest.approx(REAL)
    np.testing.assert_array_equal(after[:, 88:113, 58:83], before[:, 88:113, 58:83])
    changed = np.abs(after - before)
    masks = instances.gt_masks.tensor.numpy()
    for mask, box in zip(masks[1:], instances.gt_boxes.tensor[1:].numpy(), strict=True):
        assert changed[1][mask].mean() > 10
        ys, xs = np.nonzero(mask)
        # Diameters end at most at the mask's edges, and boxes are 5 pixels around them.
        edges = np.array([xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5])
        inside = (box - edges) * [1, 1, -1, -1] + 5
        assert (inside > -1e-3).all() and (inside < 0.35 * (edges[2:] - edges[:2]).max()).all()
    edges = cv2.dilate(np.uint8(masks[1:].any(axis=0)), np.ones((9, 9), np.uint8))
    assert not changed[1][edges == 0].any()


def test_images_are_as_if_their_files_had_the_lesions(tmp_path):
    """Painted before slices are clipped and interpolated; lungs are known in any window."""
    image = make_image(tmp_path)
    options = (*ON, f"{KEY}.TYPES", (5,), "INPUT.CT.SLICE_INTERVAL", 1.0)
    wide, narrow = make_mapper(*options), make_mapper(*options, window=(-160.0, 240.0))
    images = [mapped(mapper, image, seed=1) for mapper in (wide, narrow)]
    stacks = [found["image"].numpy() for found in images]
    assert len(images[0]["instances"]) > 1
    np.testing.assert_array_equal(stacks[0][1].clip(-160, 240), stacks[1][1])
    halfway = make_mapper(*ON, f"{KEY}.TYPES", (5,), "INPUT.CT.SLICE_INTERVAL", 2.0)
    whole = mapped(halfway, image, seed=1)["image"].numpy().astype(float)
    between = (whole[0] + whole[1]) / 2
    assert np.abs(stacks[0][0] - between).max() <= 0.5


def test_seeds_decide_and_a_probability_of_0_draws_nothing(tmp_path):
    image = make_image(tmp_path)
    on, off = make_mapper(*ON), make_mapper()
    first, again, other = (mapped(on, image, seed)["image"] for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    plain = mapped(off, image, 5)["image"]
    state = np.random.get_state()[1].copy()
    np.random.seed(5)
    np.random.uniform()  # of the resize
    np.testing.assert_array_equal(state, np.random.get_state()[1])
    assert off.inserter is None and make_mapper(*ON, is_train=False).inserter is None
    np.testing.assert_array_equal(plain, make_stack())


def test_a_slice_without_neighbors(tmp_path):
    """Its channels are all the key slice, and stay so."""
    image = make_image(tmp_path, number=1, annotations=False)
    found = mapped(make_mapper(*ON), image)
    assert len(found["instances"]) >= 1
    channels = found["image"]
    assert torch.equal(channels[0], channels[1]) and torch.equal(channels[1], channels[2])
    assert (channels[1].numpy() != make_stack(number=1)[0]).any()


def test_mined_negatives_are_not_painted_over(tmp_path):
    """What a model took for a lesion there would be hidden by one, and still no lesion."""
    image = make_image(tmp_path, annotations=False)
    mapper = make_mapper(*ON, f"{KEY}.MAX_LESIONS", 6)
    first = mapped(mapper, image, seed=3)["instances"].gt_boxes.tensor
    assert len(first)
    box = first[0].tolist()
    mapper.hard_negatives = {"made_up": [{"bbox": box, "category_id": 0}]}
    after = mapped(mapper, image, seed=3)["image"].numpy()
    part = (slice(None), *(slice(int(box[n]), int(box[n + 2]) + 1) for n in (1, 0)))
    np.testing.assert_array_equal(after[part], make_stack()[part])


def test_classes_by_coarse_type():
    slices = dict(enumerate(make_stack()))
    image, inserted = {"spacing": SPACING}, []
    for coarse_type in (4, 5, 8):
        options = {"types": (coarse_type,), "categories": tuple(range(10, 18)), "box_margin": 0.0}
        np.random.seed(0)
        LesionInserter(1.0, max_lesions=3, **options)(image, [], inserted, slices, 1)

    found = {(a["coarse_type"], a["category_id"]) for a in inserted}
    assert found == {(4, 13), (5, 14), (8, 17)}
    for annotation in inserted:
        ys, xs = decode_mask(annotation["segmentation"]).nonzero()
        edges = [xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5]
        assert annotation["bbox"] == edges


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PROBABILITY", 1.5),
        ("MAX_LESIONS", 0),
        ("TYPES", (1,)),
        ("CATEGORIES", (0, 1)),
        ("MEDIAN_DIAMETER", 2.0),
        ("MOTTLE_HU", -1.0),
    ],
)
def test_values_that_cannot_be_used(key, value):
    with pytest.raises(ValueError, match=rf"^INPUT\.INSERTED_LESIONS\.{key}: found .*, expected "):
        make_mapper(f"{KEY}.{key}", value)


@pytest.mark.parametrize(
    ("options", "spacing", "line"),
    [
        ({"PROBABILITY": 0.5}, None, r"PROBABILITY: found 0\.5, expected 0 for DATASETS\.TRAIN"),
        ({"PROBABILITY": 0.5, "CATEGORIES": (1,)}, SPACING, r"CATEGORIES: found .*below 1"),
    ],
)
def test_data_sets_that_do_not_fit(tmp_path, options, spacing, line):
    image = {**make_image(tmp_path), "spacing": spacing}
    name = "made_up_for_inserted_lesions"
    DatasetCatalog.register(name, lambda: [image])
    MetadataCatalog.get(name).set(thing_classes=["lesion"], evaluator_type="lesion")
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    for key, value in options.items():
        cfg.INPUT.INSERTED_LESIONS[key] = value
    try:
        with pytest.raises(InputError, match=line):
            load_datasets(cfg, "TRAIN", required=True)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
