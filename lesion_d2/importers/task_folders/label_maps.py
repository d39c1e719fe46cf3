"""Conversion of label maps to lesions: instances, and components of semantic classes."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from scipy import ndimage

from ...data.volume_set.form import Lesion, lesion_of_mask
from ...scans.volume_file import VolumeFile

#: Neighbors of a voxel -> rank of SciPy's structuring element.
CONNECTIVITIES = {6: 1, 18: 2, 26: 3}

_MAX_LABEL = np.iinfo(np.uint16).max
_MAX_SHOWN = 10


def read_labels(label: VolumeFile) -> np.ndarray:
    """Read a label map.

    Returns:
        (Z, H, W) uint16, in DeepLesion's orientation.

    Raises:
        ValueError: the file is damaged, or has values other than integers from 0 to 65535.
    """
    labels, start = np.empty(label.shape, np.uint16), 0
    target = label.grid.turn.undo(labels)
    for slab in label.slabs():
        slab = slab.reshape(*slab.shape[:2], -1)
        with np.errstate(invalid="ignore"):
            whole = slab.astype(np.uint16)
        wrong = slab[whole != slab]
        if wrong.size:
            raise ValueError(
                f"{label.file}: found the label {wrong.flat[0]:g}, expected integers from 0 to "
                f"{_MAX_LABEL}"
            )
        target[:, :, start : start + slab.shape[2]] = whole
        start += slab.shape[2]
    return labels


def instance_lesions(
    labels: np.ndarray, classes: Mapping[int, int], label_file: str, class_file: str
) -> Iterator[Lesion]:
    """Yield the lesions of an instance map; touching instances stay separate.

    Args:
        labels: (Z, H, W) uint16; 0 is background.
        classes: instance -> index of its class.
        label_file, class_file: paths of their files, for messages.

    Raises:
        ValueError: the instances of ``labels`` and ``classes`` differ.
    """
    found = _regions(labels)
    unnamed, absent = found.keys() - classes.keys(), classes.keys() - found.keys()
    if unnamed:
        raise ValueError(
            f"{label_file}: found the instances {_listed(unnamed)}, expected only those "
            f"in {class_file}"
        )
    if absent:
        raise ValueError(
            f"{label_file}: found no voxel of the instances {_listed(absent)}, expected all "
            f"those in {class_file}"
        )
    for number, (instance, region) in enumerate(sorted(found.items()), start=1):
        offset = [axis.start for axis in region]
        mask = labels[region] == instance
        yield lesion_of_mask(number, classes[instance], mask, offset=offset, shape=labels.shape)


def component_lesions(
    labels: np.ndarray,
    classes: Iterable[Iterable[int]],
    *,
    connectivity: int = 26,
    min_voxels: float = 0.0,
) -> tuple[list[Lesion], list[int]]:
    """Convert the connected components of semantic classes to lesions.

    Args:
        labels: (Z, H, W) integers.
        classes: labels of each class; a label may be in several classes.
        connectivity: 6, 18 or 26 neighbors of a voxel.
        min_voxels: components with fewer voxels are dropped.

    Returns:
        Lesions, ordered by class, and the number of dropped components per class.
    """
    structure = ndimage.generate_binary_structure(3, CONNECTIVITIES[connectivity])
    lesions, dropped = [], []
    for category, own in enumerate(classes):
        mask, counted = np.isin(labels, list(own)), 0
        for whole in _regions(mask.view(np.uint8)).values():  # the box around all components
            components, _ = ndimage.label(mask[whole], structure)
            for component, region in _regions(components).items():
                part = components[region] == component
                if np.count_nonzero(part) < min_voxels:
                    counted += 1
                    continue
                offset = [a.start + b.start for a, b in zip(whole, region, strict=True)]
                number = len(lesions) + 1
                lesions.append(
                    lesion_of_mask(number, category, part, offset=offset, shape=labels.shape)
                )
        dropped.append(counted)
    return lesions, dropped


def check_known_labels(labels: np.ndarray, known: Iterable[int], label_file: str) -> None:
    """Check that a semantic label map only has labels of its data set.

    Raises:
        ValueError: a label other than 0 is unknown.
    """
    unknown = np.setdiff1d(np.unique(labels), [0, *known])
    if unknown.size:
        raise ValueError(
            f"{label_file}: found the labels {_listed(unknown.tolist())}, expected those of the "
            f"data set: {_listed(known)}"
        )


def _regions(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Label -> bounding box in the array, for labels that occur."""
    regions = ndimage.find_objects(labels)
    return {n: region for n, region in enumerate(regions, start=1) if region is not None}


def _listed(numbers: Iterable[int]) -> str:
    numbers = sorted(numbers)
    more = f" and {len(numbers) - _MAX_SHOWN} more" if len(numbers) > _MAX_SHOWN else ""
    return ", ".join(map(str, numbers[:_MAX_SHOWN])) + more
