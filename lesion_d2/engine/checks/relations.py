"""What config keys require of other keys, as tables."""

from collections.abc import Callable, Iterable, Mapping
from numbers import Real

from detectron2.config import CfgNode
from detectron2.modeling import (
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
)
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.registry import Registry

from ... import modeling
from ...config import trains_on_masks
from ...config.volumetric import is_volumetric
from ...modeling import DetUNet, LesionRCNN, LesionRetinaNet, RetinaUNet, VolumetricDetector
from ...structures.ignore_regions import regions_of
from ..input_errors import InputError, is_a, switched_on, value_of
from ..validation_loss import VALIDATION_LOSS

Condition = Callable[[CfgNode, str], bool]
#: Keys that are on, a key, and what is expected of it -> whether a config has this for the key. A
#: key is on if it is not 0, False or empty, or if it is the value after "is"; a prefix, if its
#: PERIOD or EPOCHS is above 0. "or" precedes alternatives, "and" another key that must be on.
Relations = Mapping[str, Condition]


def _is_on(cfg: CfgNode, key: str) -> bool:
    return _why(cfg, key) != ""


def _is_off(cfg: CfgNode, key: str) -> bool:
    return not _is_on(cfg, key)


def _is(*classes: type) -> Condition:
    return lambda cfg, _: is_a(cfg, *classes)


def _has(registry: Registry, kind: type, *, expected: bool = True) -> Condition:
    """Whether a model, if it is a two-stage one, has a part of a kind, or not."""

    def is_met(cfg: CfgNode, key: str) -> bool:
        name = value_of(cfg, key)
        found = name in registry and issubclass(registry.get(name), kind)
        return found == expected or not is_a(cfg, GeneralizedRCNN)

    return is_met


def _detects_low_scores(kind: type) -> Condition:
    return lambda cfg, key: (
        not is_a(cfg, kind)
        or cfg.MODEL.MEAN_TEACHER.PSEUDO_LABELS == "none"
        or value_of(cfg, key) <= cfg.MODEL.MEAN_TEACHER.SCORE_THRESH
    )


def _has_other_test_sets(cfg: CfgNode, _: str) -> bool:
    return set(cfg.DATASETS.TEST).isdisjoint(cfg.DATASETS.TRAIN)


_has_lesion_rpn = _has(PROPOSAL_GENERATOR_REGISTRY, modeling.LesionRPN)
_has_uldor_heads = _has(ROI_HEADS_REGISTRY, modeling.ULDorROIHeads)
#: Keys that TEST.BEST_METRIC, or SOLVER.PATIENCE_METRIC, is for.
BY_METRIC = ("SOLVER.PLATEAU_PATIENCE", "SOLVER.EARLY_STOP_PATIENCE", "TEST.NUM_BEST_CHECKPOINTS")
_BY_METRIC = " or ".join(BY_METRIC)
_PSEUDO_LABELS = "MODEL.MEAN_TEACHER.ENABLED and MODEL.MEAN_TEACHER.SCORE_THRESH"
_IGNORE = "MODEL.MEAN_TEACHER.ENABLED and MODEL.MEAN_TEACHER.PSEUDO_LABELS is ignore"
_PATCHES = "INPUT.PATCH.SIZE or INPUT.VOLUME.PATCH_SIZE"

