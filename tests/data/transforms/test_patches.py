import lesion_d2
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.transforms.augmentation import RandomAffine, build_augmentations
from lesion_d2.data.transforms.lesion_transforms import transform_lesions
from lesion_d2.data.transforms.patches import PatchTransform, RandomPatch
from lesion_d2.engine import InputError
from lesion_d2.engine.checks.relations import TRAINING_RELATIONS, check_relations

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import BoxMode
from made_up_annotations import slice_record
from slice_files import write_slice
from tiny_run import tiny_config

NO_BOXES = np.zeros((0, 4))


def _slow_patch(image, x0, y0, width, height, fill):
    return [
        [
            image[y][x] if 0 <= y < len(image) and 0 <= x < len(image[0]) else fill
            for x in range(x0, x0 + width)
        ]
        for y in range(y0, y0 + height)
    ]


@pytest.mark.parametrize(
    "x0, y0, width, height",
    [(2, 1, 5, 4), (-3, 0, 6, 8), (5, -2, 9, 14), (-4, -4, 30, 30), (20, 3, 4, 4), (-9, 0, 4, 4)],
)
def test_a_patch_against_a_loop(x0, y0, width, height):
    image = np.random.default_rng(0).integers(-1000, 1000, (8, 12), dtype=np.int16)
    patch = PatchTransform(x0, y0, width, height, 12, 8, fill=-1024)
    expected = _slow_patch(image.tolist(), x0, y0, width, height, -1024)
    found = patch.apply_image(image)
    assert found.dtype == np.int16 and found.tolist() == expected
    assert patch.apply_image(np.stack([image] * 3, axis=2))[..., 2].tolist() == expected
    mask = (image > 0).astype(np.uint8)
    expected = _slow_patch(mask.tolist(), x0, y0, width, height, 0)
    assert patch.apply_segmentation(mask).tolist() == expected
    assert patch.apply_coords(np.array([[4.5, 2.5]])).tolist() == [[4.5 - x0, 2.5 - y0]]
    back = patch.inverse().apply_image(found)
    inside = np.zeros((8, 12), bool)
    inside[max(y0, 0) : max(y0 + height, 0), max(x0, 0) : max(x0 + width, 0)] = True
    assert np.array_equal(back, np.where(inside, image, -1024))


def _starts(augmentation, boxes, shape=(40, 50, 1), number=600):
    np.random.seed(0)
    image = np.zeros(shape, np.int16)
    drawn = [augmentation.get_transform(image, boxes) for _ in range(number)]
    return np.array([(t.x0, t.y0) for t in drawn])


def test_any_patch_is_drawn_without_a_lesion():
    for probability, boxes in ((1.0, NO_BOXES), (0.0, np.array([[1.0, 1, 5, 5]]))):
        starts = _starts(RandomPatch((30, 45), probability), boxes)
        assert {*starts[:, 0]} == {*range(6)} and {*starts[:, 1]} == {*range(11)}
        counts = np.bincount(starts[:, 0])
        assert counts.min() > 60 and counts.max() < 140  # 100 of each


def test_with_the_wanted_probability_a_lesion_is_whole_and_anywhere_in_the_patch():
    boxes = np.array([[20.5, 10, 26, 17.5]])
    starts = _starts(RandomPatch((10, 12), 1.0), boxes)
    # Whole: x0 <= 20, x0 + 12 >= 26; y0 <= 10, y0 + 10 >= 18.
    assert {*starts[:, 0]} == {*range(14, 21)} and {*starts[:, 1]} == {*range(8, 11)}
    starts = _starts(RandomPatch((10, 12), 0.5), boxes, number=2000)
    whole = ((starts >= (14, 8)) & (starts <= (20, 10))).all(axis=1).mean()
    anywhere = 7 * 3 / (39 * 31)
    assert whole == pytest.approx(0.5 + 0.5 * anywhere, abs=0.04)


