import os

import lesion_d2
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.pseudo_masks import (
    PseudoMask,
    ellipse_mask,
    grabcut_image,
    pseudo_mask,
)
from lesion_d2.data.pseudo_masks.files import mask_annotation, write_mask_file
from lesion_d2.data.slices import ct
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.data.transforms.augmentation import AffineTransform, RandomAffine, ResizeTransform
from lesion_d2.data.transforms.lesion_transforms import transform_lesions

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from made_up_annotations import (
    NEGATIVE_BOX,
    OBLIQUE,
    SIZE,
    mined_annotation,
    recist_annotation,
    slice_record,
)
from pycocotools import mask as mask_util
from slice_files import write_slice

_AUGMENTATIONS = ("HFLIP_PROB", "VFLIP_PROB", "MAX_ROTATION", "MAX_SHEAR", "MAX_SCALE")
NO_AUGMENTATION = [
    value for key in (*_AUGMENTATIONS, "MAX_TRANSLATION") for value in (f"INPUT.AUG.{key}", 0.0)
]


@pytest.fixture
def dataset_dict(tmp_path):
    """Five slices 2 mm apart, each with its own HU, with a bright lesion on the key slice."""
    folder = tmp_path / "Images_png" / "000001_01_01"
    lesion = ellipse_mask(OBLIQUE["recist"], *SIZE)
    for index in range(8, 13):
        hu = np.full(SIZE, 10 * index, np.int32)
        if index == 10:
            hu[lesion] = 900
        write_slice(folder / f"{index:03d}.png", hu)
    annotations = [OBLIQUE]
    return slice_record(folder, SIZE, annotations, slice_range=(8, 12), slice_index=10)


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.CT.IMAGE_SIZE = 0
    cfg.INPUT.CT.HU_WINDOW = (-1000.0, 1040.0)
    cfg.merge_from_list(list(opts))
    return cfg


def test_inference_gives_the_windowed_slices(dataset_dict):
    mapper = LesionDatasetMapper(_config(), False)
    before = repr(dataset_dict)
    mapped = mapper(dataset_dict)
    assert repr(dataset_dict) == before
    assert mapped["image"].dtype == torch.float32 and mapped["image"].shape == (3, *SIZE)
    np.testing.assert_allclose(
        mapped["image"][:, 0, 0], [(1000 + hu) / 8 for hu in (90, 100, 110)], rtol=1e-6
    )
    assert mapped["image"][1].max() == pytest.approx(1900 / 8)
    assert "annotations" not in mapped and "instances" not in mapped
    assert (mapped["height"], mapped["width"]) == SIZE and mapped["image_id"] == "000001_01_01_010"


def test_loaded_stack_is_int16_hu(dataset_dict):
    loaded = LesionDatasetMapper(_config("INPUT.CT.NUM_SLICES", 1, *_pixels(1)), False).load(
        dataset_dict
    )
    assert loaded["image"].dtype == torch.int16
    assert loaded["image"].unique().tolist() == [100, 900]


def _pixels(channels):
    return ("MODEL.PIXEL_MEAN", [127.5] * channels, "MODEL.PIXEL_STD", [127.5] * channels)


@pytest.mark.parametrize("channels", [1, 3, 5, 7])
def test_training_sample_with_any_number_of_slices(dataset_dict, channels):
    cfg = _config("INPUT.CT.NUM_SLICES", channels, *_pixels(channels))
    np.random.seed(0)
    mapped = LesionDatasetMapper(cfg, True)(dataset_dict)
    assert mapped["image"].shape == (channels, *SIZE)
    assert mapped["instances"].gt_masks.tensor.shape == (1, *SIZE)
    assert mapped["instances"].gt_classes.tolist() == [0]


