"""docs/extending.md, followed word for word: a backbone, a data set and an augmentation."""

from lesion_d2.data.dict_rules import check_dicts

import pytest
import torch
import yaml
from config_values import CONFIGS, reduced
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from doc_pages import DOCS, blocks

import train_net

PAGE = DOCS / "extending.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="needs a checkout")
NAME, BACKBONE = "my_slices_train", "build_my_unet_fpn_backbone"


def _blocks(language):
    return blocks(PAGE.read_text(encoding="utf-8"), language)


@pytest.fixture(scope="module")
def names():
    """What the page's blocks define, run one after another as in one script."""
    defined = {"__name__": "train_mine"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_net, "Trainer", train_net.Trainer)
        for block in _blocks("python"):
            exec(block, defined)
        defined["trainer"] = train_net.Trainer
    yield defined
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    del BACKBONE_REGISTRY._obj_map[BACKBONE]


@pytest.fixture(scope="module")
def cfg(names, tiny_phantom):
    """The page's config, reduced, on phantoms."""
    [text] = _blocks("yaml")
    cfg = reduced(CONFIGS / yaml.safe_load(text)["_BASE_"].split("/configs/")[1])
    cfg.merge_from_other_cfg(type(cfg)({"MODEL": yaml.safe_load(text)["MODEL"]}))
    return cfg


def test_a_backbone_and_an_augmentation_train(names, cfg):
    loader = names["trainer"].build_train_loader(cfg)
    assert isinstance(loader.mapper.augmentations.augs[-1], names["RandomOffset"])
    model = build_model(cfg)
    assert isinstance(model.backbone.bottom_up, names["MyBackbone"])
    with EventStorage():
        losses = model(next(iter(loader)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.backbone.bottom_up.stages["c1"][0].weight.grad.abs().sum() > 0


def test_an_augmentation_shifts_hu(names):
    transform = names["RandomOffset"]().get_transform(None)
    image = torch.full((4, 5, 3), 40).numpy().astype("int16")
    shifted = transform.apply_image(image)
    assert shifted.dtype == image.dtype and len(set(shifted.ravel().tolist())) == 1
    assert 20 <= shifted.min() <= 60


def test_a_data_set_has_all_that_is_required_and_no_more(names):
    metadata = MetadataCatalog.get(NAME)
    assert metadata.evaluator_type == "lesion"
    images = DatasetCatalog.get(NAME)
    check_dicts(images, metadata.thing_classes, unique=True, with_masks=True)
    for key in images[0]:
        lacking = {name: value for name, value in images[0].items() if name != key}
        with pytest.raises(ValueError, match=f"found no '{key}'"):
            check_dicts([lacking], metadata.thing_classes)
