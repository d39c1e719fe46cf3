"""From a scan to findings, with a model of volumes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.structures import Instances

from ...data.volumetric import array_record
from ...evaluation.volumetric.runs import boxes_of_run
from ...findings import Finding, OperatingPoint, encode_mask, measure_findings
from ...inference.cut_masks import CutMask
from ...scans import Scan
from .prediction import LesionPredictor


def find_in_volume(
    predictor: LesionPredictor,
    scan: Scan,
    *,
    operating_point: OperatingPoint,
    class_names: Sequence[str],
    on_slice: Callable[[], None] | None = None,
) -> tuple[Finding, ...]:
    """Detect the lesions of a scan with a model of volumes, and measure them.

    A finding is on the slices whose centers are inside its box, as in the evaluation, and on those
    where its mask has pixels. On each it has the in-plane box and the finding's score.

    Args:
        predictor: predictor with the model.
        scan: a scan of any size.
        operating_point: gives the minimum score of findings.
        class_names: names of the model's classes.
        on_slice: called for each slice of the scan after the model has processed it.

    Raises:
        ValueError: a box or a score is not finite.
    """
    sample = predictor.mapper(array_record(scan.volume, scan.spacing, scan.name))
    if on_slice is not None:
        sample["on_slice"] = on_slice
    with torch.no_grad():
        instances = predictor.model([sample])[0]["instances"].to("cpu")
    instances = instances[: int((instances.scores >= operating_point.score_threshold).sum())]
    margin = predictor.cfg.INPUT.BOX_MARGIN
    _, *ratios = sample["reader"].ratios
    return measure_instances(
        scan,
        instances,
        class_names=class_names,
        box_margin=tuple(margin * ratio for ratio in ratios[::-1]),
    )


def measure_instances(
    scan: Scan,
    instances: Instances,
    *,
    class_names: Sequence[str],
    box_margin: tuple[float, float],
) -> tuple[Finding, ...]:
    """Measure 3-D detections slice by slice.

    Args:
        scan: the scan.
        instances: detections on the CPU, by descending score; ``pred_boxes`` are :class:`Boxes3D`
            in voxels of the scan, ``pred_masks``, if present, a list of :class:`CutMask`.
        class_names, box_margin: see :func:`~lesion_d2.findings.measure_findings`.
    """
    boxes = instances.pred_boxes.tensor.double().numpy()
    scores, classes = instances.scores.double().numpy(), instances.pred_classes.numpy()
    found = boxes_of_run(boxes, scores, classes, 0, len(scan.volume))
    slices = [
        dict.fromkeys(found.slice_boxes[found.tracklets == i, 2].astype(int).tolist())
        for i in range(len(boxes))
    ]
    if instances.has("pred_masks"):
        size = scan.volume.shape[1:]
        for own, mask in zip(slices, instances.pred_masks, strict=True):
            own.update(_masks_of_slices(mask, size))
    slices = [dict(sorted(own.items())) for own in slices]
    owners = np.repeat(np.arange(len(boxes)), [len(own) for own in slices])
    boxes3d = boxes.copy()
    for box, own in zip(boxes3d, slices, strict=True):
        box[[2, 5]] = min(own), max(own)
    return measure_findings(
        scan,
        boxes[owners][:, [0, 1, 3, 4]],
        scores[owners],
        [number for own in slices for number in own],
        (boxes3d, scores, classes, owners),
        class_names=class_names,
        masks=[mask for own in slices for mask in own.values()],
        box_margin=box_margin,
        of_volumes=True,
    )


def _masks_of_slices(mask: CutMask, size: Sequence[int]) -> dict[int, dict]:
    """Slice number -> COCO's RLE, for slices with pixels of the mask."""
    first, rows, columns = mask.window[0].start, *mask.window[1:]
    masks = {}
    for index, pixels in enumerate(mask.pixels.cpu().numpy()):
        if pixels.any():
            whole = np.zeros(size, dtype=bool)
            whole[rows, columns] = pixels
            masks[first + index] = encode_mask(whole)
    return masks
