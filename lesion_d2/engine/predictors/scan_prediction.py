"""From a scan to findings: detections on all slices are linked and measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from ...config.volumetric import is_volumetric
from ...data.loader import DeviceLoader
from ...data.slices.scan_images import ScanImages
from ...findings import Finding, Findings, OperatingPoint, encode_mask, measure_findings
from ...inference import Linker, build_linker
from ...inference.cut_masks import cut_masks
from ...modeling import DetUNet, reuse_features
from ...scans import Scan
from ...utils.prefetch import prefetch
from ..input_errors import is_a
from ..trainer import count_reused
from .algorithm import class_names, describe_algorithm
from .prediction import LesionPredictor
from .volume_prediction import find_in_volume


def predict_scan(
    predictor: LesionPredictor,
    scan: Scan,
    *,
    score_threshold: float | OperatingPoint = 0.0,
    config_file: str | None = None,
    on_slice: Callable[[], None] | None = None,
) -> Findings:
    """Detect the lesions of a scan in 3-D.

    The detections of all slices are linked according to TEST.LINKING, as in the evaluation of
    volumes; for a model of volumes, see :func:`find_in_volume`. A threshold applies to the same
    boxes as in the evaluation. One for false positives per volume applies to linked boxes: a
    finding has to reach it on its best slice, and has all linked slices. Any other applies to boxes
    on slices: boxes below it are dropped before linking.

    If lesions are measured on boxes, the boxes' margin of INPUT.BOX_MARGIN pixels is
    subtracted on each side, in pixels of the image (of the slice for DetUNet). This assumes that
    annotated slices had the size of images, or the pixel size INPUT.CT.PIXEL_SPACING, as in
    DeepLesion, approximately, with this project's configs.

    Args:
        predictor: predictor with the model.
        scan: a scan that is at least as thick as the model's input.
        score_threshold: minimum score of findings; an :class:`OperatingPoint` also contains its
            source. By default only the model's threshold applies.
        config_file: file that the config was read from, stored with the findings.
        on_slice: called after each slice, for example to update a progress bar.

    Raises:
        ValueError: the scan is too thin, or a box or a score is not finite.

    Example:
        >>> scan = read_scan("patient/ct")
        >>> findings = predict_scan(LesionPredictor(cfg), scan, score_threshold=0.5)
        >>> [(lesion.score, lesion.long_diameter.length_mm) for lesion in findings.findings]
    """
    operating_point = score_threshold
    if not isinstance(operating_point, OperatingPoint):
        operating_point = OperatingPoint(float(score_threshold))
    cfg = predictor.cfg
    find = find_in_volume if is_volumetric(cfg) else _find_in_slices
    return Findings(
        **_geometry(scan),
        findings=find(
            predictor,
            scan,
            operating_point=operating_point,
            class_names=class_names(cfg),
            on_slice=on_slice,
        ),
        algorithm=describe_algorithm(cfg, config_file),
        operating_point=operating_point,
        messages=tuple(scan.messages),
    )


def _find_in_slices(
    predictor: LesionPredictor,
    scan: Scan,
    *,
    operating_point: OperatingPoint,
    class_names: Sequence[str],
    on_slice: Callable[[], None] | None,
) -> tuple[Finding, ...]:
    images, detections = _images(predictor, scan), []
    for found in _detect(predictor, images):
        detections.append(found)
        if on_slice is not None:
            on_slice()
    return link_detections(
        scan,
        detections,
        build_linker(predictor.cfg),
        score_threshold=operating_point.score_threshold,
        links_all=operating_point.unit == "volume",
        class_names=class_names,
        box_margin=_box_margin(predictor.cfg, images),
    )


def _geometry(scan: Scan) -> dict[str, object]:
    """The fields of :class:`Findings` with the geometry of a scan."""
    return {
        "scan_name": scan.name,
        "shape": tuple(scan.volume.shape),
        "spacing": tuple(map(float, scan.spacing)),
        "origin": tuple(np.asarray(scan.origin, float).tolist()),
        "direction": tuple(map(tuple, np.asarray(scan.direction, float).tolist())),
    }


def link_detections(
    scan: Scan,
    detections: Sequence["SliceDetections"],
    link: Linker,
    *,
    score_threshold: float,
    links_all: bool,
    class_names: Sequence[str],
    box_margin: tuple[float, float],
) -> tuple[Finding, ...]:
    """Link the detections of a scan's slices to findings, and measure them.

    Args:
        scan: the scan.
        detections: detections on its slices, in any order.
        link: see :func:`~lesion_d2.inference.build_linker`.
        score_threshold: minimum score of findings.
        links_all: also link boxes with lower scores to findings.
        class_names, box_margin: see :func:`~lesion_d2.findings.measure_findings`.
    """
    found = [d for d in sorted(detections, key=lambda d: d.slice_index) if len(d.boxes)]
    if not found:
        return ()
    boxes, scores, classes = (
        np.concatenate([getattr(d, name) for d in found]) for name in ("boxes", "scores", "classes")
    )
    slice_ids = np.repeat([d.slice_index for d in found], [len(d.boxes) for d in found])
    masks = [mask for d in found for mask in (d.masks or [None] * len(d.boxes))]
    if not links_all:
        kept = np.flatnonzero(scores >= score_threshold)
        boxes, scores, classes, slice_ids = (a[kept] for a in (boxes, scores, classes, slice_ids))
        masks = [masks[i] for i in kept.tolist()]
    boxes3d, scores3d, classes3d, tracklets = link(boxes, scores, slice_ids, classes)
    count = int((scores3d >= score_threshold).sum())  # sorted by descending score
    kept = np.flatnonzero((tracklets >= 0) & (tracklets < count))
    size = scan.volume.shape[1:]
    return measure_findings(
        scan,
        boxes[kept],
        scores[kept],
        slice_ids[kept],
        (boxes3d[:count], scores3d[:count], classes3d[:count], tracklets[kept]),
        class_names=class_names,
        masks=[masks[i] and encode_mask(masks[i].whole(*size)) for i in kept.tolist()],
        box_margin=box_margin,
    )


@dataclass(frozen=True, eq=False)
class SliceMask:
    """A mask on a slice, stored as packed bits of the window with its pixels."""

    window: tuple[slice, slice]
    bits: np.ndarray  # packed, per row of the window

    def whole(self, height: int, width: int) -> np.ndarray:
        """Return the mask of the whole slice, (H, W) bool."""
        mask = np.zeros((height, width), dtype=bool)
        part = mask[self.window]
        part[:] = np.unpackbits(self.bits, count=part.size).reshape(part.shape)
        return mask


@dataclass(frozen=True, eq=False)
class SliceDetections:
    """The n detections on one slice of a scan, by descending score."""

    slice_index: int
    boxes: np.ndarray  # n x 4, X1Y1X2Y2 in pixels of the slice
    scores: np.ndarray  # n
    classes: np.ndarray  # n int
    masks: list[SliceMask] | None  # n; None if the model has no masks


def detect_slices(predictor: LesionPredictor, scan: Scan) -> Iterator[SliceDetections]:
    """Detect lesions on every slice of a scan, as in an evaluation of slices from files.

    Images are prepared in a thread, ahead of the model, which processes TEST.IMS_PER_BATCH at a
    time; the features of three-slice images are reused (MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE). In
    addition to the volume, memory holds two batches of images and the channels that the next ones
    share.

    Args:
        predictor: predictor with the model.
        scan: a scan that is at least as thick as the model's input.

    Yields:
        One per slice, in the order of :meth:`ScanImages.order`.

    Raises:
        ValueError: the scan is too thin, or a box or a score is not finite.
    """
    yield from _detect(predictor, _images(predictor, scan))


def _images(predictor: LesionPredictor, scan: Scan) -> ScanImages:
    return ScanImages(predictor.mapper, scan.volume, scan.spacing, scan.name)


def _box_margin(cfg: CfgNode, images: ScanImages) -> tuple[float, float]:
    """Margin of predicted boxes around lesions, in pixels of a slice along x and y."""
    margin = cfg.INPUT.BOX_MARGIN
    if is_a(cfg, DetUNet):  # draws boxes around components, in pixels of the slice
        return margin, margin
    return tuple(margin / scale for scale in images.scale)


def _detect(predictor: LesionPredictor, images: ScanImages) -> Iterator["SliceDetections"]:
    cfg, model = predictor.cfg, predictor.model
    order, size = list(images.order()), cfg.TEST.IMS_PER_BATCH
    groups = (order[first : first + size] for first in range(0, len(order), size))
    batches = prefetch([images[index] for index in group] for group in groups)
    loader = DeviceLoader(batches, cfg.MODEL.DEVICE, cfg.INPUT.CT.HU_WINDOW)
    with reuse_features(model, count_reused(cfg, model)):
        for batch in loader:
            with torch.no_grad():
                outputs = model(batch)
            for sample, output in zip(batch, outputs, strict=True):
                yield _read(output["instances"], sample["slice_index"], images.name)


def _read(instances: Instances, index: int, name: str) -> SliceDetections:
    boxes = instances.pred_boxes.tensor.double().cpu().numpy()
    scores = instances.scores.double().cpu().numpy()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(
            f"{name}, slice {index}: found a box or score that is not a finite number, expected "
            "weights with finite outputs"
        )
    masks = _pack_masks(instances.pred_masks) if instances.has("pred_masks") else None
    return SliceDetections(index, boxes, scores, instances.pred_classes.cpu().numpy(), masks)


def _pack_masks(masks: Tensor) -> list[SliceMask]:
    """Pack masks (n, H, W) bool, copied from the device in one transfer."""
    cut = cut_masks(masks)
    if not cut:
        return []
    pixels = torch.cat([mask.pixels.flatten() for mask in cut]).cpu().numpy()
    parts = np.split(pixels, np.cumsum([mask.pixels.numel() for mask in cut])[:-1])
    return [
        SliceMask(mask.window, np.packbits(part)) for mask, part in zip(cut, parts, strict=True)
    ]