def test_each_lesion_has_its_turn_also_at_the_border_and_when_it_is_too_large():
    boxes = np.array([[-4.0, 0, 6, 5], [44, 36, 60, 50], [10, 4, 40, 9], [70, 70, 80, 80]])
    starts = _starts(RandomPatch((10, 12), 1.0), boxes)
    first = (starts[:, 0] == 0) & (starts[:, 1] == 0)
    corner = (starts == (38, 30)).all(axis=1)
    large = (starts[:, 0] >= 10) & (starts[:, 0] <= 28) & (starts[:, 1] <= 4)  # nothing beside it
    shares = [each.mean() for each in (first, corner, large)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.06)
    assert (first | corner | large).all()  # the last one left the image


def test_smaller_images_lie_in_the_middle():
    starts = _starts(RandomPatch((48, 61), 1.0), np.array([[1.0, 1, 9, 9]]), number=5)
    assert {*map(tuple, starts)} == {(-6, -4)}


def test_a_warped_patch_is_that_of_the_warped_image():
    image = np.random.default_rng(0).integers(-1000, 1000, (60, 70, 2), dtype=np.int16)
    affine = RandomAffine(0.3, 0.2, 0.2, 0.1, fill=-1024)
    for seed in range(4):
        np.random.seed(seed)
        patch = RandomPatch((32, 24), 1.0, affine).get_transform(image, NO_BOXES)
        np.random.seed(seed)
        whole = affine.get_transform(image)
        x0, y0 = np.random.randint(70 - 24 + 1), np.random.randint(60 - 32 + 1)
        expected = whole.apply_image(image)[y0 : y0 + 32, x0 : x0 + 24]
        found = patch.apply_image(image)
        assert found.shape == (32, 24, 2)
        # OpenCV interpolates between 32 places a pixel, and rounding may choose the next one.
        differences = np.abs(found - expected.astype(int))
        assert differences.max() <= 2 * 2000 / 32 and differences.mean() < 1
        points = np.array([[3.0, 5.0], [40.5, 22.5]])
        expected = whole.apply_coords(points) - (x0, y0)
        np.testing.assert_allclose(patch.apply_coords(points), expected, atol=1e-9)


SIZE = (96, 128)
BOX = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
LESION = {
    **BOX,
    "bbox": [40.0, 30.0, 60.0, 46.0],
    "recist": [42.0, 38.0, 58.0, 38.0, 50.0, 32.0, 50.0, 44.0],
    "row": 2,
}


@pytest.fixture
def record(tmp_path):
    """A slice of 100 HU with a lesion of 900 HU, 16 x 12 pixels and an ellipse."""
    folder = tmp_path / "000001_01_01"
    hu = np.full(SIZE, 100, np.int32)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    hu[((x - 50) / 8) ** 2 + ((y - 38) / 6) ** 2 <= 1] = 900
    write_slice(folder / "010.png", hu)
    return slice_record(folder, SIZE, [LESION])


def _config(*opts):
    cfg = get_cfg()
    lesion_d2.add_lesion_config(cfg)
    cfg.MODEL.MASK_ON, cfg.INPUT.CT.IMAGE_SIZE = True, 0
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("warps", [True, False])
def test_image_box_and_mask_of_a_patch_stay_together(record, warps):
    opts = ["INPUT.PATCH.SIZE", (40, 48), "INPUT.PATCH.FOREGROUND_PROB", 1.0]
    opts += ["INPUT.CT.PIXEL_SPACING", 0.6, "INPUT.AUG.MAX_TRANSLATION", 0.05 * warps]
    for key in () if warps else ("ROTATION", "SHEAR", "SCALE"):
        opts += [f"INPUT.AUG.MAX_{key}", 0.0]
    mapper = LesionDatasetMapper(_config(*opts), True)
    np.random.seed(1)
    places = set()

    for _ in range(12):
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 40, 48)
        [mask], [box] = mapped["instances"].gt_masks.tensor, mapped["instances"].gt_boxes.tensor
        bright = mapped["image"][1] > (500 + 1024) / 2074 * 255
        assert (bright ^ mask).sum() < 0.2 * mask.sum() and mask.sum() > 150
        y, x = torch.nonzero(mask, as_tuple=True)
        center = torch.stack([x, y], dim=1).float().mean(dim=0)
        torch.testing.assert_close(center, (box[:2] + box[2:]) / 2, atol=1.5, rtol=0)
        assert not mapped["instances"].has("is_region")
        places.add(tuple(box.tolist()))
    assert len(places) > 8


