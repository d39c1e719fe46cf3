"""Checks of a run's data sets, before anything is written."""

import logging
from collections import Counter
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import GeneralizedRCNN, RetinaNet

from ...config import trains_on_masks
from ...config.volumetric import is_volumetric
from ...data.catalog import is_registered, suggest_names
from ...data.dataset_options import DatasetOptions, read_dataset
from ...data.formats.problems import short_repr
from ...data.pseudo_masks.files import PseudoMasks, check_mask_files
from ...evaluation import parse_criteria
from ...evaluation.volumetric.volumes import VolumeTruth
from ...modeling import DetUNet
from ...structures.ignore_regions import lesions_of
from ...utils.files import one_line
from ..evaluator_types import evaluator_type_of
from ..input_errors import InputError, as_input_error, has_uldor_heads, is_a, switched_on
from .dicts import check_dicts

logger = logging.getLogger(__name__)

_COCO_HINT = "; a file of COCO's format is registered with lesion_d2.data.coco.register_ct_coco"


def load_datasets(cfg: CfgNode, kind: str, *, required: bool) -> list[list[dict]]:
    """Load and check the dicts of each data set of DATASETS.TRAIN or TEST, by ``kind``.

    Raises:
        InputError: a data set is not registered, not readable, empty, has invalid dicts
            (:func:`check_dicts`) or other classes than the model, or does not support the options
            of ``cfg.DATASETS``; one of TEST has no evaluation or volumes that cannot be evaluated;
            or there is none although ``required``.
    """
    names = cfg.DATASETS[kind]
    if required and not names:
        raise InputError(f"DATASETS.{kind}: found no data set, expected a name")
    return [_load_dataset(cfg, name, kind) for name in names]


def _load_dataset(cfg: CfgNode, name: str, kind: str) -> list[dict]:
    options = dataset_options(cfg, name, kind)
    metadata = MetadataCatalog.get(name)
    _check_classes(cfg, name, kind)
    evaluator_type = None
    if kind == "TEST":
        with as_input_error("DATASETS.TEST, "):
            evaluator_type = evaluator_type_of(cfg, name)
    try:
        images = read_dataset(name, options)
        if images:  # for volumes, the records' masks are checked
            reads_masks = trains_on_masks(cfg) and (
                kind == "TRAIN" or switched_on(cfg, "TEST.LOSS_")
            )
            classes = metadata.get("thing_classes")
            check_dicts(images, classes, unique=kind == "TEST", with_masks=bool(reads_masks))
    except (AssertionError, KeyError, OSError, ValueError) as error:
        is_coco = metadata.get("evaluator_type") == "coco"
        if isinstance(error, (AssertionError, KeyError)) and not is_coco:
            raise  # Detectron2 and pycocotools raise them for bad files; elsewhere it is a bug
        if isinstance(error, (AssertionError, KeyError)):
            error = ValueError(f"found no readable COCO file ({one_line(error)})")
        hint = _COCO_HINT if is_coco else ""
        raise InputError(f"DATASETS.{kind}, {name}: {error}{hint}") from error
    if not images:
        raise InputError(f"DATASETS.{kind}, {name}: found no image")
    _check_spacing(cfg, name, kind, images)
    mining = kind == "TRAIN" and switched_on(cfg, "HARD_NEGATIVES.")
    is_mined = name in (cfg.HARD_NEGATIVES.DATASETS or cfg.DATASETS.TRAIN)
    if mining and is_mined and not any(lesions_of(image["annotations"]) for image in images):
        raise InputError(
            f"DATASETS.TRAIN, {name}: found no lesion, expected some in each data set for hard "
            f"negatives ({mining})"
        )
    if evaluator_type == "lesion_volume":
        _check_volumes(cfg, name, images)
    return images


def _check_spacing(cfg: CfgNode, name: str, kind: str, images: list[dict]) -> None:
    """Check that no enabled option needs an unknown spacing; log how it is handled."""
    if is_volumetric(cfg):  # their records are checked
        return
    unknown = [image["image_id"] for image in images if image["spacing"] is None]
    if not unknown:
        return
    found = f"{name}: found {len(unknown)} of {len(images)} images without spacing (the first: "
    found += f"{unknown[0]})"
    if cfg.INPUT.CT.PIXEL_SPACING > 0:
        raise InputError(
            f"INPUT.CT.PIXEL_SPACING: found {cfg.INPUT.CT.PIXEL_SPACING:g}, expected 0 for "
            f"DATASETS.{kind}, {found}"
        )
    if kind == "TRAIN" and cfg.INPUT.INSERTED_LESIONS.PROBABILITY > 0:
        raise InputError(
            f"INPUT.INSERTED_LESIONS.PROBABILITY: found "
            f"{cfg.INPUT.INSERTED_LESIONS.PROBABILITY:g}, expected 0 for DATASETS.TRAIN, {found}"
        )
    logger.info(f"{found}: their channels are neighboring slices, whatever the distance")


