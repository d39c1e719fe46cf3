"""What makes boxes of volumes from those of their slices, by config."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode

from .slices import batched_merge_slices
from .tracking import batched_track_slices

#: Values of TEST.LINKING.
LINKINGS = ("merge", "track")


def build_linker(cfg: CfgNode) -> Callable:
    """The function that TEST.LINKING names, with its settings.

    Returns:
        ``link(boxes, scores, slice_ids, classes)``, see
        :func:`~lesion_d2.inference.batched_merge_slices` and
        :func:`~lesion_d2.inference.batched_track_slices`.

    Raises:
        ValueError: TEST.LINKING is neither.
    """
    if cfg.TEST.LINKING == "merge":
        return partial(batched_merge_slices, iou_threshold=cfg.TEST.MERGE_IOU_THRESH)
    if cfg.TEST.LINKING == "track":
        tracking = cfg.TEST.TRACKING
        return partial(
            batched_track_slices, iou_threshold=tracking.IOU_THRESH, max_gap=tracking.MAX_GAP
        )
    raise ValueError(
        f"TEST.LINKING: found {cfg.TEST.LINKING!r}, expected one of {', '.join(LINKINGS)}"
    )