def test_a_small_image_is_padded_with_the_low_end_of_the_window(record):
    keys = ("ROTATION", "SHEAR", "SCALE", "TRANSLATION")
    still = [v for key in keys for v in (f"INPUT.AUG.MAX_{key}", 0.0)]
    mapper = LesionDatasetMapper(_config("INPUT.PATCH.SIZE", (100, 140), *still), True)
    mapped = mapper(record)
    image = mapped["image"][1]
    assert image.shape == (100, 140)
    assert not image[:2].any() and not image[-2:].any() and not image[:, :6].any()
    assert image[2:-2, 6:-6].min() > 0


def test_a_cut_lesion_is_kept_or_ignored_by_the_share_that_is_left():
    half = {**BOX, "bbox": [10.0, 10.0, 20.0, 20.0]}
    for x0, classes in ((14, [0]), (15, [0]), (16, [-1]), (19, [-1]), (21, [])):
        cut = PatchTransform(x0, 0, 30, 40, 64, 64)
        instances = transform_lesions([half], None, cut, (40, 30), min_share=0.5)
        # The patch begins half a pixel before its first pixel's center.
        assert instances.gt_classes.tolist() == classes, x0
        assert instances.has("is_region") == (classes == [-1])
        if classes:
            assert instances.gt_boxes.tensor[0].tolist() == [-0.5, 10, 20 - x0, 20]

    # Of 60 x 50 pixels the patch can show 30 x 40, and half of that is enough.
    large = {**BOX, "bbox": [2.0, 2.0, 62.0, 52.0]}
    for y0, classes in ((0, [0]), (31, [0]), (34, [-1])):
        cut = PatchTransform(20, y0, 30, 40, 64, 64)
        instances = transform_lesions([large], None, cut, (40, 30), min_share=0.5)
        assert instances.gt_classes.tolist() == classes, y0

    mask = np.zeros((64, 64), np.uint8)
    mask[11:20, 11:20] = 1
    other = {**BOX, "bbox": [22.0, 22.0, 30.0, 30.0]}
    cut = PatchTransform(17, 0, 30, 40, 64, 64)
    instances = transform_lesions(
        [other, half], [np.zeros_like(mask), mask], cut, (40, 30), min_share=0.5
    )
    assert instances.is_region == [True, False] and instances.gt_classes.tolist() == [-1, 0]
    assert np.array_equal(instances.gt_masks.tensor[0], mask[:40, 17:47])


def test_a_teacher_sees_the_whole_image_and_its_matrix_leads_to_the_patch(record):
    opts = ["INPUT.PATCH.SIZE", (40, 48), "INPUT.PATCH.FOREGROUND_PROB", 1.0]
    opts += ["MODEL.MEAN_TEACHER.ENABLED", True]
    np.random.seed(0)
    mapped = LesionDatasetMapper(_config(*opts), True)(record)
    assert mapped["weak_image"].shape == (3, *SIZE) and mapped["image"].shape == (3, 40, 48)
    assert mapped["min_share"] == 0.5
    matrix = mapped["slice_to_image"]
    [box] = mapped["instances"].gt_boxes.tensor
    center = matrix[:, :2] @ torch.tensor([50.0, 38.0]) + matrix[:, 2]
    torch.testing.assert_close(center, (box[:2] + box[2:]) / 2, atol=0.01, rtol=0)