def test_grabcut_and_borders_read_no_slice_again(dataset_dict, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        ct, "read_slice", lambda f, s: decoded.append(os.path.basename(f)) or read_slice(f, s)
    )
    dataset_dict["window"] = (-1350.0, 150.0)  # wider than the image's window
    window = ("INPUT.CT.HU_WINDOW", (-100.0, 100.0), "INPUT.CT.CROP_TO_BODY", True)
    cfg = _config("INPUT.PSEUDO_MASK", "grabcut", *window, *NO_AUGMENTATION)
    mapped = LesionDatasetMapper(cfg, True)(dataset_dict)
    assert sorted(decoded) == ["009.png", "010.png", "011.png"]
    hu = read_slice(dataset_dict["file_name"])  # as it is on disk, beyond the image's window
    expected = pseudo_mask("grabcut", grabcut_image(hu, dataset_dict["window"]), **_lesion())
    (mask,) = mapped["instances"].gt_masks.tensor.numpy()
    x0, y0, x1, y1 = mapped["crop"]
    assert np.array_equal(mask, expected.mask[y0:y1, x0:x1]) and mask.any()


def _lesion():
    return {"recist": OBLIQUE["recist"], "box": OBLIQUE["bbox"]}


def test_pixel_mean_of_another_length_is_refused():
    with pytest.raises(
        ValueError, match=r"PIXEL_MEAN, PIXEL_STD: found 3 and 3 values, expected 5"
    ):
        LesionDatasetMapper(_config("INPUT.CT.NUM_SLICES", 5), True)