def dataset_options(cfg: CfgNode, name: str, kind: str) -> DatasetOptions:
    """Make and check a run's options for reading a data set.

    Args:
        cfg: of the run; its DATASETS.ALLOW_MISSING, PREPARED_SLICES, MISSING_ANNOTATION_RATIO,
            MISSING_ANNOTATION_SEED, EXCLUDED_VOLUMES.
        name: name of the data set.
        kind: "TRAIN" or "TEST"; for "TEST" no annotations are hidden and no volumes excluded.

    Raises:
        InputError: the data set, or an excluded one, is not registered, or does not support an
            option.
    """
    if not is_registered(name):
        raise InputError(
            f"DATASETS.{kind}: found {short_repr(name)}, expected a name such as "
            f"{suggest_names(str(name))}"
        )
    for volumes in cfg.DATASETS.EXCLUDED_VOLUMES if kind == "TRAIN" else ():
        if volumes != name and not _has_volumes(volumes):
            raise InputError(
                f"DATASETS.EXCLUDED_VOLUMES: found {volumes!r}, expected a data set of volumes "
                f"such as {suggest_names(volumes, 'lesion_volume')}"
            )
    with as_input_error("DATASETS.EXCLUDED_VOLUMES: "):
        options = DatasetOptions.from_config(cfg, name, kind)
    for key, problem in options.problems(name):
        raise InputError(f"DATASETS.{key}: {problem}")
    return options


def _has_volumes(name: str) -> bool:
    if not is_registered(name):
        return False
    return MetadataCatalog.get(name).get("evaluator_type") == "lesion_volume"


def _check_volumes(cfg: CfgNode, name: str, images: list[dict]) -> None:
    """Check that the volume evaluator supports a data set, with all criteria."""
    with as_input_error("DATASETS.TEST: "):
        truth = VolumeTruth.from_dicts(images, name)
    with as_input_error(f"DATASETS.TEST, {name}, volume "):
        for criterion in parse_criteria(cfg.TEST.VOLUME_CRITERIA).values():
            truth.check_criterion(criterion)


def _check_classes(cfg: CfgNode, name: str, kind: str) -> None:
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None:
        return
    categories = cfg.INPUT.INSERTED_LESIONS.CATEGORIES
    if cfg.INPUT.INSERTED_LESIONS.PROBABILITY > 0 and max(categories) >= len(classes):
        raise InputError(
            f"INPUT.INSERTED_LESIONS.CATEGORIES: found {categories}, expected numbers below "
            f"{len(classes)}, the number of classes of {name} (DATASETS.{kind})"
        )
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


def check_masks(
    cfg: CfgNode, images: list[dict], kind: str, mask_files: Sequence[PseudoMasks] = ()
) -> None:
    """Check that every annotation has a mask, or diameters for one; log those with only a box.

    Args:
        cfg: of the run.
        images: dicts of all data sets of a kind.
        kind: "TRAIN" or "TEST".
        mask_files: INPUT.PSEUDO_MASK_FILES.
    """
    if not trains_on_masks(cfg):
        return
    with as_input_error("INPUT.PSEUDO_MASK_FILES: "):
        check_mask_files(mask_files, images)
    bare = [
        image["file_name"]
        for image in images
        for annotation in lesions_of(image["annotations"])
        if "recist" not in annotation and "segmentation" not in annotation
    ]
    if bare:
        number = sum(len(lesions_of(image["annotations"])) for image in images)
        found = (
            f"DATASETS.{kind}: found {len(bare)} of {number} annotations without a mask and "
            f"without RECIST diameters to make it from (the first: {bare[0]})"
        )
        if not cfg.INPUT.PSEUDO_MASK_FROM_BOX:
            raise InputError(
                f"{found}, expected 'segmentation' or 'recist' for a model that learns masks, or "
                "INPUT.PSEUDO_MASK_FROM_BOX True"
            )
        logger.info(
            f"{found}: their masks are made of their boxes (INPUT.PSEUDO_MASK "
            f"{cfg.INPUT.PSEUDO_MASK!r})"
        )


def check_mined_images(cfg: CfgNode, images: list[dict]) -> None:
    """Check that image ids identify hard negatives.

    An image of another data set may have the id of a mined image only if it is the same slice; it
    then has the same negatives.
    """
    mining = switched_on(cfg, "HARD_NEGATIVES.")
    if not mining:
        return
    names = dict.fromkeys(cfg.HARD_NEGATIVES.DATASETS)
    options = {name: DatasetOptions.from_config(cfg, name, "TRAIN") for name in names}
    mined = [image for each in options.items() for image in read_dataset(*each)] or images
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


def check_test_sets(cfg: CfgNode) -> None:
    """Check that no data set with hidden or excluded training data is used for evaluation."""
    both = [name for name in cfg.DATASETS.TRAIN if name in cfg.DATASETS.TEST]
    options = (
        ("MISSING_ANNOTATION_RATIO", "hidden annotations"),
        ("EXCLUDED_VOLUMES", "excluded volumes"),
    )
    for key, what in options:
        if cfg.DATASETS[key] and both:
            raise InputError(
                f"DATASETS.TEST: found {both[0]!r}, which has {what} as a training set, expected "
                f"another data set (DATASETS.{key} is {cfg.DATASETS[key]})"
            )
