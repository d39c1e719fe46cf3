"""Slices as a report holds them: which ones, in how many bytes."""

import base64
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..finding import Finding

#: HU outside of this range are held as its ends: 12 bits a pixel.
HU_RANGE = (-1024, 3071)
#: Slices on each side of a finding that a report holds.
MARGIN = 2
# Of the room for slices, what those of findings may take before every n-th one has its share.
_SHARE_OF_FINDINGS = 0.75


@dataclass(frozen=True)
class ChosenSlices:
    """The slices that a report holds.

    Args:
        coded: slice -> its pixels, base64 of :func:`encode_slice`, by rising slice.
        step: every ``step``-th slice is there, all where 1; None where there was no room.
        left_out: number of slices of findings or beside them for which there was no room.
    """

    coded: dict[int, str]
    step: int | None
    left_out: int


def encode_slice(hu: np.ndarray) -> bytes:
    """Compress a slice without loss of its lower 12 bits.

    Each pixel is foretold from its left, upper and upper left neighbors, as lossless JPEG-LS does
    (median edge detector); what is left over compresses to three quarters of a 16-bit PNG.

    Args:
        hu: H x W int16; clipped to :data:`HU_RANGE`.

    Returns:
        Deflated bytes: the low ones of all differences (modulo 4096, zigzag), then the high ones.
    """
    values = np.clip(hu, *HU_RANGE).astype(np.int16) - HU_RANGE[0]
    difference = (values - _foretold(values) + 2048) % 4096 - 2048
    zigzag = (difference << 1) ^ (difference >> 15)
    planes = np.stack([zigzag & 255, zigzag >> 8]).astype(np.uint8)
    deflate = zlib.compressobj(level=6, strategy=zlib.Z_RLE)  # noise has no longer repetitions
    return deflate.compress(planes.tobytes()) + deflate.flush()


def choose_slices(
    volume: np.ndarray, findings: Iterable[Finding], *, limit: int | None
) -> ChosenSlices:
    """Choose the slices of a report: those of findings and around them, and every n-th elsewhere.

    Key slices come first, by falling score, then what is around them, then every n-th slice with
    the least n for which there is room.

    Args:
        volume: (Z, H, W) int16, HU.
        findings: by falling score.
        limit: room for all coded slices, in bytes; None for all slices.

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
    chosen = chosen or set(list(wanted)[:1])  # however little room there is
    step = _least_step(coder, chosen, count, limit)
    if step:
        chosen |= set(range(0, count, step)) | {count - 1}
    left_out = len(set(wanted) - chosen)
    if left_out:
        chosen |= coder.fill(wanted, limit, chosen)
        left_out = len(set(wanted) - chosen)
    return ChosenSlices({z: coder.code(z) for z in sorted(chosen)}, step, left_out)


def _least_step(coder: "_Coder", chosen: set[int], count: int, limit: int) -> int | None:
    """The least n so that every n-th slice has room beside those that are chosen."""
    room = limit - sum(map(coder.size, chosen))
    size = max(1.0, float(np.mean([coder.size(z) for z in chosen])))
    step = max(1, int(count * size // max(limit, 1)))
    while step < count:
        grid = set(range(0, count, step)) | {count - 1}
        # Estimated first: slices that have no room need not be coded to find that out.
        if len(grid - chosen) * size * 0.8 <= room and coder.total(grid - chosen) <= room:
            return step
        step += 1
    return None


def _around(findings: Iterable[Finding], count: int) -> Iterator[int]:
    """Slices of findings and beside them, each finding's from its key slice outwards."""
    for finding in findings:
        first = max(0, int(finding.box[2]) - MARGIN)
        last = min(count - 1, int(finding.box[5]) + MARGIN)
        yield from sorted(range(first, last + 1), key=lambda z: abs(z - finding.key_slice))


class _Coder:
    """Codes each slice once."""

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
        """Take slices, in the order that they are wanted, until the next one has no room."""
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
    """The median edge detector of JPEG-LS (Weinberger et al., 2000, section III)."""
    left, up = np.zeros_like(values), np.zeros_like(values)
    left[:, 1:] = values[:, :-1]
    up[1:] = values[:-1]
    corner = np.zeros_like(values)
    corner[1:, 1:] = values[:-1, :-1]
    low, high = np.minimum(left, up), np.maximum(left, up)
    # Clipped to between its neighbors, left + up - corner is the detector's three cases in one.
    foretold = np.clip(left + up - corner, low, high)
    foretold[0] = left[0]
    foretold[:, 0] = up[:, 0]
    return foretold