#: Of all runs.
RELATIONS: Relations = {
    "MODEL.META_ARCHITECTURE -> INPUT.VOLUME.PATCH_SIZE: depth, height and width of patches for a "
    "model of volumes": lambda cfg, _: is_volumetric(cfg) or not is_a(cfg, VolumetricDetector),
    "INPUT.VOLUME.PATCH_SIZE -> MODEL.META_ARCHITECTURE: a model of volumes such as "
    "'RetinaUNet3D'": _is(VolumetricDetector),
    "INPUT.VOLUME.PATCH_SIZE -> MODEL.PIXEL_MEAN: 1 number, as volumes have 1 channel": (
        lambda cfg, key: len(value_of(cfg, key)) == 1
    ),
    "INPUT.VOLUME.PATCH_SIZE -> INPUT.CT.HU_WINDOW: low < high, HU of 16 bits: -32768 to 32767": (
        lambda cfg, key: len(v := value_of(cfg, key)) == 2 and -(2**15) <= v[0] < v[1] < 2**15
    ),
    "INPUT.CT.CROP_TO_BODY -> MODEL.META_ARCHITECTURE: a DetUNet, LesionRCNN or RetinaUNet, which "
    "bring boxes back to the slice": _is(DetUNet, LesionRCNN, RetinaUNet),
    "MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES is False or MODEL.RETINANET.ATSS_CANDIDATES -> "
    "MODEL.META_ARCHITECTURE: a LesionRetinaNet or RetinaUNet": _is(LesionRetinaNet),
    "MODEL.RETINANET.ATSS_CENTER_INSIDE -> MODEL.RETINANET.ATSS_CANDIDATES: 1 or more": _is_on,
    "MODEL.RETINA_UNET.CALIBRATION or MODEL.RETINA_UNET.SHEM_NEGATIVES -> MODEL.META_ARCHITECTURE: "
    "a RetinaUNet": _is(RetinaUNet),
    "MODEL.RETINA_UNET.SHEM_NEGATIVES -> MODEL.RETINA_UNET.SHEM_POOL: 1 or more": _is_on,
    "MODEL.LESION_RCNN.SEG_LOSS_WEIGHT -> MODEL.META_ARCHITECTURE: a LesionRCNN": _is(LesionRCNN),
    "MODEL.LESION_RCNN.SHEM_POOL -> MODEL.PROPOSAL_GENERATOR.NAME: 'LesionRPN'": _has_lesion_rpn,
    "MODEL.LESION_RCNN.SHEM_POOL -> MODEL.ROI_HEADS.NAME: 'LesionROIHeads'": (
        _has(ROI_HEADS_REGISTRY, modeling.LesionROIHeads)
    ),
    "MODEL.ULDOR.COUNT_FALSE_POSITIVES -> MODEL.META_ARCHITECTURE: a two-stage model with "
    "MODEL.ROI_HEADS": _is(GeneralizedRCNN),
    "MODEL.ULDOR.COUNT_FALSE_POSITIVES -> MODEL.ROI_HEADS.NAME: 'ULDorROIHeads'": _has_uldor_heads,
    "TEST.ENSEMBLE.CHECKPOINTS -> TEST.ENSEMBLE.ENABLED: True": _is_on,
}
_REGIONS: Relations = {
    "MODEL.META_ARCHITECTURE: a LesionRetinaNet, RetinaUNet, DetUNet or LesionRCNN": (
        _is(LesionRetinaNet, DetUNet, GeneralizedRCNN)
    ),
    "MODEL.PROPOSAL_GENERATOR.NAME: 'LesionRPN'": _has_lesion_rpn,
    "MODEL.ROI_HEADS.NAME: 'LesionROIHeads' or others of this project": (
        _has(ROI_HEADS_REGISTRY, modeling.RegionROIHeads)
    ),
}
#: Of trainings.
TRAINING_RELATIONS: Relations = {
    "DATALOADER.EMPTY_IMAGE_RATIO -> DATALOADER.FILTER_EMPTY_ANNOTATIONS: False, which keeps "
    "images without a lesion": _is_off,
    "DATASETS.MISSING_ANNOTATION_RATIO -> DATASETS.TEST: none of DATASETS.TRAIN, which have hidden "
    "annotations": _has_other_test_sets,
    "DATASETS.EXCLUDED_VOLUMES -> DATASETS.TEST: none of DATASETS.TRAIN, which have excluded "
    "volumes": _has_other_test_sets,
    f"TEST.LOSS_ or {_BY_METRIC} -> DATASETS.TEST: a data set to evaluate": _is_on,
    f"{_BY_METRIC} -> TEST.EVAL_PERIOD: it or TEST.EVAL_EPOCHS above 0 for TEST.BEST_METRIC": (
        lambda cfg, _: cfg.SOLVER.PATIENCE_METRIC != "" or _is_on(cfg, "TEST.EVAL_")
    ),
    f"{_BY_METRIC} -> TEST.LOSS_PERIOD: it or TEST.LOSS_EPOCHS above 0 for the validation_loss": (
        lambda cfg, _: cfg.SOLVER.PATIENCE_METRIC != VALIDATION_LOSS or _is_on(cfg, "TEST.LOSS_")
    ),
    "SOLVER.CLIP_GRADIENTS.ENABLED -> SOLVER.CLIP_GRADIENTS.CLIP_VALUE: above 0": _is_on,
    "SOLVER.CLIP_GRADIENTS.ENABLED -> SOLVER.CLIP_GRADIENTS.NORM_TYPE: above 0": _is_on,
    "MODEL.META_ARCHITECTURE -> MODEL.MASK_ON: True": (
        lambda cfg, _: cfg.MODEL.MASK_ON or not is_a(cfg, DetUNet)
    ),
    "MODEL.RETINA_UNET.SEG_LOSS_WEIGHT -> MODEL.MASK_ON: True": (
        lambda cfg, _: cfg.MODEL.MASK_ON or not is_a(cfg, RetinaUNet)
    ),
    "MODEL.RETINA_UNET.CALIBRATION -> MODEL.RETINA_UNET.SEG_LOSS_WEIGHT: above 0": _is_on,
    "MODEL.MEAN_TEACHER.ENABLED -> TEST.PRECISE_BN.ENABLED: False, as the teacher averages "
    "statistics": _is_off,
    f"{_PSEUDO_LABELS} -> MODEL.RETINANET.SCORE_THRESH_TEST: at most the lowest score of "
    "pseudo-labels": _detects_low_scores(RetinaNet),
    f"{_PSEUDO_LABELS} -> MODEL.ROI_HEADS.SCORE_THRESH_TEST: at most the lowest score of "
    "pseudo-labels": _detects_low_scores(GeneralizedRCNN),
    f"{_IGNORE} -> MODEL.META_ARCHITECTURE: a RetinaNet, DetUNet or GeneralizedRCNN": (
        _is(RetinaNet, DetUNet, GeneralizedRCNN)
    ),
    f"{_IGNORE} -> MODEL.PROPOSAL_GENERATOR.NAME: 'LesionRPN'": _has_lesion_rpn,
    f"{_IGNORE} -> MODEL.ROI_HEADS.NAME: heads without a cascade": (
        _has(ROI_HEADS_REGISTRY, CascadeROIHeads, expected=False)
    ),
    "HARD_NEGATIVES. -> MODEL.META_ARCHITECTURE: a two-stage model with MODEL.ROI_HEADS": (
        _is(GeneralizedRCNN)
    ),
    "HARD_NEGATIVES. -> MODEL.ROI_HEADS.NAME: 'ULDorROIHeads'": _has_uldor_heads,
    "HARD_NEGATIVES. -> MODEL.MASK_ON: True for MODEL.LESION_RCNN.SEG_LOSS_WEIGHT": (
        lambda cfg, _: cfg.MODEL.MASK_ON or not trains_on_masks(cfg)
    ),
    "HARD_NEGATIVES. -> MODEL.SEG_HEAD.CLASS_AGNOSTIC: False, as hard negatives are no lesions": (
        lambda cfg, key: cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT <= 0 or _is_off(cfg, key)
    ),
    "HARD_NEGATIVES. -> HARD_NEGATIVES.DATASETS: names of DATASETS.TRAIN": (
        lambda cfg, key: set(value_of(cfg, key)) <= set(cfg.DATASETS.TRAIN)
    ),
    "HARD_NEGATIVES. -> MODEL.ULDOR.COUNT_FALSE_POSITIVES: False but for --eval-only": _is_off,
    **{f"{_PATCHES} -> {rule}, which ignore cut lesions": _REGIONS[rule] for rule in _REGIONS},
}


