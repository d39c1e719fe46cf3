"""Benchmark of reading all slices of a volume together, against reading images separately."""

import os
import resource
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

from lesion_d2.data.chunks import reading
from lesion_d2.data.chunks.loading import ChunkLoader
from lesion_d2.data.loader import NamingReader
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.data.slices.slice_formats import format_of
from lesion_d2.data.transforms.augmentation import ResizeCT
from lesion_d2.scans.png import write_png
from lesion_d2.scans.writing import write_nifti

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader

from ..memory import peak_memory
from ..timing import Row, one_thread

NUM_SLICES, MANY_SLICES, FEW_SLICES, NIFTI_SLICES = 300, 1000, 100, 60
# Channels of an image -> maximum time, relative to reading each image separately.
LIMITS = {3: 0.59, 9: 0.42, 15: 0.41}
_SPACING = (0.7, 0.7, 2.0)
_TIMED, _REPEATS = 60, 3  # slices, and times
_WORKERS = 2


def measure_sweeps(folder: Path, *, size: int = 512) -> Iterator[Row]:
    """Reads, time and memory of all slices of a volume, in one process and in two.

    They are compared with a mapper that reads the slices of each image separately. Times are CPU
    time of this process and its workers. Slices have the size of images, so that the saved resizing
    of each channel does not count.
    """
    with one_thread():
        yield from _channel_rows(write_slices(folder / "000001_01_01", NUM_SLICES, size), size)
        yield _nifti_row(folder, size)
    yield _memory_row(folder, size)


def _channel_rows(dicts: list[dict], size: int) -> Iterator[Row]:
    few = dicts[:_TIMED]
    for num_channels, limit in LIMITS.items():
        mapper = _mapper(num_channels, size)
        name = f"volume, {num_channels} channels:"
        reads = count_reads(partial(_sweep, dicts, mapper)) / len(dicts)
        note = f"{len(dicts)} slices; {num_channels} if each image reads its own slices"
        yield Row(f"{name} reads of a slice", reads, "x", 1.0, note)
        ratios = [
            _ratio(partial(_sweep, few, mapper), lambda m=mapper: _drain(map(m.load, few)))
            for _ in range(_REPEATS)
        ]
        note = f"CPU time, {len(few)} slices of {size} x {size}, none of them resized"
        yield Row(f"{name} read / each image", statistics.median(ratios), "x", limit, note)


def write_slices(folder: Path, count: int, size: int) -> list[dict]:
    """A folder of slices of noise, four of which are different, and its dicts."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    files = [folder.with_name(f"{folder.name}_{number}.png") for number in range(4)]
    edge = size // 8  # air around the body
    for file in files:
        hu = np.full((size, size), -1000, np.int32)
        hu[edge:-edge, edge:-edge] = rng.integers(-60, 100, (size - 2 * edge, size - 2 * edge))
        write_png(file, (hu + 32768).astype(np.uint16))
    for index in range(count):
        os.link(files[index % 4], folder / f"{index:04d}.png")
    return _dicts(folder, size)


def count_reads(work: Callable[[], None]) -> int:
    """Context manager that counts slices read by loaders of volumes in this process."""
    counts, read = Counter(), reading.read_slice
    counted = lambda *args: counts.update(["read"]) or read(*args)  # noqa: E731
    with mock.patch.object(reading, "read_slice", counted):
        work()
    return counts["read"]


def _mapper(num_channels: int, size: int) -> LesionDatasetMapper:
    return LesionDatasetMapper(
        False, augmentations=[ResizeCT(size)], num_slices=num_channels, slice_interval=0.0
    )


def _dicts(folder: Path, size: int) -> list[dict]:
    return [
        {
            "file_name": file,
            "image_id": f"{number}",
            "slice_index": number,
            "height": size,
            "width": size,
            "spacing": _SPACING,
            "slice_range": None,
            "volume": folder.name,
        }
        for number, file in format_of(folder).files(folder).items()
    ]


def _drain(items: Iterable) -> None:
    deque(items, maxlen=0)


def _sweep(dicts: list[dict], mapper: LesionDatasetMapper, num_workers: int = 0) -> None:
    _drain(ChunkLoader(dicts, mapper, batch_size=1, num_workers=num_workers, named=NamingReader))


def _sweep_images(dicts: list[dict], mapper: LesionDatasetMapper) -> None:
    """Each image separately, in workers that get images in turn."""
    _drain(build_detection_test_loader(dicts, mapper=mapper.load, num_workers=_WORKERS))


def _ratio(call: Callable[[], None], other: Callable[[], None], repeats: int = 3) -> float:
    """The median ratio of the CPU times of two calls, including workers."""
    ratios = []
    for _ in range(repeats):
        times = []
        for work in (call, other):
            start = _processor_time()
            work()
            times.append(_processor_time() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def _processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _nifti_row(folder: Path, size: int) -> Row:
    rng = np.random.default_rng(0)
    volume = rng.integers(-60, 100, (NIFTI_SLICES, size, size)).astype(np.int16)
    file = folder / f"000002_01_01_000-{NIFTI_SLICES - 1:03d}.nii.gz"
    write_nifti(file, volume, _SPACING)
    dicts, mapper = _dicts(file, size), _mapper(3, size)
    ratio = _ratio(partial(_sweep, dicts, mapper, _WORKERS), partial(_sweep_images, dicts, mapper))
    note = f"CPU time, {NIFTI_SLICES} slices, 3 channels; one worker decompresses for all"
    name = f"NIfTI volume, {_WORKERS} workers: read / each worker on its own"
    return Row(name, ratio, "x", 0.7, note)


def _memory_row(folder: Path, size: int) -> Row:
    cfg = CfgNode({"MODEL": {"DEVICE": "cpu"}})
    long = write_slices(folder / "000003_01_01", MANY_SLICES, size)
    works = [partial(_sweep_once, part, size) for part in (long, long[:FEW_SLICES])]
    peaks = [peak_memory(work, cfg) for work in works]
    note = "{:.0f} against {:.0f} MiB, 9 channels".format(*peaks)
    name = f"volume: memory of reading {MANY_SLICES:,} slices / {FEW_SLICES}"
    return Row(name, peaks[0] / peaks[1], "x", 1.15, note)


def _sweep_once(dicts: list[dict], size: int, _: CfgNode) -> None:
    _sweep(dicts, _mapper(9, size))
