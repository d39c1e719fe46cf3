"""Selection and compression of a report's slices."""

import base64
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..finding import Finding

#: HU are clipped to this range: 12 bits per pixel.
HU_RANGE = (-1024, 3071)
#: Slices on each side of a finding that a report includes.
MARGIN = 2
# Fraction of the size limit for slices of findings; the rest is for every n-th slice.
_SHARE_OF_FINDINGS = 0.75


@dataclass(frozen=True)
class ChosenSlices:
    """The slices in a report.

    Args:
        coded: slice -> base64 of :func:`encode_slice`, by ascending slice.
        step: every ``step``-th slice is included; None if there was no room.
        left_out: number of slices of or near findings that did not fit.
    """

    coded: dict[int, str]
    step: int | None
    left_out: int


def encode_slice(hu: np.ndarray) -> bytes:
    """Compress a slice without loss within :data:`HU_RANGE`.

    Each pixel is predicted from its left, upper and upper left neighbors, as in lossless JPEG-LS
    (median edge detector). The residuals compress to three quarters of the size of a 16-bit PNG.

    Args:
        hu: H x W int16; clipped to :data:`HU_RANGE`.

    Returns:
        Deflated bytes: the low bytes of all residuals (modulo 4096, zigzag), then the high bytes.
    """
    values = np.clip(hu, *HU_RANGE).astype(np.int16) - HU_RANGE[0]
    difference = (values - _foretold(values) + 2048) % 4096 - 2048
    zigzag = (difference << 1) ^ (difference >> 15)
    planes = np.stack([zigzag & 255, zigzag >> 8]).astype(np.uint8)
    deflate = zlib.compressobj(level=6, strategy=zlib.Z_RLE)  # noise has no longer matches
    return deflate.compress(planes.tobytes()) + deflate.flush()


def choose_slices(
    volume: np.ndarray, findings: Iterable[Finding], *, limit: int | None
) -> ChosenSlices:
    """Choose the slices of a report: those of and near findings, and every n-th elsewhere.

    Key slices come first, by descending score, then slices near them, then every n-th slice with
    the smallest n that fits.

    Args:
        volume: (Z, H, W) int16, HU.
        findings: by descending score.
        limit: maximum size of all encoded slices in bytes; None for all slices.

    Returns:
        At least one slice.
    """
    count = len(volume)
    coder = _Coder(volume)
    if limit is None:
        return ChosenSlices({z: coder.code(z) for z in range(count)}, step=1, left_out=0)
    findings = list(findings)
    wanted = dict.fromkeys(one.key_slice for one in findings)
    wanted.update(dict.fromkeys(_around(findings, count)))
    wanted = wanted or {count // 2: None}
    chosen = coder.fill(wanted, limit * _SHARE_OF_FINDINGS)
    chosen = chosen or set(list(wanted)[:1])  # at least one, even beyond the limit
    step = _least_step(coder, chosen, count, limit)
    if step:
        chosen |= set(range(0, count, step)) | {count - 1}
    left_out = len(set(wanted) - chosen)
    if left_out:
        chosen |= coder.fill(wanted, limit, chosen)
        left_out = len(set(wanted) - chosen)
    return ChosenSlices({z: coder.code(z) for z in sorted(chosen)}, step, left_out)


def _least_step(coder: "_Coder", chosen: set[int], count: int, limit: int) -> int | None:
    """The smallest n for which every n-th slice fits besides the chosen ones."""
    room = limit - sum(map(coder.size, chosen))
    size = max(1.0, float(np.mean([coder.size(z) for z in chosen])))
    step = max(1, int(count * size // max(limit, 1)))
    while step < count:
        grid = set(range(0, count, step)) | {count - 1}
        # Estimated first, to avoid encoding slices that do not fit.
        if len(grid - chosen) * size * 0.8 <= room and coder.total(grid - chosen) <= room:
            return step
        step += 1
    return None


def _around(findings: Iterable[Finding], count: int) -> Iterator[int]:
    """Slices of and near findings, for each finding from its key slice outwards."""
    for finding in findings:
        first = max(0, int(finding.box[2]) - MARGIN)
        last = min(count - 1, int(finding.box[5]) + MARGIN)
        yield from sorted(range(first, last + 1), key=lambda z: abs(z - finding.key_slice))


class _Coder:
    """Encodes slices, with a cache."""

    def __init__(self, volume: np.ndarray):
        self.volume = volume
        self.coded: dict[int, str] = {}

    def code(self, z: int) -> str:
        if z not in self.coded:
            self.coded[z] = base64.b64encode(encode_slice(self.volume[z])).decode("ascii")
        return self.coded[z]

    def size(self, z: int) -> int:
        return len(self.code(z))

    def total(self, slices: Iterable[int]) -> int:
        return sum(map(self.size, slices))

    def fill(self, wanted: Iterable[int], room: float, chosen: Iterable[int] = ()) -> set[int]:
        """Take slices in the given order until the next one does not fit."""
        taken = set(chosen)
        used = self.total(taken)
        for z in wanted:
            if z in taken:
                continue
            used += self.size(z)
            if used > room:
                break
            taken.add(z)
        return taken


def _foretold(values: np.ndarray) -> np.ndarray:
    """Prediction by JPEG-LS's median edge detector (Weinberger et al., 2000, section III)."""
    left, up = np.zeros_like(values), np.zeros_like(values)
    left[:, 1:] = values[:, :-1]
    up[1:] = values[:-1]
    corner = np.zeros_like(values)
    corner[1:, 1:] = values[:-1, :-1]
    low, high = np.minimum(left, up), np.maximum(left, up)
    # Clipping left + up - corner to the range of the neighbors covers the detector's three cases.
    foretold = np.clip(left + up - corner, low, high)
    foretold[0] = left[0]
    foretold[:, 0] = up[:, 0]
    return foretold
