"""Data sets of nnU-Net and the Medical Segmentation Decathlon: semantic label maps.

  dataset.json                      of either generation of nnU-Net, or of the Decathlon
  imagesTr/<case>_0000.nii.gz       Decathlon: <case>.nii.gz; other formats: as for nndetection
  labelsTr/<case>.nii.gz

Connected components of the lesion labels become lesions. Lesions that touch become one lesion,
because semantic labels do not separate them.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..data.formats.problems import short_repr
from ..scans.volume_file import VolumeFile
from .case import ImportedVolume, Listing
from .task_folders.dataset_json import DatasetJson, find_cases, read_dataset
from .task_folders.images import check_same_grid, has_place, open_image, volume_of
from .task_folders.label_maps import (
    CONNECTIVITIES,
    check_known_labels,
    component_lesions,
    read_labels,
)
from .task_folders.options import (
    CaseFiles,
    TaskOptions,
    add_task_arguments,
    choose_modality,
    list_task,
    task_options,
)


@dataclass(frozen=True)
class ComponentOptions:
    """Options for the conversion of semantic labels to lesions.

    Args:
        lesion_labels: names or numbers of the labels that are lesions, each a class; other labels,
            such as organs, are left out. Empty for the only label other than background.
        connectivity: 6, 18 or 26 neighbors of a voxel.
        min_volume: minimum volume in mm3; smaller components are dropped and reported.
    """

    lesion_labels: tuple[str, ...] = ()
    connectivity: int = 26
    min_volume: float = 0.0

    def __post_init__(self):
        if self.connectivity not in CONNECTIVITIES:
            raise ValueError(
                f"connectivity: found {self.connectivity}, expected one of {list(CONNECTIVITIES)}"
            )
        if not 0 <= self.min_volume < np.inf:
            raise ValueError(f"min_volume: found {self.min_volume}, expected 0 mm3 or more")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`list_cases`."""
    parser.add_argument("task_dir", metavar="TASK_DIR", help="folder of dataset.json")
    parser.add_argument(
        "--lesion-labels",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="names or numbers of the labels that are lesions, each a class; required if there are "
        "several",
    )
    parser.add_argument(
        "--connectivity",
        type=int,
        choices=tuple(CONNECTIVITIES),
        default=26,
        help="neighbors of a voxel in a connected component (default: 26)",
    )
    parser.add_argument(
        "--min-volume",
        type=float,
        default=0.0,
        metavar="MM3",
        help="leave out smaller components (default: 0, none)",
    )
    add_task_arguments(parser)


def list_cases(args: argparse.Namespace) -> Listing:
    """:func:`list_nnunet` with a command's options."""
    components = ComponentOptions(tuple(args.lesion_labels), args.connectivity, args.min_volume)
    return list_nnunet(args.task_dir, components, task_options(args))


def list_nnunet(
    task_dir: str | os.PathLike,
    components: ComponentOptions | None = None,
    options: TaskOptions | None = None,
) -> Listing:
    """List the cases of a data set of nnU-Net (either generation) or of the Decathlon.

    ``labelsTr/<case>.nii.gz`` are semantic label maps of ``imagesTr/<case>_0000.nii.gz``, or of
    ``imagesTr/<case>.nii.gz``, which may have modalities along a fourth axis. Connected components
    of the lesion labels become lesions. nnU-Net's label "ignore" becomes regions that are neither
    lesion nor background. Cases of ``imagesTs`` form the split "test" if ``labelsTs`` has labels.

    Args:
        task_dir: the folder with ``dataset.json``.
        components: options for the conversion of labels to lesions.
        options: all other options.

    Raises:
        FileNotFoundError: a folder or ``dataset.json`` is missing.
        ValueError: ``dataset.json`` or the file of folds is invalid, there are several modalities
            or labels and none is chosen, the chosen one does not exist, or the modality is not CT.
            Errors of single cases are in the listing.
    """
    components, options = components or ComponentOptions(), options or TaskOptions()
    task_dir = Path(task_dir)
    dataset = read_dataset(task_dir)
    modality = choose_modality(dataset.file, dataset.channels, options.modality, options.values)
    options = replace(options, modality=modality)
    chosen = _choose_labels(dataset, components.lesion_labels)
    classes = tuple(chosen)
    found = find_cases(dataset, modality)
    read = partial(_read_case, replace(dataset, training=[]), chosen, components, options)
    return list_task(
        found.cases,
        read,
        classes,
        options,
        dataset_file=dataset.file,
        split_folders=(task_dir, task_dir / "preprocessed"),
        left_out=found.left_out,
        damaged=found.damaged,
        more_options={
            "lesion_labels": list(classes),
            "connectivity": components.connectivity,
            "min_volume": components.min_volume,
        },
    )


