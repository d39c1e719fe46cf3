"""Statistics of a data set: patients, volumes, lesions, sizes, spacings and HU."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..structures.ignore_regions import is_region
from .loading import LoadedSet
from .rules.annotations import Lesion
from .rules.splits import patients_of
from .rules.volumes import VolumeSums

#: Edges of the histograms of lesions' sizes, in mm or pixels.
SIZE_EDGES = (0.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)


def count_set(loaded: LoadedSet, volumes: Sequence[VolumeSums], lesions: Sequence[Lesion]) -> dict:
    """Compute statistics of a data set, for ``counts`` in ``data_check.json``.

    Args:
        loaded: the data set.
        volumes: its volumes, with sums over pixels.
        lesions: its lesions, each once.

    Returns:
        JSON types; None for unknown or missing values.
    """
    annotations = [image["annotations"] for image in loaded.images]
    per_image = Counter(sum(not is_region(a) for a in ones) for ones in annotations)
    images = len(loaded.images)
    patients = patients_of(loaded)
    read = [volume.pixels for volume in volumes if volume.pixels is not None]
    spacings = [s for volume in volumes for s in volume.spacings if isinstance(s, tuple)]
    categories = Counter(lesion.category for lesion in lesions)
    names = dict(enumerate(loaded.classes)) or {c: str(c) for c in sorted(categories)}
    return {
        "patients": len(patients) or None,
        "volumes": len(volumes),
        "images": images,
        "images_without_lesion": per_image[0],
        "share_without_lesion": per_image[0] / images if images else None,
        "lesions": len(lesions),
        "lesions_per_class": {name: categories[c] for c, name in names.items()},
        "lesions_per_image": {str(n): per_image[n] for n in sorted(per_image)},
        "annotations_with_mask": sum("segmentation" in a for ones in annotations for a in ones),
        "ignore_regions": sum(is_region(a) for ones in annotations for a in ones),
        "sizes_mm": _sizes([x.size for x in lesions if x.in_mm]),
        "sizes_pixels": _sizes([x.size for x in lesions if not x.in_mm]),
        "spacing_mm": {axis: _range(v) for axis, v in _by_axis(spacings).items()},
        "volumes_without_spacing": sum(None in volume.spacings for volume in volumes),
        "image_sizes": _image_sizes(volumes),
        "hu": [min(p.low for p in read), max(p.high for p in read)] if read else None,
    }


def _by_axis(spacings: Sequence[tuple[float, ...]]) -> dict[str, list[float]]:
    return {axis: [spacing[i] for spacing in spacings] for i, axis in enumerate("xyz")}


def _range(values: Sequence[float]) -> list[float] | None:
    """Minimum, median and maximum."""
    if not values:
        return None
    return [round(float(f(values)), 6) for f in (np.min, np.median, np.max)]


def _sizes(sizes: Sequence[float]) -> dict | None:
    if not sizes:
        return None
    edges = [*SIZE_EDGES, np.inf]
    histogram = np.histogram(sizes, edges)[0].tolist()
    labels = [
        f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"
        for low, high in pairwise(edges)
    ]
    return {"range": _range(sizes), "histogram": dict(zip(labels, histogram, strict=True))}


def _image_sizes(volumes: Sequence[VolumeSums]) -> dict[str, int]:
    """Number of volumes per slice size, for the ten most frequent sizes."""
    sizes = Counter(size for volume in volumes for size in volume.sizes)
    return {f"{width} x {height}": n for (height, width), n in sizes.most_common(10)}
