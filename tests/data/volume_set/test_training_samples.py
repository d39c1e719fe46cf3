"""What the mapper makes of slices of volumes: masks of three kinds, and no spacing."""

from functools import partial

from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.pseudo_masks import ellipse_mask, lesion_ends, pseudo_mask
from lesion_d2.data.pseudo_masks.files import load_mask_file
from lesion_d2.data.transforms.borders import volume_extent
from lesion_d2.data.volume_set.catalog import register_volume_set
from lesion_d2.data.volume_set.dicts import load_volume_set
from lesion_d2.tools.prepare_masks import prepare_masks

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from made_up_sets import write_made_up_set
from pycocotools import mask as mask_util

make_mapper = partial(
    LesionDatasetMapper,
    True,
    augmentations=[],
    num_slices=3,
    slice_interval=2.5,
    hu_window=(-1000.0, 400.0),
    mask_method="ellipse",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_made_up_set(tmp_path_factory.mktemp("sets") / "mine")[0]


@pytest.fixture
def images(root):
    return {image["image_id"]: image for image in load_volume_set(root)}


def test_masks_are_true_or_of_diameters_or_of_boxes(images):
    image = images["a_003"]
    true, with_diameters = image["annotations"]
    masks = make_mapper()(image)["instances"].gt_masks.tensor.numpy()
    assert np.array_equal(masks[0], mask_util.decode(true["segmentation"]))
    assert np.array_equal(masks[1], ellipse_mask(with_diameters["recist"], 48, 64))

    (box, *_) = images["b_000"]["annotations"]  # 10 to 20 and 10 to 22
    mask = _mask_of_the_lesion(make_mapper()(images["b_000"]))
    assert np.array_equal(mask, ellipse_mask((10, 16, 20, 16, 15, 10, 15, 22), 48, 64))
    assert lesion_ends(box) == (10.0, 16.0, 20.0, 16.0, 15.0, 10.0, 15.0, 22.0)
    with pytest.raises(ValueError, match=r"000\.png: found a lesion with neither a mask nor"):
        make_mapper(pseudo_mask_from_box=False)(images["b_000"])
    make_mapper(pseudo_mask_from_box=False)(image)  # lesions with a mask or diameters may stay


def _mask_of_the_lesion(sample: dict) -> np.ndarray:
    """Of an image with one, beside regions to ignore."""
    instances = sample["instances"]
    (mask,) = instances[instances.gt_classes >= 0].gt_masks.tensor.numpy()
    return mask


def test_grabcut_of_a_box_is_the_lesion_in_it():
    lesion = ellipse_mask((20.0, 24.0, 44.0, 24.0, 32.0, 18.0, 32.0, 30.0), 48, 64)
    image = np.where(lesion, 200, 60).astype(np.uint8)
    image += np.random.default_rng(0).integers(0, 20, image.shape).astype(np.uint8)
    ys, xs = np.nonzero(lesion)
    box = [xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5]
    ends = lesion_ends({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS})
    found = pseudo_mask("grabcut", image, ends, box)
    assert not found.fell_back
    assert 2 * (found.mask & lesion).sum() / (found.mask.sum() + lesion.sum()) > 0.97


def test_without_spacing_channels_are_the_neighbors(images, root):
    stack = make_mapper().load(images["b_000"])["image"]
    voxels = np.random.default_rng(1).integers(-1000, 400, (4, 48, 64)).astype(np.int16)
    assert torch.equal(stack, torch.from_numpy(voxels[[0, 0, 1]]))
    # An interval of 2.5 mm is that of volume "a", too.
    stack = make_mapper().load(images["a_002"])["image"]
    voxels = np.random.default_rng(0).integers(-1000, 400, (6, 48, 64)).astype(np.int16)
    assert torch.equal(stack, torch.from_numpy(voxels[1:4]))
    crop = make_mapper(cut_borders=True).load(images["b_000"])["crop"]
    assert crop == volume_extent(f"{root}/images/b.b2nd", (0, 3), (0.8, 0.8))


def test_mask_files_of_volumes(root, tmp_path):
    known = set(DatasetCatalog.list())
    register_volume_set(root)
    try:
        file = tmp_path / "masks.json"
        assert prepare_masks("mine", "ellipse", str(file), workers=1).lesions == 8
        masks = load_mask_file(file)
        image = DatasetCatalog.get("mine_val")[0]
        mapped = make_mapper(pseudo_masks=(masks,))(image)
        mask = masks.mask(image, image["annotations"][0])
        assert np.array_equal(_mask_of_the_lesion(mapped), mask)
    finally:
        for name in set(DatasetCatalog.list()) - known:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