def test_image_box_and_mask_stay_together_through_every_augmentation(dataset_dict):
    cfg = _config("INPUT.CT.IMAGE_SIZE", 160, "INPUT.AUG.RESIZE_RANGE", (0.8, 1.2))
    mapper = LesionDatasetMapper(cfg, True)
    np.random.seed(3)
    sizes = set()
    for _ in range(25):
        mapped = mapper(dataset_dict)
        image, instances = mapped["image"][1], mapped["instances"]
        mask, box = instances.gt_masks.tensor[0], instances.gt_boxes.tensor[0]
        bright = image > 0.75 * image.max()
        overlap = (bright & mask).sum() / (bright | mask).sum()
        assert overlap > 0.85
        y, x = torch.nonzero(mask, as_tuple=True)
        scale = max(image.shape) / 128
        # The lesion's extent plus 5 pixels a side, through rotation and shear of up to 0.1 rad.
        margins = torch.stack(
            [x.min() - box[0], y.min() - box[1], box[2] - x.max(), box[3] - y.max()]
        )
        assert (margins > 2 * scale).all() and (margins < 8 * scale).all()
        sizes.add(tuple(image.shape))
    assert len(sizes) > 5


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_flipped_box_is_the_box_of_the_flipped_mask_at_the_images_border_too(axis):
    height, width = SIZE
    flip = T.HFlipTransform(width) if axis == "x" else T.VFlipTransform(height)
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, top = rng.integers(0, (width - 30, height - 30))
        left, top = [(left, top), (0, top), (left, 0), (width - 30, height - 30)][rng.integers(4)]
        mask = np.zeros(SIZE, np.uint8)
        mask[top : top + 30, left : left + 30] = 1

        def edges(mask):  # from the outer edge of its first pixel to that of its last
            y, x = np.nonzero(mask)
            return [x.min() - 0.5, y.min() - 0.5, x.max() + 0.5, y.max() + 0.5]

        lesion = {"bbox": edges(mask), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        flipped = transform_lesions([lesion], [mask], flip, SIZE)
        assert flipped.gt_boxes.tensor[0].tolist() == edges(flipped.gt_masks.tensor[0].numpy())


@pytest.mark.parametrize("axis", ["x", "y"])
def test_flip_moves_the_box_exactly(axis):
    height, width = SIZE
    flip = T.HFlipTransform(width) if axis == "x" else T.VFlipTransform(height)
    mask = ellipse_mask(OBLIQUE["recist"], *SIZE)
    flipped = transform_lesions([OBLIQUE], [mask], flip, SIZE)
    x1, y1, x2, y2 = OBLIQUE["bbox"]
    expected = [width - 1 - x2, y1, width - 1 - x1, y2]
    if axis == "y":
        expected = [x1, height - 1 - y2, x2, height - 1 - y1]
    np.testing.assert_allclose(flipped.gt_boxes.tensor[0], expected, atol=1e-4)
    twice = transform_lesions([OBLIQUE], [mask], T.TransformList([flip, flip]), SIZE)
    np.testing.assert_allclose(twice.gt_boxes.tensor[0], OBLIQUE["bbox"], atol=1e-4)
    assert np.array_equal(flipped.gt_masks.tensor[0], mask[:, ::-1] if axis == "x" else mask[::-1])


def test_rotated_box_is_the_outlines_not_the_corners():
    angle = np.deg2rad(-33.7)  # turns the long diameter level
    c, s = np.cos(angle), np.sin(angle)
    turn = AffineTransform(
        np.array([[c, -s, 55 - c * 55 + s * 40], [s, c, 40 - s * 55 - c * 40]]), *SIZE
    )
    x1, y1, x2, y2 = transform_lesions([OBLIQUE], None, turn, SIZE).gt_boxes.tensor[0].tolist()
    corners = np.array(OBLIQUE["bbox"])[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
    extent = np.ptp(turn.apply_coords(corners), axis=0)
    assert (y2 - y1) < 0.75 * extent[1]  # the corners' box would be much higher
    assert x2 - x1 > np.hypot(30, 20)  # it holds the long diameter


def test_lesions_that_leave_the_image_are_dropped_and_others_cut():
    here = recist_annotation([20.0, 40.0, 40.0, 40.0, 30.0, 36.0, 30.0, 44.0])
    gone = recist_annotation([100.0, 40.0, 120.0, 40.0, 110.0, 36.0, 110.0, 44.0], row=3)
    cut = recist_annotation([60.0, 40.0, 80.0, 40.0, 70.0, 36.0, 70.0, 44.0], row=4)
    shift = AffineTransform(np.array([[1.0, 0, 55.0], [0, 1, 0]]), *SIZE)
    masks = [ellipse_mask(a["recist"], *SIZE) for a in (here, gone, cut)]
    instances = transform_lesions([here, gone, cut], masks, shift, SIZE)
    np.testing.assert_allclose(
        instances.gt_boxes.tensor, [[70, 31, 100, 49], [110, 31, 127.5, 49]], atol=1e-4
    )
    assert len(instances.gt_masks) == 2
    nothing = transform_lesions([], [], shift, SIZE)
    assert nothing.gt_boxes.tensor.shape == (0, 4) and nothing.gt_masks.tensor.shape == (0, *SIZE)


def test_boxes_as_corner_and_size_train_as_their_corners_do(dataset_dict):
    """Either of Detectron2's absolute modes, of annotations, hidden ones and GrabCut's boxes."""

    def with_size(annotation):
        x1, y1, x2, y2 = annotation["bbox"]
        return {**annotation, "bbox": [x1, y1, x2 - x1, y2 - y1], "bbox_mode": BoxMode.XYWH_ABS}

    second = recist_annotation([60.0, 60.0, 80.0, 60.0, 70.0, 54.0, 70.0, 66.0], row=3)
    corners = {**dataset_dict, "annotations": [OBLIQUE, second], "hidden_annotations": [second]}
    sizes = {
        key: [with_size(a) for a in value] if key.endswith("annotations") else value
        for key, value in corners.items()
    }
    mapper = LesionDatasetMapper(
        _config("INPUT.PSEUDO_MASK", "grabcut"), True, weak_augmentations=[]
    )
    mapped = []
    for record in (corners, sizes):
        np.random.seed(4)
        mapped.append(mapper(record))
    first, other = mapped
    assert torch.equal(first["image"], other["image"])
    for key in ("gt_boxes", "gt_masks"):
        a, b = (m["instances"].get(key).tensor for m in mapped)
        assert len(a) == 2 and torch.allclose(a.float(), b.float(), atol=1e-4)
    assert torch.allclose(first["hidden_boxes"].tensor, other["hidden_boxes"].tensor, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"found bbox_mode XYWHA_ABS, expected BoxMode.XYXY_ABS or"
    ):
        mapper({**corners, "annotations": [{**OBLIQUE, "bbox_mode": BoxMode.XYWHA_ABS}]})


def test_masks_come_from_the_file_where_it_covers_the_image(dataset_dict, tmp_path):
    stored = np.zeros(SIZE, dtype=bool)
    stored[40:44, 50:60] = True
    found = pseudo_mask("ellipse", None, OBLIQUE["recist"], OBLIQUE["bbox"], SIZE)
    file = tmp_path / "masks.json"
    write_mask_file(
        file,
        {"method": "ellipse", "dataset": "made up"},
        [mask_annotation("000001_01_01_010", OBLIQUE, found._replace(mask=stored))],
    )
    cfg = _config(*NO_AUGMENTATION, "INPUT.PSEUDO_MASK_FILES", (str(file),))
    mapper = LesionDatasetMapper(cfg, True)
    assert np.array_equal(mapper(dataset_dict)["instances"].gt_masks.tensor[0], stored)
    # Another image is computed on the fly, by either method.
    dataset_dict["image_id"] = "000001_01_01_011"
    ellipse = mapper(dataset_dict)["instances"].gt_masks.tensor[0]
    assert np.array_equal(ellipse, found.mask)
    grabcut = LesionDatasetMapper(_config(*NO_AUGMENTATION, "INPUT.PSEUDO_MASK", "grabcut"), True)
    mask = grabcut(dataset_dict)["instances"].gt_masks.tensor[0].numpy()
    assert 2 * (mask & found.mask).sum() / (mask.sum() + found.mask.sum()) > 0.9
    assert mask_util.area(mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))) > 0


