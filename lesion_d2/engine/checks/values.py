"""Valid values of single config keys, as a table."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import filter as matching
from typing import Any

from detectron2.config import CfgNode

from ...evaluation import AP_METHODS
from ...inference import LINKINGS
from ...inference.ensemble import CONSOLIDATIONS
from ...scans.limits import check_size
from ...structures.slice_geometry import EXPECTED_SPACING, is_spacing
from ..checkpoint_files import FORMATS
from ..input_errors import InputError
from ..validation_loss import VALIDATION_LOSS


def _are_sides(value: Sequence) -> bool:
    if not (len(value) == 3 and all(isinstance(side, int) and side > 0 for side in value)):
        return False
    try:
        check_size("", tuple(value))
    except ValueError:
        return False
    return True


#: Patterns of keys and what is expected of each -> whether a value is so.
RULES: Mapping[str, Callable[[Any], bool]] = {
    "INPUT.BOX_MARGIN MODEL.RETINANET.ATSS_CANDIDATES MODEL.RETINANET.FOCAL_LOSS_GAMMA "
    "MODEL.SEG_HEAD.FOCAL_GAMMA MODEL.*.SEG_LOSS_WEIGHT MODEL.*.SHEM_* MODEL.UNET_FPN.C0_CHANNELS "
    "MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE MODEL.MEAN_TEACHER.START_ITER TEST.ENSEMBLE.TILE_SIZE "
    "TEST.TRACKING.MAX_GAP TEST.NUM_BOOTSTRAP TEST.EVAL_PERIOD TEST.LOSS_PERIOD "
    "TEST.NUM_BEST_CHECKPOINTS DATASETS.MISSING_ANNOTATION_SEED HARD_NEGATIVES.PERIOD "
    "HARD_NEGATIVES.START_ITER SOLVER.*_PATIENCE SOLVER.CHECKPOINT_MAX_TO_KEEP"
    ": 0 or more": lambda v: v >= 0,
    "MODEL.DET_UNET.MAX_COMPONENTS MODEL.RFCN_3DCE.NUM_SCORE_MAPS HARD_NEGATIVES.MAX_PER_IMAGE "
    "SOLVER.CHECKPOINT_PERIOD: 1 or more": lambda v: v >= 1,
    "MODEL.RFCN_3DCE.*_TEMPERATURE: above 0": lambda v: v > 0,
    "MODEL.SEG_HEAD.FOCAL_ALPHA MODEL.*.NMS_THRESH MODEL.*.NMS_THRESH_TEST "
    "MODEL.*.POSITIVE_FRACTION HARD_NEGATIVES.POSITIVE_IOU_THRESH "
    "HARD_NEGATIVES.MIN_SCORE: 0 to 1": lambda v: 0 <= v <= 1,
    "TEST.ENSEMBLE.TILE_OVERLAP TEST.*IOU_THRESH: 0 to below 1": lambda v: 0 <= v < 1,
    "MODEL.*.SCORE_THRESH_TEST: at most 1": lambda v: v <= 1,
    "SOLVER.PLATEAU_FACTOR: a factor between 0 and 1": lambda v: 0 < v < 1,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA: 0 to 1, or -1 for no weights": lambda v: (
        v == -1 or 0 <= v <= 1
    ),
    "MODEL.*.IOU_THRESHOLDS: rising IoUs above 0, at most 1": lambda v: (
        list(v) == sorted(v) and v[0] > 0 and v[-1] <= 1
    ),
    "DATALOADER.EMPTY_IMAGE_RATIO: below 0 (as they are) or a share below 1": lambda v: v < 1,
    "SEED: below 2^32, as in NumPy; below 0 for a random seed": lambda v: v < 2**32,
    "SOLVER.IMS_PER_BATCH TEST.IMS_PER_BATCH: 1 to 2^16": lambda v: 1 <= v <= 2**16,
    "SOLVER.MAX_ITER: at least 0, below 2^31": lambda v: 0 <= v < 2**31,
    "SOLVER.STEPS: rising numbers of iterations": lambda v: (
        list(v) == sorted(v) and all(0 <= step < math.inf for step in v)
    ),
    "SOLVER.BASE_LR SOLVER.BASE_LR_END SOLVER.BIAS_LR_FACTOR SOLVER.GAMMA SOLVER.MOMENTUM "
    "SOLVER.REFERENCE_WORLD_SIZE SOLVER.WARMUP_FACTOR SOLVER.WARMUP_ITERS SOLVER.WEIGHT_DECAY "
    "SOLVER.WEIGHT_DECAY_NORM: a finite number, at least 0": lambda v: 0 <= v < math.inf,
    "SOLVER.WEIGHT_DECAY_BIAS: None or a finite number, at least 0": lambda v: (
        v is None or 0 <= v < math.inf
    ),
    f"SOLVER.PATIENCE_METRIC: '' (TEST.BEST_METRIC) or {VALIDATION_LOSS!r}": lambda v: (
        v in ("", VALIDATION_LOSS)
    ),
    f"SOLVER.CHECKPOINT_FORMAT: {' or '.join(FORMATS)}": lambda v: v in FORMATS,
    "DATALOADER.SAMPLER_TRAIN: 'TrainingSampler', the only one here": lambda v: (
        v == "TrainingSampler"
    ),
    f"TEST.ENSEMBLE.CONSOLIDATION: one of {', '.join(CONSOLIDATIONS)}": lambda v: (
        v in CONSOLIDATIONS
    ),
    f"TEST.LINKING: one of {', '.join(LINKINGS)}": lambda v: v in LINKINGS,
    f"TEST.VOLUME_AP: one of {', '.join(AP_METHODS)}": lambda v: v in AP_METHODS,
    "TEST.VOLUME_FROC_RATES: finite numbers above 0, at least one": lambda v: (
        len(v) > 0 and all(0 < rate < math.inf for rate in v)
    ),
    "INPUT.VOLUME.PATCH_SIZE TEST.VOLUME_TILE_SIZE: depth, height and width in whole voxels above "
    "0, no more than a scan has, or (0, 0, 0)": lambda v: tuple(v) == (0, 0, 0) or _are_sides(v),
    "INPUT.VOLUME.SPACING: x, y and z in mm, 0 where an axis stays as it is or "
    f"{EXPECTED_SPACING}": lambda v: len(v) == 3 and all(s == 0 or is_spacing(s) for s in v),
}
# Beginnings of keys that only training uses.
_OF_TRAINING = (
    *("SOLVER.", "HARD_NEGATIVES.", "DATALOADER.", "DATASETS.", "MODEL.MEAN_TEACHER."),
    *("TEST.EVAL_", "TEST.LOSS_", "TEST.NUM_BEST_"),
)


def check_values(cfg: CfgNode, *, pattern: str = "*", of_training: bool = True) -> None:
    """Check the values of single keys.

    Args:
        cfg: a config.
        pattern: of the keys to check.
        of_training: whether to check those that only training uses.

    Raises:
        InputError: a value is invalid; the message names the first such key.
    """
    values = dict(flat(cfg))
    known = [
        key for key in matching(values, pattern) if of_training or not key.startswith(_OF_TRAINING)
    ]
    for rule, is_valid in RULES.items():
        patterns, _, expected = rule.partition(": ")
        for key in (key for one in patterns.split() for key in matching(known, one)):
            try:
                is_met = is_valid(values[key])
            except (IndexError, TypeError):  # an empty list, or text instead of a number
                is_met = False
            if not is_met:
                raise InputError(f"{key}: found {values[key]!r}, expected {expected}")


def flat(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a config, such as ``"MODEL.WEIGHTS"``, and their values."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