def check_relations(cfg: CfgNode, relations: Relations) -> None:
    """Check what keys that are on require of others.

    Raises:
        InputError: a value does not fit; the message names the first such key, and the key that
            requires another value.
    """
    for relation, is_met in relations.items():
        keys, _, rule = relation.partition(" -> ")
        for whys in ([_why(cfg, k) for k in each.split(" and ")] for each in keys.split(" or ")):
            if all(whys):
                _require(cfg, rule, is_met, whys[-1])


def check_regions(cfg: CfgNode, images: Iterable[Mapping]) -> None:
    """Check that the model ignores the regions of DATASETS.TRAIN that are to be ignored.

    Raises:
        InputError: a part of the model treats such regions as background.
    """
    first = next((i["image_id"] for i in images if regions_of(i["annotations"])), None)
    for rule, is_met in _REGIONS.items() if first is not None else ():
        _require(cfg, rule, is_met, f"DATASETS.TRAIN has regions, iscrowd 1, the first: {first}")


def _require(cfg: CfgNode, rule: str, is_met: Condition, why: str) -> None:
    key, _, expected = rule.partition(": ")
    if not is_met(cfg, key):
        raise InputError(f"{key}: found {value_of(cfg, key)!r}, expected {expected} ({why})")


def _why(cfg: CfgNode, key: str) -> str:
    """Describe a key that is on; "" if it is off."""
    if key.endswith((".", "_")):
        return switched_on(cfg, key)
    key, _, wanted = key.partition(" is ")
    value = value_of(cfg, key)
    if wanted:
        is_on = str(value) == wanted
    elif isinstance(value, Real):
        is_on = value > 0
    else:
        is_on = bool(value) if isinstance(value, str) else any(value)
    return f"{key} is {value}" if is_on else ""
