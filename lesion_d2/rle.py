"""Masks of slices in COCO's RLE, as JSON files hold them."""

from collections.abc import Mapping

import numpy as np
from pycocotools import mask as coco_mask

_MAX_SHIFT = 35  # runs of more than 2^40 pixels: of no image


def encode_mask(mask: np.ndarray) -> dict:
    """COCO's RLE of a mask.

    Args:
        mask: H x W bool.

    Returns:
        ``{"size": [H, W], "counts": str}``.
    """
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: Mapping) -> np.ndarray:
    """The mask of an RLE, H x W bool.

    Args:
        rle: as of :func:`encode_mask`.

    Raises:
        ValueError: its runs do not fill its size.
    """
    check_mask(rle)
    return coco_mask.decode(dict(rle)).astype(bool)


def check_mask(rle: Mapping) -> tuple[int, int]:
    """Stop where an RLE's runs do not fill its size: pycocotools leaves memory as it was there.

    Args:
        rle: as of :func:`encode_mask`.

    Returns:
        The number of its runs, and that of its pixels in the mask.

    Raises:
        ValueError: as :func:`decode_mask`.
    """
    height, width = rle["size"]
    runs = _runs(rle["counts"])
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(
            f"found an RLE mask of {sum(runs)} pixels in {len(runs)} runs, expected runs that fill "
            f"{height} x {width} pixels"
        )
    return len(runs), sum(runs[1::2])


def _runs(counts: str) -> list[int]:
    """Lengths of an RLE's runs: five bits a character, from the third on less the last but one.

    None of what is no RLE.
    """
    runs, value, shift = [], 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > _MAX_SHIFT:
            return []
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return runs
