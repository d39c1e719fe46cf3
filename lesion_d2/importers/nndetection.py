"""Task folders of nnDetection: images with instance maps, or with boxes only.

  dataset.json (or .yaml)
  raw_splitted/imagesTr/<case>_0000.nii.gz    or .nii, .mha, .mhd, .nrrd, .png, .tif
  raw_splitted/labelsTr/<case>.nii.gz         instance numbers
  raw_splitted/labelsTr/<case>.json           {"instances": {"1": 0}}, instance -> class

Images may be single slices. <case>.json may have boxes, with or without an instance map:

  {"boxes": [{"class": 0, "voxels": [[120, 84, 31], [133, 97, 34]]},
             {"class": 1, "ras_mm": [[-31.5, 12.0, 80.0], [-20.0, 25.5, 91.0]]}]}

voxels: first and last voxel of the box, as indices into the file's array, from 0.
ras_mm, lps_mm: opposite corners in patient coordinates, with the axes of NIfTI (RAS), or with those
of DICOM and ITK (LPS).
"""

import argparse
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..config import read_yaml
from ..data.formats.problems import raise_problems, short_repr
from ..utils.files import one_line, read_json
from .case import ImportedVolume, Listing
from .task_folders.box_labels import box_lesions, check_box
from .task_folders.images import (
    check_same_grid,
    find_image,
    image_stem,
    image_stems,
    labels_alone,
    open_image,
    volume_of,
)
from .task_folders.label_maps import instance_lesions, read_labels
from .task_folders.options import (
    CaseFiles,
    TaskOptions,
    add_task_arguments,
    choose_modality,
    list_task,
    task_options,
)

