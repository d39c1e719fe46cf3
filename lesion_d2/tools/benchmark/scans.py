"""A scan from its files to its findings, against the time of the model alone."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lesion_d2.data.loader import DeviceLoader
from lesion_d2.data.scan_images import ScanImages
from lesion_d2.engine import LesionPredictor, predict_scan
from lesion_d2.engine.trainer import count_reused
from lesion_d2.findings import write_findings
from lesion_d2.modeling import reuse_features
from lesion_d2.scans import Scan, read_scan
from lesion_d2.scans.writing import write_dicom

import numpy as np
import torch
from detectron2.config import CfgNode

from . import configs
from .configs import load_config
from .tao import one_thread
from .timing import Row

_SPACING = (0.7, 0.7, 1.0)
_DETECTIONS = 20  # a slice
_FINDINGS = 50  # a scan


def measure_scans(
    device: str, folder: Path, *, num_slices: int = 300, size: int = 512
) -> Iterator[Row]:
    """Reading a DICOM series, predicting and writing findings, against the model on its slices.

    The untrained model has as many detections as TEST.DETECTIONS_PER_IMAGE lets it have, with
    masks. On a CPU it is processor time, with one thread of torch beside the one that makes the
    images, whose time counts too.
    """
    file = configs.GPU_CONFIG if device == "cuda" else configs.CPU_CONFIG
    clock = time.process_time if device == "cpu" else time.perf_counter
    with one_thread() if device == "cpu" else contextlib.nullcontext():
        predictor = LesionPredictor(_with_detections(load_config(file, device)))
        series = folder / "series"
        write_dicom(series, _made_up_volume(num_slices, size), _SPACING)
        scan = read_scan(series)
        # A first pass over some slices: kernels are chosen.
        time_model(predictor, scan, clock, list(range(min(5, num_slices))))
        alone, scores = time_model(predictor, scan, clock)
        del scan
        threshold = float(np.sort(scores)[-_FINDINGS]) if len(scores) > _FINDINGS else 0.0
        start = clock()
        findings = predict_scan(predictor, read_scan(series), score_threshold=threshold)
        write_findings(folder / "findings.json", findings)
        whole = clock() - start
    note = (
        f"{whole:.1f} against {alone:.1f} s, {num_slices} slices of {size} x {size} as DICOM, "
        f"{len(scores)} detections with masks, {len(findings.findings)} findings, {file.stem}"
    )
    threads = ", one thread" if device == "cpu" else ""
    yield Row(
        f"Scan, {device}: files to findings / model", whole / alone, "x", 1.15, note + threads
    )


def time_model(
    predictor: LesionPredictor,
    scan: Scan,
    clock: Callable[[], float],
    order: list[int] | None = None,
) -> tuple[float, np.ndarray]:
    """Seconds that the model takes for a scan's slices, one after the other as in a prediction.

    Args:
        predictor, scan: as of :func:`predict_scan`.
        clock: gives seconds.
        order: of the slices; None for all, in that of the prediction.

    Returns:
        The seconds, and the scores of all detections.
    """
    cfg, model = predictor.cfg, predictor.model
    images = ScanImages(predictor.mapper, scan.volume, scan.spacing, scan.name)
    batches = ([images[index]] for index in (images.order() if order is None else order))
    wait = torch.cuda.synchronize if cfg.MODEL.DEVICE == "cuda" else lambda: None
    seconds, scores = 0.0, []
    with reuse_features(model, count_reused(cfg, model)), torch.no_grad():
        for batch in DeviceLoader(batches, cfg.MODEL.DEVICE, cfg.INPUT.CT.HU_WINDOW):
            wait()
            start = clock()
            [output] = model(batch)
            wait()
            seconds += clock() - start
            scores.append(output["instances"].scores.cpu().numpy())
    return seconds, np.concatenate(scores)


def _with_detections(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RETINA_UNET.PREDICT_MASKS = True
    cfg.TEST.DETECTIONS_PER_IMAGE = _DETECTIONS
    return cfg


def _made_up_volume(num_slices: int, size: int) -> np.ndarray:
    """Noise in a body that moves from slice to slice."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-60, 60, (size, size)).astype(np.int16)
    volume = np.full((num_slices, size, size), -1000, np.int16)
    for index, hu in enumerate(volume):
        edge = size // 8 + index % (size // 16)
        hu[edge:-edge, edge:-edge] = np.roll(noise, 7 * index)[edge:-edge, edge:-edge] + 40
    return volume