def test_hidden_lesions_of_a_patch_are_those_that_would_be_lesions_there(record):
    hidden = [LESION, {**LESION, "bbox": [2.0, 2.0, 14.0, 10.0]}]
    record = {**record, "annotations": [], "hidden_annotations": hidden}
    still = [v for key in ("ROTATION", "SHEAR", "SCALE") for v in (f"INPUT.AUG.MAX_{key}", 0.0)]
    opts = ["INPUT.PATCH.SIZE", (40, 48), "MODEL.MEAN_TEACHER.ENABLED", True, *still]
    mapper = LesionDatasetMapper(_config(*opts), True)
    np.random.seed(0)
    numbers = set()

    for _ in range(20):
        mapped = mapper(record)
        matrix, visible = mapped["slice_to_image"], []
        for x1, y1, x2, y2 in (a["bbox"] for a in hidden):
            corners = torch.tensor([[x1, y1], [x2, y2]]) @ matrix[:, :2].T + matrix[:, 2]
            low, high = corners.min(dim=0).values, corners.max(dim=0).values
            end = torch.tensor([47.5, 39.5])
            sides = (high.minimum(end) - low.clamp(min=-0.5)).clamp(min=0)
            visible.append(bool(sides.prod() >= 0.5 * (high - low).prod()))
        assert len(mapped["hidden_boxes"]) == sum(visible)
        numbers.add(sum(visible))
    assert {0, 1} <= numbers


def test_without_patches_augmentations_are_what_they_were():
    cfg = _config()
    kinds = [type(a).__name__ for a in build_augmentations(cfg, True)]
    assert kinds == ["ResizeCT", "RandomFlip", "RandomFlip", "RandomAffine"]
    cfg.INPUT.PATCH.SIZE = (32, 32)
    built = build_augmentations(cfg, True)
    assert isinstance(built[-1], RandomPatch) and isinstance(built[-1].affine, RandomAffine)
    assert built[-1].affine.fill == built[-1].fill == -1024
    assert [type(a).__name__ for a in build_augmentations(cfg, False)] == ["ResizeCT"]
    assert "RandomPatch(size=(32, 32)" in repr(built[-1])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SIZE", (0, 32), r"SIZE: found \(0, 32\), expected height and width"),
        ("SIZE", (288,), r"SIZE: found \(288,\), expected height and width"),
        ("SIZE", (28.5, 32), r"SIZE: found \(28.5, 32\), expected height and width"),
        ("SIZE", (-8, 32), r"SIZE: found \(-8, 32\), expected height and width"),
        ("FOREGROUND_PROB", 1.5, r"FOREGROUND_PROB: found 1.5, expected 0 to 1"),
    ],
)
def test_what_is_no_patch_is_refused_at_the_start(key, value, message):
    cfg = _config("INPUT.PATCH.SIZE", (32, 32))
    cfg.INPUT.PATCH[key] = value
    with pytest.raises(ValueError, match=f"INPUT.PATCH.{message}"):
        LesionDatasetMapper(cfg, True)
    LesionDatasetMapper(cfg, False)


def test_patches_want_a_model_that_ignores_what_they_cut():
    cfg = tiny_config(MODEL__META_ARCHITECTURE="RetinaNet", INPUT__PATCH__SIZE=(32, 32))
    with pytest.raises(
        InputError, match=r"expected a LesionRetinaNet.* ignore cut lesions \(INPUT.PATCH"
    ):
        check_relations(cfg, TRAINING_RELATIONS)
    check_relations(tiny_config(INPUT__PATCH__SIZE=(32, 32)), TRAINING_RELATIONS)


@pytest.mark.parametrize(
    ("key", "of_detectron2", "ours"),
    [
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "LesionRPN"),
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "LesionROIHeads"),
    ],
)
def test_patches_want_parts_of_a_two_stage_model_that_ignore_what_they_cut(
    key, of_detectron2, ours
):
    parts = {"MODEL__META_ARCHITECTURE": "LesionRCNN", "MODEL__ROI_HEADS__NAME": "LesionROIHeads"}
    cfg = tiny_config(INPUT__PATCH__SIZE=(32, 32), **parts)
    check_relations(cfg, TRAINING_RELATIONS)
    cfg.merge_from_list([key, of_detectron2])
    message = rf"{key}: found '{of_detectron2}', expected '{ours}'.* ignore cut .*\(INPUT.PATCH"
    with pytest.raises(InputError, match=message):
        check_relations(cfg, TRAINING_RELATIONS)
