"""Checks of a run's data sets, before anything is written."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import GeneralizedRCNN, RetinaNet

from ...config import trains_on_masks
from ...config.volumetric import is_volumetric
from ...data.catalog import is_registered, suggest_names
from ...data.dataset_options import DatasetOptions, read_dataset
from ...data.dict_rules import check_dicts
from ...data.formats.problems import short_repr
from ...data.pseudo_masks.files import PseudoMasks, check_mask_files
from ...data.volumetric.loader import check_volumes
from ...evaluation import parse_criteria
from ...evaluation.volumetric.volumes import VolumeTruth
from ...modeling import DetUNet
from ...structures.ignore_regions import lesions_of
from ...utils.files import one_line
from ..evaluator_types import evaluator_type_of
from ..input_errors import InputError, as_input_error, has_uldor_heads, is_a, switched_on, value_of

logger = logging.getLogger(__name__)

_COCO_HINT = "; a file of COCO's format is registered with lesion_d2.data.coco.register_ct_coco"


def load_datasets(cfg: CfgNode, kind: str, *, required: bool) -> list[list[dict]]:
    """Load and check the dicts of each data set of DATASETS.TRAIN or TEST, by ``kind``.

    Raises:
        InputError: a data set is not registered, not readable, empty, has invalid dicts
            (:func:`check_dicts`), other classes than the model, or slices for a model of volumes,
            or does not support the options of ``cfg.DATASETS``; one of TEST has no evaluation or
            volumes that cannot be evaluated; or there is none although ``required``.
    """
    if required and not cfg.DATASETS[kind]:
        raise InputError(f"DATASETS.{kind}: found no data set, expected a name")
    return [_load_dataset(cfg, name, kind) for name in cfg.DATASETS[kind]]


def _load_dataset(cfg: CfgNode, name: str, kind: str) -> list[dict]:
    options = dataset_options(cfg, name, kind)
    metadata = MetadataCatalog.get(name)
    _check_classes(cfg, name, kind)
    with as_input_error(f"DATASETS.{kind}, "):
        if is_volumetric(cfg):
            check_volumes(name)
        if kind == "TEST":
            evaluator_type_of(cfg, name)
    # For volumes, the records' masks are checked.
    reads_masks = trains_on_masks(cfg) and (kind == "TRAIN" or switched_on(cfg, "TEST.LOSS_"))
    try:
        images = read_dataset(name, options)
        classes = metadata.get("thing_classes")
        check_dicts(images, classes, unique=kind == "TEST", with_masks=bool(reads_masks))
    except (AssertionError, KeyError, OSError, ValueError) as error:
        is_coco = metadata.get("evaluator_type") == "coco"
        if isinstance(error, (AssertionError, KeyError)):
            if not is_coco:
                raise  # Detectron2 and pycocotools raise them for bad files; elsewhere it is a bug
            error = ValueError(f"found no readable COCO file ({one_line(error)})")
        hint = _COCO_HINT if is_coco else ""
        text = str(error).removeprefix(f"{name}: ")
        raise InputError(f"DATASETS.{kind}, {name}: {text}{hint}") from error
    if not images:
        raise InputError(f"DATASETS.{kind}, {name}: found no image")
    _check_spacing(cfg, name, kind, images)
    if kind == "TEST" and _has_volumes(name):
        _check_volumes(cfg, name, images)
    return images


def _check_spacing(cfg: CfgNode, name: str, kind: str, images: list[dict]) -> None:
    """Check that no enabled option needs an unknown spacing; log how it is handled."""
    unknown = [image["image_id"] for image in images if image["spacing"] is None]
    if is_volumetric(cfg) or not unknown:  # the records of volumes are checked
        return
    found = f"{name}: found {len(unknown)} of {len(images)} images without spacing (the first: "
    found += f"{unknown[0]})"
    for key in ("INPUT.CT.PIXEL_SPACING", "INPUT.INSERTED_LESIONS.PROBABILITY"):
        value = value_of(cfg, key)
        if value > 0 and (kind == "TRAIN" or key == "INPUT.CT.PIXEL_SPACING"):
            raise InputError(f"{key}: found {value:g}, expected 0 for DATASETS.{kind}, {found}")
    logger.info(f"{found}: their channels are neighboring slices, whatever the distance")


def dataset_options(cfg: CfgNode, name: str, kind: str) -> DatasetOptions:
    """Make and check a run's options for reading a data set.

    Args:
        cfg, name, kind: see :meth:`DatasetOptions.from_config`.

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
    if cfg.INPUT.INSERTED_LESIONS.PROBABILITY > 0 and max(categories, default=0) >= len(classes):
        raise InputError(
            f"INPUT.INSERTED_LESIONS.CATEGORIES: found {categories}, expected numbers below "
            f"{len(classes)}, the number of classes of {name} (DATASETS.{kind})"
        )
    expected, counted = len(classes), f"the classes of {name} (DATASETS.{kind})"
    if has_uldor_heads(cfg):
        expected, counted = expected + 1, f"{counted} and one of false positives"
    for part, kinds in (("RETINANET", (DetUNet, RetinaNet)), ("ROI_HEADS", (GeneralizedRCNN,))):
        found = cfg.MODEL[part].NUM_CLASSES
        if is_a(cfg, *kinds) and found != expected:
            raise InputError(
                f"MODEL.{part}.NUM_CLASSES: found {found}, expected {expected}, {counted}"
            )


