"""Reading of ``dataset.json`` of nnU-Net and the Decathlon, and search for the cases' files."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...data.formats.problems import short_repr
from ...utils.files import one_line, read_json
from ...utils.values import are_digits
from .images import find_image, image_stem, image_stems, labels_alone
from .options import CaseFiles

_BACKGROUND = "background"
_IGNORE = "ignore"
_NUMBERED = re.compile(r"(.+)_(\d{4})", re.DOTALL)


class ListedCase(NamedTuple):
    """Paths of a case relative to ``dataset.json``: an image per modality or for all, a label."""

    images: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class DatasetJson:
    """The content of ``dataset.json``.

    Args:
        file: path of the file.
        channels: number -> name of each modality.
        labels: name -> numbers of each label, without background and "ignore".
        ignore_label: the number of unlabeled voxels ("ignore"), or None.
        training: the listed cases; empty if none are listed.
    """

    file: Path
    channels: dict[int, str]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    training: list[ListedCase]


@dataclass(frozen=True)
class FoundCases:
    """Cases, lines on other files (``left_out``), and lines on invalid cases (``damaged``)."""

    cases: dict[str, CaseFiles] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def read_dataset(task_dir: Path) -> DatasetJson:
    """Read ``dataset.json`` of either generation of nnU-Net.

    The first generation has ``{"labels": {"1": "tumour"}, "modality": {"0": "CT"}}``, the second
    ``{"labels": {"tumour": 1}, "channel_names": {"0": "CT"}}``, where a label may be a list of
    numbers (a region).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or its labels, modalities or cases are invalid.
    """
    file = task_dir / "dataset.json"
    content = read_json(file, "dataset.json of nnU-Net or of the Decathlon")
    if not isinstance(content, dict):
        raise ValueError(f"{file}: found {short_repr(content)}, expected keys such as 'labels'")
    key = "channel_names" if "channel_names" in content else "modality"
    channels = content.get(key)
    numbers = list(map(str, range(len(channels)))) if isinstance(channels, dict) else []
    if not numbers or sorted(channels) != sorted(numbers):
        raise ValueError(
            f"{file}: {key}: found {short_repr(channels)}, expected names with numbers "
            "from 0 as keys (for task folders of nnDetection, use import_data nndetection)"
        )
    labels = _read_labels(file, content.get("labels"))
    ignored = labels.pop(_IGNORE, (None,))
    names = {int(n): str(channels[n]) for n in numbers}
    return DatasetJson(file, names, labels, ignored[0], _listed_cases(file, content))


def find_cases(dataset: DatasetJson, modality: int) -> FoundCases:
    """Find the cases that ``dataset.json`` lists, or those in the folders if it lists none.

    Raises:
        FileNotFoundError: there is no training image.
    """
    found, root = FoundCases(), dataset.file.parent
    training = dataset.training or list(_folder_cases(root, "Tr"))
    if not training:
        raise FileNotFoundError(f"{root}: found no image in imagesTr, and none in dataset.json")
    for entry in training:
        _add(found, root, entry, modality, None)
    test = list(_folder_cases(root, "Ts"))
    if test and not (root / "labelsTs").is_dir():
        found.left_out.append(f"{root / 'imagesTs'}: {len(test)} images without labels")
    else:
        for entry in test:
            _add(found, root, entry, modality, "test")
    _tell_others(found, root, training, test, bool(dataset.training))
    return found


def _tell_others(
    found: FoundCases,
    root: Path,
    training: list[ListedCase],
    test: list[ListedCase],
    are_listed: bool,
) -> None:
    """Report files without a case: not in ``dataset.json``, or label maps without an image."""
    known = {image_stem(Path(entry.label).name) for entry in training}
    if are_listed:
        stems = image_stems(root / "imagesTr").keys() - known
        others = {match[1] if (match := _NUMBERED.fullmatch(stem)) else stem for stem in stems}
        others = sorted((others | image_stems(root / "labelsTr").keys()) - known)
        if others:
            found.left_out.append(
                f"{root}: {len(others)} cases of imagesTr or labelsTr are not among the training "
                f"cases of dataset.json, such as {short_repr(others[0])}"
            )
    else:
        found.damaged.extend(labels_alone(root / "labelsTr", known))
    known = {image_stem(Path(entry.label).name) for entry in test}
    found.left_out.extend(labels_alone(root / "labelsTs", known))


def _read_labels(file: Path, labels: object) -> dict[str, tuple[int, ...]]:
    """Name -> numbers, without the background."""
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{file}: labels: found {short_repr(labels)}, expected names and numbers")
    if all(isinstance(name, str) and are_digits(key) for key, name in labels.items()):
        pairs = [(name, int(number)) for number, name in labels.items()]
    else:
        pairs = list(labels.items())
    found = {}
    for name, numbers in pairs:
        numbers = numbers if isinstance(numbers, list) else [numbers]
        are_numbers = all(type(n) is int and 0 <= n < 2**16 for n in numbers)
        if not numbers or not are_numbers or (0 in numbers and len(numbers) > 1):
            raise ValueError(
                f"{file}: labels: found {short_repr(numbers)} for {short_repr(name)}, "
                "expected an integer from 0, or a list of integers from 1"
            )
        if name == _IGNORE and len(numbers) > 1:
            raise ValueError(
                f"{file}: labels: found {short_repr(numbers)} for 'ignore', expected one integer"
            )
        if not name.strip():
            raise ValueError(f"{file}: labels: found the name {short_repr(name)}, expected text")
        if name in found:
            raise ValueError(
                f"{file}: labels: found {short_repr(name)} twice, expected unique names"
            )
        if numbers != [0] and name.lower() != _BACKGROUND:
            found[name] = tuple(numbers)
    if not found.keys() - {_IGNORE}:
        raise ValueError(
            f"{file}: labels: found {short_repr(labels)}, expected a label other than background"
        )
    return found


def _listed_cases(file: Path, content: dict) -> list[ListedCase]:
    """The training cases, from the first generation's list or the second one's object."""
    if "dataset" in content:
        key, entries = "dataset", content["dataset"]
        entries = list(entries.values()) if isinstance(entries, dict) else entries
    else:
        key, entries = "training", content.get("training", [])
    if not isinstance(entries, list):
        raise ValueError(f"{file}: {key}: found {short_repr(entries)}, expected a list of cases")
    cases = []
    for number, entry in enumerate(entries):
        entry = {"image": entry} if isinstance(entry, str) else entry
        images = label = None
        if isinstance(entry, dict):
            images, label = entry.get("images", entry.get("image")), entry.get("label")
        images = images if isinstance(images, list) else [images]
        if not images or not all(map(_is_inside, [*images, *([] if label is None else [label])])):
            raise ValueError(
                f"{file}: {key}, {number}: found {short_repr(entry)}, expected paths of an "
                "image and a label in this folder"
            )
        label = label or f"labelsTr/{Path(images[0]).name}"
        cases.append(ListedCase(tuple(images), label))
    return cases


def _is_inside(path: object) -> bool:
    """Whether a value is the relative path of an image, without ``..``."""
    is_path = isinstance(path, str) and not os.path.isabs(path) and ".." not in Path(path).parts
    return is_path and image_stem(Path(path).name) is not None


def _folder_cases(root: Path, ending: str) -> Iterator[ListedCase]:
    """The cases of a folder, with images named as in the first generation's list."""
    folder, seen = root / f"images{ending}", set()
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        stem = image_stem(name)
        match = _NUMBERED.fullmatch(stem) if stem else None
        case = match[1] if match else stem
        if case is not None and case not in seen:
            seen.add(case)
            file_name = f"{case}{name[len(stem) :]}"
            yield ListedCase((f"images{ending}/{file_name}",), f"labels{ending}/{file_name}")


def _add(
    found: FoundCases, root: Path, entry: ListedCase, modality: int, split: str | None
) -> None:
    """Find the files of a case: the image as listed, or with the number of the modality."""
    label = root / entry.label
    case = image_stem(label.name)
    listed = root / (entry.images[modality] if len(entry.images) > modality else entry.images[0])
    try:
        numbered = find_image(listed.parent, f"{case}_{modality:04d}")
        if listed.is_file() and numbered not in (None, str(listed)):
            raise ValueError(f"{listed}: found {Path(numbered).name} as well, expected one of them")
        image = str(listed) if listed.is_file() else numbered
        if image is None:
            raise FileNotFoundError(
                f"{listed}: no such image, nor {case}_{modality:04d} with an extension"
            )
        if case in found.cases:
            raise ValueError(
                f"{image}: found a second case {short_repr(case)}, expected unique names"
            )
    except (OSError, ValueError) as error:
        found.damaged.append(one_line(error))
        return
    if not label.is_file():
        lines = found.left_out if split else found.damaged
        lines.append(f"{image}: found no label map, expected {label}")
        return
    holds_all = len(entry.images) == 1 and image != numbered
    found.cases[case] = CaseFiles(image, str(label), None, split, holds_all)
