"""A DICOM series as a scan."""

from collections.abc import Iterator
from contextlib import closing
from itertools import groupby

import numpy as np

from ..limits import check_size
from ..scan import Scan, SliceSource
from ..stacking import stack_slices
from ..stored import Storage
from .files import describe, quiet, read_dataset
from .frame import PHASES, Frame
from .pixels import hounsfield_units, stored_values
from .stack import Stack, build_stack, count_repeated

_DEFLATED = "1.2.840.10008.1.2.1.99"


class DicomSeries:
    """The slices of one scan, with headers read but not pixels.

    Args:
        name: name of the scan.
        frames: of one series, orientation and size, in any order.
        source: beginning of messages.
        allow_gaps: see :func:`~lesion_d2.scans.read_scan`.

    Raises:
        ValueError: they do not form a stack of axial slices.
    """

    format = "dicom"

    def __init__(self, name: str, frames: list[Frame], *, source: str, allow_gaps: bool = False):
        self.name, self.source = name, source
        self.study_uid, self.series_uid = frames[0].study_uid, frames[0].series_uid
        self._stack: Stack = build_stack(frames, source=source, allow_gaps=allow_gaps)

    @property
    def num_slices(self) -> int:
        """Number of slices of the volume, including interpolated ones."""
        return len(self._stack.plan.slices)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """x, y, z in mm, of the volume."""
        return self._stack.spacing

    @property
    def files(self) -> list[str]:
        """The file of each stored slice; for members of an archive, the archive."""
        return [frame.stored.path for frame in self._stack.frames]

    def read(self) -> Scan:
        """Read all slices and their headers.

        Raises:
            ValueError: a file is damaged, has changed since it was listed, or cannot be decoded.
        """
        stack = self._stack
        check_size(self.source, stack.shape)
        headers = []
        with quiet(), Storage() as storage:
            slices = _slices(storage, stack, headers)
            with closing(slices):
                volume = stack_slices(slices, stack.plan, stack.shape[1:])
        nearest = stack.plan.nearest()
        frames = [stack.frames[index] for index in nearest]
        messages = stack.messages
        if any(header.get("LossyImageCompression") == "01" for header in headers):
            messages += ("the slices went through lossy compression",)
        return Scan(
            name=self.name,
            volume=volume,
            spacing=stack.spacing,
            origin=stack.origin,
            direction=stack.direction,
            sources=tuple(
                SliceSource(str(frame.stored), frame.index, frame.sop_instance_uid)
                for frame in frames
            ),
            format=self.format,
            headers=tuple(headers[index] for index in nearest),
            slice_turn=stack.turn,
            messages=messages,
        )


def split_by_phase(frames: list[Frame]) -> list[list[Frame]]:
    """Split a series into phases if it has several slices at the same positions.

    The first of acquisition number, stack, time and so on is used that leaves no two slices at the
    same position. If none does, the frames stay together.
    """
    if count_repeated(frames) == 0:
        return [frames]
    for index in range(len(PHASES)):
        parts = {}
        for frame in frames:
            parts.setdefault(frame.phases[index], []).append(frame)
        if len(parts) > 1 and not any(map(count_repeated, parts.values())):
            return list(parts.values())
    return [frames]


def _slices(storage: Storage, stack: Stack, headers: list) -> Iterator[np.ndarray]:
    """Yield the HU of all slices in order, H x W int16, and append their headers to ``headers``."""
    # Not in threads, as the decoders hold the GIL.
    for (_, is_single), run in groupby(stack.frames, lambda f: (f.stored, f.index is None)):
        if is_single:
            for frame in run:
                hu, header = _read_single(storage, frame, stack)
                headers.append(header)
                yield hu
        else:
            yield from _read_multi_frame(storage, list(run), stack, headers)


def _read_single(storage: Storage, frame: Frame, stack: Stack):
    try:
        with storage.open(frame.stored) as opened:
            dataset = read_dataset(opened)
        _check_unchanged(dataset, frame)
        (values,) = stored_values(dataset)
        hu = hounsfield_units(values, dataset)
    except Exception as error:  # from an archive, a removed file or damaged values
        raise ValueError(f"{frame.label}: {describe(error)}") from None
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword in dataset:
            del dataset[keyword]
    return stack.turn.apply(hu), dataset


def _read_multi_frame(storage, frames: list[Frame], stack: Stack, headers: list):
    stored = frames[0].stored
    try:
        with storage.open_seekable(stored) as opened:
            dataset = whole = read_dataset(opened, stop_before_pixels=True)
            is_deflated = dataset.file_meta.TransferSyntaxUID == _DEFLATED
            if is_deflated:
                opened.seek(0)
                whole = read_dataset(opened)
            _check_unchanged(dataset, frames[0])
            indices = [frame.index for frame in frames]
            source = None if is_deflated else opened
            with closing(stored_values(whole, source, indices)) as decoded:
                for index, values in zip(indices, decoded, strict=True):
                    headers.append(dataset)
                    yield stack.turn.apply(hounsfield_units(values, dataset, index))
    except Exception as error:
        raise ValueError(f"{stored}: {describe(error)}") from None


def _check_unchanged(dataset, frame: Frame) -> None:
    found = dataset.get("Rows"), dataset.get("Columns"), str(dataset.get("SOPInstanceUID") or "")
    if found != (*frame.size, frame.sop_instance_uid):
        raise ValueError("found another file than when it was listed")