def test_slices_of_another_size_than_the_table_says_are_refused(dataset_dict):
    dataset_dict["width"] = 100
    with pytest.raises(ValueError, match=r"\.png: found 128 x 96 pixels, expected 100 x 96$"):
        LesionDatasetMapper(_config(), False)(dataset_dict)


@pytest.mark.parametrize(
    "spacing",
    [
        (0.8, 0.8, 0.0),
        (-0.8, 0.8, 2.0),
        (0.8, float("nan"), 2.0),
        (1e-300, 1e-300, 2.0),
        (0.8, 0.8, 1e300),
    ],
)
def test_bad_spacing_is_refused_with_the_files_name(dataset_dict, spacing):
    dataset_dict["spacing"] = spacing
    cfg = _config("INPUT.CT.PIXEL_SPACING", 1.6)
    with pytest.raises(
        ValueError, match=r"010\.png: found spacing .*, expected x, y and z, each a num"
    ):
        LesionDatasetMapper(cfg, False)(dataset_dict)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("INPUT.PSEUDO_MASK", "gracut"), "INPUT.PSEUDO_MASK: found 'gracut', expected one of"),
        (("INPUT.CT.NUM_SLICES", 4, *_pixels(4)), "INPUT.CT.NUM_SLICES: found 4, expected an odd"),
        (("INPUT.CT.SLICE_INTERVAL", -1.0), "INPUT.CT.SLICE_INTERVAL: found -1.0"),
        (("INPUT.CT.HU_WINDOW", (5.0, 1.0)), r"INPUT.CT.HU_WINDOW: found \(5.0, 1.0\)"),
    ],
)
def test_bad_settings_are_refused_before_the_first_image(opts, words):
    with pytest.raises(ValueError, match=words):
        LesionDatasetMapper(_config(*opts), True)


