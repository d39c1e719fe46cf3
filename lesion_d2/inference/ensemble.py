"""Ensembles over models and views of an image (Jaeger et al., sections 3.2, 4.2)."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from ..layers import batched_nms
from .box_clustering import find_clusters
from .cut_masks import CutMask, vote
from .tiles import mirrors_of
from .views import ViewDetections, detect_in_views

CONSOLIDATIONS = ("wbc", "nms")


class Ensemble(nn.Module):
    """Ensemble over models x tiles x mirrored views, for inference.

    Boxes and masks of all views are mapped to the pixels of the original slice and merged there by
    weighted box clustering (Jaeger et al., section 3.2) or NMS.

    Tiles are not resized: a model that uses lengths in pixels of the slice, as ``RetinaUNet`` does
    for its calibration, takes pixels of its input for them.

    Args:
        models: Detectron2 models with the same classes.
        mirrors: whether to use four views of each tile: original and mirrored along x, y and both,
            as one batch of four images.
        tile_size: side of the tiles that larger images are cut into, in pixels of the input; 0 for
            no tiles. An image that fits into a tile is not cut.
        tile_overlap: minimum overlap of neighboring tiles, as a fraction of their side.
        iou_threshold: see :func:`consolidate`; by default 1e-5 with tiles, the authors' threshold,
            and 0.2 without. The box of a tile that contains only part of an object has a small IoU
            with the object's box, and 0.2 would keep both.
        consolidation, max_detections: see :func:`consolidate`.

    Raises:
        ValueError: no model, ``consolidation`` is neither "wbc" nor "nms", or a number is out of
            range.

    Example:
        >>> ensemble = Ensemble([build_model(cfg)], tile_size=512)
        >>> instances = ensemble([{"image": image}])[0]["instances"]
    """

    #: Number of image axes of the models.
    num_axes = 2

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        mirrors: bool = True,
        tile_size: int | tuple[int, ...] = 0,
        tile_overlap: float = 0.5,
        consolidation: str = "wbc",
        iou_threshold: float | None = None,
        max_detections: int = 100,
    ):
        super().__init__()
        if not models:
            raise ValueError("models: found none, expected one or more")
        _check_consolidation(consolidation)
        if iou_threshold is None:
            iou_threshold = 1e-5 if np.max(tile_size) > 0 else 0.2
        for name, value, is_usable, expected in (
            ("tile_size", tile_size, np.min(tile_size) >= 0, "0 or more pixels"),
            ("tile_overlap", tile_overlap, 0 <= tile_overlap < 1, "a fraction in [0, 1)"),
            ("iou_threshold", iou_threshold, 0 <= iou_threshold < 1, "an IoU in [0, 1)"),
            ("max_detections", max_detections, max_detections >= 1, "1 or more"),
        ):
            if not is_usable:
                raise ValueError(f"{name}: found {value}, expected {expected}")
        self.models = nn.ModuleList(models)
        self.view_options = {
            "mirrors": mirrors,
            "tile_size": tile_size,
            "tile_overlap": tile_overlap,
        }
        self.consolidation = consolidation
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.eval()

    @property
    def num_mirrors(self) -> int:
        """Number of mirrored views per tile."""
        return len(mirrors_of(self.num_axes, mirrors=self.view_options["mirrors"]))

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's model interface at inference.

        Args:
            batched_inputs: dicts with ``image`` (C, H, W), and optionally ``height`` and ``width``
                of the output, and ``crop``, the part of it that ``image`` shows.

        Returns:
            ``[{"instances": ...}]``, see :func:`consolidate`.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError("Ensemble: found training mode, expected evaluation mode")
        return [
            {
                "instances": consolidate(
                    self.views(input_dict),
                    self.consolidation,
                    iou_threshold=self.iou_threshold,
                    max_detections=self.max_detections,
                )
            }
            for input_dict in batched_inputs
        ]

    @torch.no_grad()
    def views(self, input_dict: dict) -> ViewDetections:
        """Detections of all models in all views of one image, before merging."""
        return detect_in_views(self.models, input_dict, **self.view_options)


def consolidate(
    detections: ViewDetections,
    method: str = "wbc",
    *,
    iou_threshold: float = 0.2,
    max_detections: int = 100,
) -> Instances:
    """Merge the detections of several views.

    The mask of a cluster, which the paper does not specify, has the pixels where the sum of its
    members' masks, with the weights of their coordinates, exceeds 0.5.

    Args:
        detections: detections of one image or volume.
        method: "wbc", weighted box clustering, or "nms", which keeps the best box and its mask.
        iou_threshold: a box belongs to a cluster if its IoU with the best box exceeds this.
        max_detections: maximum number of detections, by score.

    Returns:
        Instances by descending score with ``pred_boxes``, ``scores``, ``pred_classes`` and, if the
        detections have masks, ``pred_masks``: (n, H, W) bool for images, n :class:`CutMask` for
        volumes.

    Raises:
        ValueError: unknown ``method``, or a box or score that is not finite.
    """
    _check_consolidation(method)
    instances = detections.instances
    for name, array in zip(("boxes", "scores"), _arrays(instances)[:2], strict=True):
        if not array.isfinite().all():
            raise ValueError(
                f"{name} of {len(instances)} detections: found a number that is not finite, "
                "expected finite numbers"
            )
    if method == "nms":
        boxes, scores, classes = _arrays(instances)
        kept = batched_nms(boxes, scores.float(), classes, iou_threshold)[:max_detections]
        joined, members = instances[kept], torch.full((len(instances),), -1)
        members[kept.cpu()] = torch.arange(len(kept))
        return _with_masks(joined, detections.masks, members, [1.0] * len(instances))
    clusters = find_clusters(
        *(array.double().cpu().numpy() for array in _arrays(instances)[:2]),
        instances.pred_classes.cpu().numpy(),
        iou_threshold=iou_threshold,
        view_ids=detections.view_ids.cpu().numpy(),
        num_views=detections.num_views.cpu().numpy(),
        center_weights=detections.center_weights.double().cpu().numpy(),
    )
    boxes, scores, classes = (
        torch.as_tensor(array[:max_detections]).to(like)
        for array, like in zip(
            (clusters.boxes, clusters.scores, clusters.classes), _arrays(instances), strict=True
        )
    )
    joined = Instances(instances.image_size, scores=scores, pred_classes=classes)
    joined.pred_boxes = type(instances.pred_boxes)(boxes)
    members = torch.as_tensor(clusters.members)
    return _with_masks(joined, detections.masks, members, clusters.weights.tolist())


def _arrays(instances: Instances) -> tuple[Tensor, Tensor, Tensor]:
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes


def _with_masks(
    joined: Instances, masks: list[CutMask] | None, members: Tensor, weights: list[float]
) -> Instances:
    """Add the weighted majority of each cluster's masks, see :func:`consolidate`."""
    if masks is None:
        return joined
    votes = []
    for cluster in range(len(joined)):
        own = torch.nonzero(members == cluster)[:, 0].tolist()
        votes.append(vote([masks[i] for i in own], [weights[i] for i in own]))
    if len(joined.image_size) == 3:  # a few full-size masks would fill the memory
        joined.pred_masks = votes
        return joined
    joined.pred_masks = torch.zeros(
        len(joined), *joined.image_size, dtype=torch.bool, device=joined.scores.device
    )
    for mask, voted in zip(joined.pred_masks, votes, strict=True):
        mask[voted.window] = voted.pixels
    return joined


def _check_consolidation(method: str) -> None:
    if method not in CONSOLIDATIONS:
        raise ValueError(f"consolidation: found {method!r}, expected 'wbc' or 'nms'")