_DATASET_FILES = ("dataset.yaml", "dataset.yml", "dataset.json")
_IMAGE_FOLDERS = ("raw_splitted", "raw_splitted_data", ".")
_CASE = re.compile(r"(.+)_(\d{4})", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`list_cases`."""
    parser.add_argument("task_dir", metavar="TASK_DIR", help="folder of dataset.json or .yaml")
    add_task_arguments(parser)


def list_cases(args: argparse.Namespace) -> Listing:
    """:func:`list_nndetection` with a command's options."""
    return list_nndetection(args.task_dir, task_options(args))


def list_nndetection(task_dir: str | os.PathLike, options: TaskOptions | None = None) -> Listing:
    """List the cases of a task folder of nnDetection.

    ``raw_splitted`` (or the task folder itself) has ``imagesTr/<case>_0000.nii.gz`` and, in
    ``labelsTr``, ``<case>.nii.gz`` with instance numbers and ``<case>.json`` with
    ``{"instances": {"1": 0}}``, instance -> class. In addition to nnDetection's layout, images may
    be single slices, MetaImage, NRRD, PNG or TIFF, and the JSON file may have ``boxes``, with or
    without an instance map, see :mod:`lesion_d2.importers.task_folders.box_labels`. Cases of
    ``imagesTs`` form the split "test" if ``labelsTs`` has labels.

    Args:
        task_dir: the folder with ``dataset.json`` or ``dataset.yaml``.
        options: options for reading it.

    Raises:
        FileNotFoundError: a folder or ``dataset.json`` is missing.
        ValueError: ``dataset.json`` or the file of folds is invalid, there are several modalities
            and none is chosen, or the modality is not CT. Errors of single cases are in the
            listing.
    """
    options, task_dir = options or TaskOptions(), Path(task_dir)
    dataset_file, dataset = _read_dataset(task_dir)
    classes = _classes(dataset_file, dataset)
    names = _numbered_names(dataset_file, "modalities", dataset.get("modalities"))
    modality = choose_modality(dataset_file, names, options.modality, options.values)
    options = replace(options, modality=modality)
    root = _image_root(task_dir)
    cases, left_out, damaged = {}, [], []
    for ending, split in (("Tr", None), ("Ts", "test")):
        found = _find_images(root / f"images{ending}", modality, damaged)
        labels = root / f"labels{ending}"
        if split and found and not labels.is_dir():
            left_out.append(f"{root / 'imagesTs'}: {len(found)} images without labels")
            continue
        for case, image in found.items():
            try:
                files = _find_labels(labels, case, image, classes, split)
            except (ValueError, OSError) as error:
                damaged.append(one_line(error))
                continue
            if files is None:
                line = f"{image}: found no labels, expected {labels / case}.json"
                (left_out if split else damaged).append(line)
            elif case in cases:
                damaged.append(f"{image}: found a case of this name in imagesTr, expected another")
            else:
                cases[case] = files
        (left_out if split else damaged).extend(_labels_alone(root, ending))
    return list_task(
        cases,
        partial(_read_case, classes, options),
        classes,
        options,
        dataset_file=dataset_file,
        split_folders=(task_dir, task_dir / "preprocessed"),
        left_out=left_out,
        damaged=damaged,
    )


def _read_dataset(task_dir: Path) -> tuple[Path, dict]:
    file = next((task_dir / n for n in _DATASET_FILES if (task_dir / n).is_file()), None)
    if file is None:
        found = "found no dataset.json or dataset.yaml" if task_dir.is_dir() else "no such folder"
        raise FileNotFoundError(f"{task_dir}: {found}, expected the task folder with this file")
    if file.suffix == ".json":
        content = read_json(file, "nnDetection's description of the data set")
    else:
        content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: found {short_repr(content)}, expected keys such as 'labels'")
    return file, content


def _numbered_names(file: Path, key: str, found: object) -> dict[int, str]:
    """Read names such as ``{"0": "CT"}``; in YAML, the numbers may be integers."""
    if not isinstance(found, dict) or sorted(map(str, found)) != sorted(
        map(str, range(len(found)))
    ):
        raise ValueError(
            f"{file}: {key}: found {short_repr(found)}, expected names with numbers from 0 as keys "
            "(for data sets of nnU-Net and the Decathlon, use import_data nnunet)"
        )
    names = {n: found.get(str(n), found.get(n)) for n in range(len(found))}
    for name in names.values():
        if type(name) not in (str, int) or not str(name).strip():
            raise ValueError(f"{file}: {key}: found the name {short_repr(name)}, expected text")
    return {n: str(name) for n, name in names.items()}


def _classes(file: Path, dataset: dict) -> tuple[str, ...]:
    names = tuple(_numbered_names(file, "labels", dataset.get("labels")).values())
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{file}: labels: found {short_repr(names)}, expected unique names")
    return names


def _image_root(task_dir: Path) -> Path:
    for name in _IMAGE_FOLDERS:
        if (task_dir / name / "imagesTr").is_dir():
            return task_dir / name
    raise FileNotFoundError(f"{task_dir}: found no folder raw_splitted/imagesTr or imagesTr")


def _find_images(folder: Path, modality: int, damaged: list[str]) -> dict[str, str]:
    """Case -> its image of the modality."""
    found, seen = {}, set()
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        stem = image_stem(name)
        if stem is None:
            continue
        match = _CASE.fullmatch(stem)
        if match is None:
            damaged.append(
                f"{folder / name}: found this file name, expected <case>_0000 with an extension"
            )
            continue
        case, number = match[1], int(match[2])
        seen.add(case)
        if number == modality and case in found:
            damaged.append(f"{folder / name}: found a second image of this case, expected one")
        elif number == modality:
            found[case] = str(folder / name)
    damaged.extend(
        f"{folder}: found no modality {modality} of case {case}, expected "
        f"{case}_{modality:04d} with an extension"
        for case in sorted(seen - found.keys())
    )
    return found


def _labels_alone(root: Path, ending: str) -> list[str]:
    """One line for each label file without an image of any modality."""
    images, folder = image_stems(root / f"images{ending}"), root / f"labels{ending}"
    cases = {match[1] if (match := _CASE.fullmatch(stem)) else stem for stem in images}
    files = sorted(folder.glob("*.json")) if folder.is_dir() else ()
    return labels_alone(folder, cases) + [
        f"{file}: found no image of this case in images{ending}"
        for file in files
        if file.stem not in cases and find_image(folder, file.stem) is None
    ]


def _find_labels(
    folder: Path, case: str, image: str, classes: tuple[str, ...], split: str | None
) -> CaseFiles | None:
    """The files of a case, after a check of the JSON file; None if there are no labels."""
    label, json_file = find_image(folder, case), folder / f"{case}.json"
    if not json_file.is_file():
        if label is None:
            return None
        raise ValueError(
            f"{label}: found no {json_file.name} beside it, expected it with the classes"
        )
    instances, _ = _read_instances(json_file, classes)
    if label is None and instances:
        raise ValueError(
            f"{json_file}: found {len(instances)} instances, expected {case}.nii.gz beside it"
        )
    return CaseFiles(image, label, str(json_file), split)


def _read_instances(
    file: str | os.PathLike, classes: tuple[str, ...]
) -> tuple[dict[int, int], list[dict]]:
    """Read instance -> class, and the boxes."""
    content = read_json(file, "the classes of the instances", allow_nan=True)
    if not isinstance(content, dict) or not {"instances", "boxes"} & content.keys():
        raise ValueError(
            f"{file}: found {short_repr(content)}, expected 'instances', 'boxes' or both"
        )
    instances, boxes = content.get("instances", {}), content.get("boxes", [])
    if not isinstance(instances, dict) or not isinstance(boxes, list):
        raise ValueError(
            f"{file}: found instances {short_repr(instances)} and boxes "
            f"{short_repr(boxes)}, expected an object (instance to class) and a list"
        )
    problems = []
    for key, category in instances.items():
        if not re.fullmatch("[1-9][0-9]{0,8}", key):
            problems.append(f"found the instance {short_repr(key)}, expected a number from 1")
        if type(category) is not int or not 0 <= category < len(classes):
            problems.append(
                f"instance {short_repr(key)}: found the class {short_repr(category)}, "
                f"expected 0 to {len(classes) - 1}"
            )
    for number, box in enumerate(boxes):
        try:
            check_box(box, len(classes))
        except ValueError as error:
            problems.append(f"boxes, {number}: {error}")
    raise_problems(file, problems)
    return {int(key): category for key, category in instances.items()}, boxes


def _read_case(
    classes: tuple[str, ...], options: TaskOptions, files: CaseFiles, name: str, patient: str
) -> ImportedVolume:
    instances, boxes = _read_instances(files.notes, classes)
    image = open_image(files.image)
    volume, lesions = volume_of(image, options.values, name, patient), []
    if files.label is not None:
        label = open_image(files.label)
        check_same_grid(label, image, by_voxel=options.labels_by_voxel)
        labels, json_name = read_labels(label), os.path.basename(files.notes)
        lesions = list(instance_lesions(labels, instances, files.label, json_name))
        del labels
    lesions += box_lesions(boxes, image, volume, first_id=len(lesions) + 1, source=files.notes)
    voxels, told = options.values.read(image)
    return ImportedVolume(voxels, replace(volume, lesions=tuple(lesions)), told)
