"""Masks of slices in COCO's compressed RLE.

``size`` is height and width; ``counts`` the lengths of runs of pixels, column by column,
alternately outside and inside of the mask, the first outside. A length is written with five bits
per character, the lowest first; from the fourth on it is the difference to the last but one.

pycocotools trusts both: it allocates any size, and leaves pixels that no run covers uninitialized.
So masks from files are checked and decoded here.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ..utils.errors import short_repr
from ..utils.values import MAX_SIDE, is_size

_MAX_CHARACTERS = 8  # per run; no image has more than 2^35 pixels
_MORE, _NEGATIVE, _BITS = 0x20, 0x10, 0x1F
_EXPECTED = "size and counts of COCO's compressed RLE"


def encode_mask(mask: np.ndarray) -> dict:
    """Encode a mask as COCO's RLE.

    Args:
        mask: H x W bool.

    Returns:
        ``{"size": [H, W], "counts": str}``.
    """
    return encode_masks(mask[None])[0]


def encode_masks(masks: np.ndarray) -> list[dict]:
    """Encode masks as COCO's RLE.

    Args:
        masks: n x H x W bool.

    Returns:
        As :func:`encode_mask`, one per mask. Only columns with mask pixels are transposed, so that
        small masks of large images take a third of pycocotools' time.
    """
    return [_encode(mask, columns) for mask, columns in zip(masks, masks.any(axis=1), strict=True)]


def _encode(mask: np.ndarray, columns: np.ndarray) -> dict:
    height, width = mask.shape
    inside = np.flatnonzero(columns)
    first, last = (inside[0], inside[-1] + 1) if len(inside) else (0, 0)
    pixels = mask[:, first:last].T.ravel()
    ends = np.flatnonzero(np.diff(pixels, prepend=False, append=False)) + first * height
    runs = np.diff(ends, prepend=0, append=height * width)
    if len(ends) and ends[-1] == height * width:
        runs = runs[:-1]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: object, size: Sequence[int] | None = None) -> np.ndarray:
    """Decode an RLE to an H x W bool mask.

    Args:
        rle, size: see :func:`check_mask`.

    Raises:
        ValueError: see :func:`check_mask`.
    """
    runs = _checked_runs(rle, size)
    height, width = rle["size"]
    is_inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(is_inside, runs).reshape(width, height).T


def check_mask(rle: object, size: Sequence[int] | None = None) -> tuple[int, int]:
    """Check that a value is a valid RLE mask before memory is allocated for it.

    Args:
        rle: a value from a file; as from :func:`encode_mask`, or with ``counts`` as bytes.
        size: height and width of the image; None if the RLE's own size is trusted.

    Returns:
        The number of runs, and the number of mask pixels.

    Raises:
        ValueError: not an RLE, an RLE of another size, or runs that do not fill its size.
    """
    runs = _checked_runs(rle, size)
    return len(runs), int(runs[1::2].sum())


def _checked_runs(rle: object, size: Sequence[int] | None) -> np.ndarray:
    """Lengths of an RLE's runs, int64, checked."""
    if not isinstance(rle, Mapping):
        raise ValueError(f"found the mask {short_repr(rle)}, expected {_EXPECTED}")
    found, counts = rle.get("size"), rle.get("counts")
    if not is_size(found):
        raise ValueError(
            f"found a mask of the size {short_repr(found)}, expected height and width of 1 to "
            f"{MAX_SIDE} pixels"
        )
    if size is not None and tuple(found) != tuple(size):
        raise ValueError(
            f"found a mask of {list(found)} pixels (height, width), expected {list(size)}"
        )
    if isinstance(counts, str):
        # An RLE has only ASCII characters.
        counts = counts.encode("ascii", "replace")
    if not isinstance(counts, bytes):
        raise ValueError(f"found the mask counts {short_repr(counts)}, expected text")
    height, width = map(int, found)
    runs = _runs(counts, height * width)
    if runs.sum() != height * width:
        raise ValueError(
            f"found an RLE mask of {runs.sum()} pixels in {len(runs)} runs, expected runs that "
            f"fill {height} x {width} pixels"
        )
    return runs


def _runs(counts: bytes, num_pixels: int) -> np.ndarray:
    """Lengths of an RLE's runs, int64; empty if it is not an RLE of ``num_pixels`` pixels."""
    none = np.zeros(0, np.int64)
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    if not len(codes) or codes.min() < 0 or codes.max() >= 2 * _MORE or codes[-1] & _MORE:
        return none
    ends = np.flatnonzero(codes & _MORE == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        return none
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & _BITS) << shifts, starts)
    values -= np.where(codes[ends] & _NEGATIVE, 1 << (5 * lengths), 0)
    if np.abs(values).max() > num_pixels:  # so that no sum overflows int64
        return none
    runs = values.copy()
    runs[1::2], runs[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return runs if runs.min() >= 0 and runs.max() <= num_pixels else none
