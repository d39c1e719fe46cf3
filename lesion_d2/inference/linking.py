"""Linking of boxes on slices to 3-D boxes, by config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from detectron2.config import CfgNode

from .slices import batched_merge_slices
from .tracking import batched_track_slices

_METHODS = {"merge": batched_merge_slices, "track": batched_track_slices}
#: Values of TEST.LINKING.
LINKINGS = tuple(_METHODS)


@dataclass(frozen=True)
class Linker:
    """A way to link the boxes of a volume's slices, with its parameters.

    Example::

        link = Linker("merge", {"iou_threshold": 0.1})
        boxes3d, scores, classes, tracklets = link(boxes, scores, slice_ids, classes)

    Raises:
        ValueError: the name is not one of :data:`LINKINGS`.
    """

    name: str
    #: Keyword arguments of :func:`~lesion_d2.inference.batched_merge_slices` ("merge") or
    #: :func:`~lesion_d2.inference.batched_track_slices` ("track").
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in LINKINGS:
            raise ValueError(
                f"TEST.LINKING: found {self.name!r}, expected one of {', '.join(LINKINGS)}"
            )

    def __call__(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        slice_ids: np.ndarray | Sequence[int],
        classes: np.ndarray | Sequence[int],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Link boxes; arguments, result (with tracklets) and errors are those of the function."""
        method = _METHODS[self.name]
        return method(boxes, scores, slice_ids, classes, **self.parameters, return_tracklets=True)


def build_linker(cfg: CfgNode) -> Linker:
    """Build the linker of TEST.LINKING.

    Raises:
        ValueError: as :class:`Linker`.
    """
    tracking = cfg.TEST.TRACKING
    parameters = {
        "merge": {"iou_threshold": cfg.TEST.MERGE_IOU_THRESH},
        "track": {"iou_threshold": tracking.IOU_THRESH, "max_gap": tracking.MAX_GAP},
    }
    return Linker(cfg.TEST.LINKING, parameters.get(cfg.TEST.LINKING, {}))
