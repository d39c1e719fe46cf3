"""Benchmark of a scan from files to findings, against the time of the model alone."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from lesion_d2.engine import LesionPredictor, predict_scan
from lesion_d2.engine.predictors.scan_prediction import detect_slices
from lesion_d2.findings import write_findings
from lesion_d2.scans import read_scan
from lesion_d2.scans.writing import write_dicom

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from .. import configs
from ..configs import load_config
from ..timing import Row, one_thread

_SPACING = (0.7, 0.7, 1.0)
_DETECTIONS = 20  # a slice
_FINDINGS = 50  # a scan


def measure_scans(
    device: str, folder: Path, *, num_slices: int = 300, size: int = 512
) -> Iterator[Row]:
    """Reading a DICOM series, predicting and writing findings, against the model's part of it.

    Both are measured in the same run, so changes of the machine's speed do not matter. The
    untrained model has the maximum number of detections, TEST.DETECTIONS_PER_IMAGE, with masks. On
    a CPU, CPU time is measured, of one thread of torch and of the thread that prepares images.
    """
    file = configs.GPU_CONFIG if device == "cuda" else configs.CPU_CONFIG
    clock = time.process_time if device == "cpu" else time.perf_counter
    with one_thread() if device == "cpu" else contextlib.nullcontext():
        predictor = LesionPredictor(_with_detections(load_config(file, device)))
        series = folder / "series"
        write_dicom(series, _made_up_volume(num_slices, size), _SPACING)
        # A first pass, to choose kernels and know the scores.
        found = list(detect_slices(predictor, read_scan(series)))
        scores = np.sort(np.concatenate([detections.scores for detections in found]))
        threshold = float(scores[-_FINDINGS]) if len(scores) > _FINDINGS else 0.0
        with timed_calls(predictor.model, device) as calls:
            start = clock()
            findings = predict_scan(predictor, read_scan(series), score_threshold=threshold)
            write_findings(folder / "findings.json", findings)
            whole = clock() - start
    alone = sum(calls)
    note = (
        f"{whole:.1f} against {alone:.1f} s, {len(calls)} slices of {size} x {size} as DICOM, "
        f"{len(scores)} detections with masks, {len(findings.findings)} findings, {file.stem}"
    )
    threads = ", one thread" if device == "cpu" else ""
    yield Row(
        f"Scan, {device}: files to findings / model", whole / alone, "x", 1.15, note + threads
    )


@contextlib.contextmanager
def timed_calls(model: nn.Module, device: str) -> Iterator[list[float]]:
    """Context manager with a list, to which the seconds of every call of a model are appended.

    On a CPU, the time of the calling thread, which includes torch's work with one thread.
    """
    clock = time.thread_time if device == "cpu" else time.perf_counter
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    seconds: list[float] = []

    def begin(*_: object) -> None:
        wait()
        seconds.append(-clock())

    def end(*_: object) -> None:
        wait()
        seconds[-1] += clock()

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _with_detections(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.SEG_HEAD.PREDICT_MASKS = True
    cfg.TEST.DETECTIONS_PER_IMAGE = _DETECTIONS
    return cfg


def _made_up_volume(num_slices: int, size: int) -> np.ndarray:
    """Slices of noise in a body that moves from slice to slice."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-60, 60, (size, size)).astype(np.int16)
    volume = np.full((num_slices, size, size), -1000, np.int16)
    for index, hu in enumerate(volume):
        edge = size // 8 + index % (size // 16)
        hu[edge:-edge, edge:-edge] = np.roll(noise, 7 * index)[edge:-edge, edge:-edge] + 40
    return volume