def check_masks(
    cfg: CfgNode, kind: str, images: Iterable[dict], mask_files: Sequence[PseudoMasks] = ()
) -> None:
    """Check that every lesion has a mask, or diameters for one; log those with only a box.

    Args:
        cfg: of the run.
        kind: "TRAIN" or "TEST".
        images: dicts of all data sets of a kind, or records of volumes.
        mask_files: INPUT.PSEUDO_MASK_FILES.
    """
    if not trains_on_masks(cfg):
        return
    with as_input_error("INPUT.PSEUDO_MASK_FILES: "):
        check_mask_files(mask_files, images)
    sources = ("segmentation",) if is_volumetric(cfg) else ("segmentation", "recist")
    lesions = [
        (image.get("file_name", image["image_id"]), lesion)
        for image in images
        for lesion in lesions_of(image["annotations"])
    ]
    bare = [name for name, lesion in lesions if not any(source in lesion for source in sources)]
    if not bare:
        return
    found = (
        f"DATASETS.{kind}: found {len(bare)} of {len(lesions)} lesions without a mask (the first: "
        f"{bare[0]})"
    )
    if not cfg.INPUT.PSEUDO_MASK_FROM_BOX:
        raise InputError(
            f"{found}, expected {' or '.join(map(repr, sources))} for a model that learns masks, "
            "or INPUT.PSEUDO_MASK_FROM_BOX True"
        )
    logger.info(
        f"{found}: their masks are made of their boxes (INPUT.PSEUDO_MASK "
        f"{cfg.INPUT.PSEUDO_MASK!r})"
    )


def check_mined_images(cfg: CfgNode, train_sets: Sequence[list[dict]]) -> None:
    """Check that there are images to mine hard negatives on, and that their ids identify these.

    An image of another data set may have the id of a mined image only if it is the same slice; it
    then has the same negatives.
    """
    mining = switched_on(cfg, "HARD_NEGATIVES.")
    if not mining:
        return
    sets = dict(zip(cfg.DATASETS.TRAIN, train_sets, strict=True))
    for name in cfg.HARD_NEGATIVES.DATASETS or sets:
        if not any(lesions_of(image["annotations"]) for image in sets[name]):
            raise InputError(
                f"DATASETS.TRAIN, {name}: found no lesion, expected some in each data set for hard "
                f"negatives ({mining})"
            )
    images = [image for each in train_sets for image in each]
    names = dict.fromkeys(cfg.HARD_NEGATIVES.DATASETS)
    mined = [image for name in names for image in sets[name]] or images
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
