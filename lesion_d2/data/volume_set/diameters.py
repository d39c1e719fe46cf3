"""RECIST diameters in mm, measured on masks of lesions."""

from dataclasses import replace

import numpy as np

from ...structures.boxes import mask_extent
from ...structures.recist import measure_recist, recist_lengths
from ...structures.rle import decode_mask
from .records import Lesion, Volume


def with_diameters(volume: Volume) -> Volume:
    """Measure the RECIST diameters of lesions with masks and without ``diameters_mm``.

    They are measured on the slice with the largest mask (the first of several), as radiologists do;
    ``recist`` is not changed. Without spacing nothing is measured.

    Raises:
        ValueError: a mask is damaged or empty.
    """
    if volume.spacing is None:
        return volume
    return replace(volume, lesions=tuple(_measured(lesion, volume) for lesion in volume.lesions))


def _measured(lesion: Lesion, volume: Volume) -> Lesion:
    if not lesion.masks or lesion.diameters_mm is not None:
        return lesion
    size, spacing = volume.shape[1:], volume.spacing[:2]
    masks = [
        decode_mask({"size": size, "counts": counts}) for _, counts in sorted(lesion.masks.items())
    ]
    largest = max(masks, key=np.count_nonzero)
    extent = mask_extent(largest)
    if extent is None:
        raise ValueError(
            f"volume {volume.name!r}, lesion {lesion.id}: found empty masks, expected pixels"
        )
    recist = measure_recist(largest[extent], spacing)
    long, short = recist_lengths(recist, spacing).tolist()
    return replace(lesion, diameters_mm=(long, min(long, short)) if short > 0 else None)
