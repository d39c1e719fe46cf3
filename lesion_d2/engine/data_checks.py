"""What is wrong with a run's data sets, found before anything is written."""

from collections import Counter

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import GeneralizedRCNN, RetinaNet

from ..config import trains_on_masks
from ..data.deeplesion import set_allow_missing, set_hidden_annotations, suggest_names
from ..modeling import DetUNet
from .input_errors import InputError, as_input_error, has_uldor_heads, is_a, switched_on


def load_datasets(cfg: CfgNode, kind: str, *, required: bool) -> list[dict]:
    """All dicts of DATASETS.TRAIN or TEST, which ``kind`` says.

    Raises:
        InputError: one is not registered, cannot be read, is empty, or has other classes than the
            model; or there is none where one is ``required``.
    """
    names = cfg.DATASETS[kind]
    if required and not names:
        raise InputError(f"DATASETS.{kind}: found no data set, expected a name")
    return [image for name in names for image in _load_dataset(cfg, name, kind)]


def _load_dataset(cfg: CfgNode, name: str, kind: str) -> list[dict]:
    if name not in DatasetCatalog:
        raise InputError(
            f"DATASETS.{kind}: found {name!r}, expected a name such as {suggest_names(name)}"
        )
    _check_classes(cfg, name, kind)
    with as_input_error("DATASETS.ALLOW_MISSING: "):
        set_allow_missing(name, cfg.DATASETS.ALLOW_MISSING)
    hidden_share = cfg.DATASETS.HIDDEN_SHARE if kind == "TRAIN" else 0.0
    set_hidden_annotations(name, hidden_share, cfg.DATASETS.HIDDEN_SEED)
    try:
        images = DatasetCatalog.get(name)
    except (OSError, ValueError) as error:
        raise InputError(f"DATASETS.{kind}, {name}: {error}") from error
    if not images:
        raise InputError(f"DATASETS.{kind}, {name}: found no image")
    mining = kind == "TRAIN" and switched_on(cfg, "HARD_NEGATIVES.")
    is_mined = name in (cfg.HARD_NEGATIVES.DATASETS or cfg.DATASETS.TRAIN)
    if mining and is_mined and not any(image["annotations"] for image in images):
        raise InputError(
            f"DATASETS.TRAIN, {name}: found no lesion, expected some in each data set for hard "
            f"negatives ({mining})"
        )
    if hidden_share > 0 and "hidden_annotations" not in images[0]:
        raise InputError(
            f"DATASETS.HIDDEN_SHARE: found {hidden_share}, expected 0 for {name}, which is not in "
            "DeepLesion's layout and hides no annotation"
        )
    return images


def _check_classes(cfg: CfgNode, name: str, kind: str) -> None:
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None:
        return
    expected, counted = len(classes), f"the classes of {name} (DATASETS.{kind})"
    if is_a(cfg, DetUNet, RetinaNet):
        key, found = "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    elif is_a(cfg, GeneralizedRCNN):
        key, found = "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if has_uldor_heads(cfg):
            expected, counted = expected + 1, f"{counted} and one of false positives"
    else:
        return
    if found != expected:
        raise InputError(f"{key}: found {found}, expected {expected}, {counted}")


def check_masks(cfg: CfgNode, images: list[dict], kind: str) -> None:
    """Check that every annotation has a mask, or the diameters that one is made from."""
    if not trains_on_masks(cfg):
        return
    bare = [
        image["file_name"]
        for image in images
        for annotation in image["annotations"]
        if "recist" not in annotation and "segmentation" not in annotation
    ]
    if bare:
        number = sum(len(image["annotations"]) for image in images)
        raise InputError(
            f"DATASETS.{kind}: found {len(bare)} of {number} annotations without a mask and "
            f"without RECIST diameters to make it from (the first: {bare[0]}), expected "
            "'segmentation' or 'recist' for a model that learns masks"
        )


def check_mined_images(cfg: CfgNode, images: list[dict]) -> None:
    """Check that hard negatives can be told by their images' ids.

    An image of another data set may have the id of a mined one only where it is the same slice,
    whose negatives it then has too.
    """
    mining = switched_on(cfg, "HARD_NEGATIVES.")
    if not mining:
        return
    names = dict.fromkeys(cfg.HARD_NEGATIVES.DATASETS)
    mined = [image for name in names for image in DatasetCatalog.get(name)] or images
    counts = Counter(image["image_id"] for image in mined)
    files = {image["image_id"]: image["file_name"] for image in mined}
    for image in images:
        name = image["image_id"]
        counts[name] += files.get(name, image["file_name"]) != image["file_name"]
    twice = [name for name, n in counts.items() if n > 1]
    if twice:
        raise InputError(
            f"DATASETS.TRAIN: found {len(twice)} images twice (the first: {twice[0]!r}), expected "
            f"different image_ids, which hard negatives are known by ({mining})"
        )


def check_hidden(cfg: CfgNode) -> None:
    """Check that no evaluation goes by a data set with hidden annotations."""
    both = [name for name in cfg.DATASETS.TRAIN if name in cfg.DATASETS.TEST]
    if cfg.DATASETS.HIDDEN_SHARE > 0 and both:
        raise InputError(
            f"DATASETS.TEST: found {both[0]!r}, which has hidden annotations as a training set, "
            f"expected another data set (DATASETS.HIDDEN_SHARE is {cfg.DATASETS.HIDDEN_SHARE})"
        )
