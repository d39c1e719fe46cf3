"""Hard negative example mining (Tang et al., section 2.2).

:class:`HardNegativeMiningHook` runs :class:`HardNegativeMiner` during training;
:func:`select_hard_negatives` is the rule.
"""

from .hook import HardNegativeMiningHook
from .miner import HardNegativeMiner, read_lesion_boxes, read_region_boxes
from .results import FILE_NAME, MinedSet, write_mined_set
from .selection import best_mask_ious, select_hard_negatives

__all__ = [
    "FILE_NAME",
    "HardNegativeMiner",
    "HardNegativeMiningHook",
    "MinedSet",
    "best_mask_ious",
    "read_lesion_boxes",
    "read_region_boxes",
    "select_hard_negatives",
    "write_mined_set",
]