def _choose_labels(dataset: DatasetJson, chosen: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Class -> label numbers of its voxels."""
    listed = ", ".join(f"{name!r} {_numbers(n)}" for name, n in dataset.labels.items())
    if not chosen and len(dataset.labels) > 1:
        raise ValueError(
            f"{dataset.file}: found {len(dataset.labels)} labels ({listed}), expected one; "
            "choose those that are lesions with --lesion-labels"
        )
    labels = {}
    for text in chosen or dataset.labels:
        names = [n for n, own in dataset.labels.items() if text == n or own == _as_number(text)]
        if len(names) != 1:
            raise ValueError(
                f"--lesion-labels: found {short_repr(text)}, expected one of the labels of "
                f"{dataset.file}: {listed}"
            )
        if names[0] in labels:
            raise ValueError(
                f"--lesion-labels: found {short_repr(names[0])} twice, expected it once"
            )
        labels[names[0]] = dataset.labels[names[0]]
    return labels


def _as_number(text: str) -> tuple[int, ...] | None:
    return (int(text),) if text.isascii() and text.isdecimal() else None


def _numbers(numbers: tuple[int, ...]) -> str:
    return "+".join(map(str, numbers))


def _read_case(
    dataset: DatasetJson,
    classes: dict[str, tuple[int, ...]],
    components: ComponentOptions,
    options: TaskOptions,
    files: CaseFiles,
    name: str,
    patient: str,
) -> ImportedVolume:
    channel = (options.modality, len(dataset.channels)) if files.holds_all else None
    image = open_image(files.image, channel)
    label = open_image(files.label)
    check_same_grid(label, image, by_voxel=options.labels_by_voxel)
    volume, labels = volume_of(image, options.values, name, patient), read_labels(label)
    ignored = () if dataset.ignore_label is None else (dataset.ignore_label,)
    known = {n for numbers in dataset.labels.values() for n in numbers}
    check_known_labels(labels, [*known, *ignored], files.label)
    lesions, dropped = component_lesions(
        labels,
        classes.values(),
        connectivity=components.connectivity,
        min_voxels=_min_voxels(components.min_volume, image),
    )
    # One region per class, because a region to ignore has a class, as COCO's crowds do.
    unlabelled, _ = component_lesions(
        labels, [ignored] * len(classes) if ignored else [], connectivity=components.connectivity
    )
    lesions += [
        replace(region, id=number, ignore=True)
        for number, region in enumerate(unlabelled, start=len(lesions) + 1)
    ]
    del labels
    voxels, told = options.values.read(image)
    told += tuple(
        f"{files.label}: {count} components of {class_name!r} below {components.min_volume:g} mm3"
        for class_name, count in zip(classes, dropped, strict=True)
        if count
    )
    return ImportedVolume(voxels, replace(volume, lesions=tuple(lesions)), told)


def _min_voxels(volume: float, image: VolumeFile) -> float:
    if not volume:
        return 0.0
    if not has_place(image):
        raise ValueError(f"{image.file}: found no spacing, expected one for --min-volume in mm3")
    voxel = np.prod(image.spacing) * abs(np.linalg.det(image.direction))
    return volume / voxel * (1 - 1e-6)  # rounded spacings must not drop components of this size