@pytest.mark.parametrize("channels", [1, 3, 5, 9])
@pytest.mark.parametrize("size", [100, 160])
def test_any_number_of_slices_at_any_size(dataset_dict, channels, size):
    cfg = _config("INPUT.CT.NUM_SLICES", channels, "INPUT.CT.IMAGE_SIZE", size, *_pixels(channels))
    image = LesionDatasetMapper(cfg, False)(dataset_dict)["image"]
    assert image.shape == (channels, size * 96 // 128, size)
    middle = image[channels // 2]
    assert middle[0, 0] == pytest.approx(1100 / 8) and middle.max() > 1.5 * middle[0, 0]


def test_flips_and_resizes_keep_a_mined_box_and_mask_exactly():
    height, width = SIZE
    negative = mined_annotation()
    mask = mask_util.decode(negative["segmentation"])
    x1, y1, x2, y2 = NEGATIVE_BOX
    flipped = transform_lesions([negative], [mask], T.HFlipTransform(width), SIZE)
    expected = [width - 1 - x2, y1, width - 1 - x1, y2]
    np.testing.assert_allclose(flipped.gt_boxes.tensor[0], expected, atol=1e-4)
    assert np.array_equal(flipped.gt_masks.tensor[0], mask[:, ::-1])
    doubled = ResizeTransform(height, width, 2 * height, 2 * width)
    grown = transform_lesions([negative], [mask], doubled, (2 * height, 2 * width))
    expected = [2 * v + 0.5 for v in NEGATIVE_BOX]  # pixel centers
    np.testing.assert_allclose(grown.gt_boxes.tensor[0], expected, atol=1e-4)
    assert np.array_equal(grown.gt_masks.tensor[0], mask.repeat(2, 0).repeat(2, 1))


def test_mined_negatives_join_the_images_own_lesions_in_training(dataset_dict):
    cfg = _config("INPUT.CT.IMAGE_SIZE", 192, "INPUT.AUG.RESIZE_RANGE", (0.8, 1.2))
    mapper = LesionDatasetMapper(cfg, True)
    elsewhere = {"another.png": [mined_annotation(category=7)]}
    mapper.hard_negatives = {
        dataset_dict["image_id"]: [mined_annotation(), mined_annotation([70, 20, 90, 30])]
    }
    mapper.hard_negatives |= elsewhere
    second = recist_annotation([60.0, 60.0, 80.0, 60.0, 70.0, 54.0, 70.0, 66.0], row=3)
    dataset_dict["annotations"] = [OBLIQUE, second]
    before = repr(dataset_dict)
    np.random.seed(2)

    for _ in range(20):
        mapped = mapper(dataset_dict)
        instances = mapped["instances"]
        assert instances.gt_classes.tolist() == [0, 0, 1, 1]
        for box, mask in list(zip(instances.gt_boxes, instances.gt_masks, strict=True))[2:]:
            y, x = torch.nonzero(mask, as_tuple=True)
            extent = torch.stack([x.min(), y.min(), x.max(), y.max()])
            # A pixel of the slice on disk has become up to two.
            torch.testing.assert_close(extent.float(), box, atol=2.5, rtol=0)
            area = np.pi / 4 * torch.prod(box[2:] - box[:2]).item()
            assert 0.8 * area < mask.sum() < 1.2 * area
    assert repr(dataset_dict) == before

    mapper.hard_negatives = elsewhere
    assert mapper(dataset_dict)["instances"].gt_classes.tolist() == [0, 0]


@pytest.mark.parametrize("method", ["ellipse", "grabcut"])
def test_mined_negatives_on_an_image_without_lesions(dataset_dict, method, monkeypatch):
    def grabcut_image(hu, window):
        raise AssertionError("there is nothing to compute on the slice")

    monkeypatch.setattr("lesion_d2.data.mapper.grabcut_image", grabcut_image)
    mapper = LesionDatasetMapper(_config("INPUT.PSEUDO_MASK", method), True)
    mapper.hard_negatives = {dataset_dict["image_id"]: [mined_annotation()]}
    mapped = mapper({**dataset_dict, "annotations": []})
    assert mapped["instances"].gt_classes.tolist() == [1]
    assert mapped["instances"].gt_masks.tensor.any()


def test_mined_negatives_between_lesions_with_stored_masks(dataset_dict, tmp_path):
    stored = np.zeros(SIZE, dtype=bool)
    stored[40:44, 50:60] = True
    found = PseudoMask(stored, False)
    file = tmp_path / "masks.json"
    info = {"method": "ellipse", "dataset": "made up"}
    write_mask_file(file, info, [mask_annotation("000001_01_01_010", OBLIQUE, found)])
    cfg = _config(*NO_AUGMENTATION, "INPUT.PSEUDO_MASK_FILES", (str(file),))
    mapper = LesionDatasetMapper(cfg, True)
    mapper.hard_negatives = {dataset_dict["image_id"]: [mined_annotation()]}
    masks = mapper(dataset_dict)["instances"].gt_masks.tensor
    assert np.array_equal(masks[0], stored)
    assert np.array_equal(masks[1], mask_util.decode(mined_annotation()["segmentation"]))


def test_without_mask_on_mined_negatives_are_boxes(dataset_dict):
    mapper = LesionDatasetMapper(_config("MODEL.MASK_ON", False, *NO_AUGMENTATION), True)
    mapper.hard_negatives = {dataset_dict["image_id"]: [mined_annotation()]}
    instances = mapper(dataset_dict)["instances"]
    np.testing.assert_allclose(instances.gt_boxes.tensor[1], NEGATIVE_BOX, atol=1e-4)
    assert not instances.has("gt_masks")


@pytest.mark.parametrize("method", ["ellipse", "grabcut"])
def test_inference_with_masks_gives_them_as_on_disk(dataset_dict, method):
    other = recist_annotation([80.0, 70.0, 100.0, 70.0, 90.0, 64.0, 90.0, 76.0], row=3)
    dataset_dict["annotations"] = [OBLIQUE, other]
    cfg = _config("INPUT.PSEUDO_MASK", method, "INPUT.CT.IMAGE_SIZE", 256, "MODEL.MASK_ON", False)
    mapper = LesionDatasetMapper(cfg, False, with_masks=True)
    mapper.hard_negatives = {dataset_dict["image_id"]: [mined_annotation()]}  # for training only
    mapped = mapper(dataset_dict)
    assert mapped["image"].shape == (3, 192, 256) and "instances" not in mapped
    masks = mapped["lesion_masks"]
    assert masks.dtype == torch.bool and masks.shape == (2, *SIZE)
    pixels = grabcut_image(read_slice(dataset_dict["file_name"]), dataset_dict["window"])
    for mask, a in zip(masks, (OBLIQUE, other), strict=True):
        expected = pseudo_mask(method, pixels, a["recist"], a["bbox"]).mask
        assert np.array_equal(mask, expected) and expected.any()
    nothing = mapper({**dataset_dict, "annotations": []})
    assert nothing["lesion_masks"].shape == (0, *SIZE)
    assert "lesion_masks" not in LesionDatasetMapper(cfg, False)(dataset_dict)


def test_fallbacks_on_the_fly_are_counted(dataset_dict, caplog, monkeypatch):
    mapper = LesionDatasetMapper(_config(), True)
    mask = ellipse_mask(OBLIQUE["recist"], *SIZE)
    fell_back = iter([False, True, False, True, True])
    monkeypatch.setattr(
        "lesion_d2.data.mapper.pseudo_mask", lambda *args: PseudoMask(mask, next(fell_back))
    )
    caplog.clear()
    with caplog.at_level("INFO", logger="lesion_d2.data.mapper"):
        for _ in range(5):
            mapper(dataset_dict)
    counts = [r.message.split("for ")[1].split(" masks")[0] for r in caplog.records]
    assert counts == ["1 of 2", "2 of 4"]


def test_mask_file_of_the_other_method_is_refused(tmp_path):
    file = tmp_path / "masks.json"
    write_mask_file(file, {"method": "grabcut", "dataset": "made up"}, [])
    with pytest.raises(ValueError, match=r"masks.json: found masks by 'grabcut', expected 'ellip"):
        LesionDatasetMapper(_config("INPUT.PSEUDO_MASK_FILES", (str(file),)), True)


def test_without_mask_on_there_are_no_masks(dataset_dict):
    mapped = LesionDatasetMapper(_config("MODEL.MASK_ON", False), True)(dataset_dict)
    assert not mapped["instances"].has("gt_masks")


def test_pixel_spacing_in_mm(dataset_dict):
    cfg = _config("INPUT.CT.PIXEL_SPACING", 1.6)
    mapped = LesionDatasetMapper(cfg, False)(dataset_dict)
    assert mapped["image"].shape == (3, 48, 64)


def test_outside_of_the_image_is_air():
    shifted = RandomAffine(rotation=0, shear=0, scale=0, translation=0.5, fill=-1000)
    np.random.seed(1)
    image = shifted.get_transform(np.zeros((20, 20, 3), np.int16)).apply_image(
        np.zeros((20, 20, 3), np.int16)
    )
    assert set(np.unique(image)) >= {-1000, 0}
