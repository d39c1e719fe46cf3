"""A format of npz files, to import in tests: no file format's own peculiarities."""

import zipfile
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from lesion_d2.data.volume_set.form import Volume, lesion_of_mask
from lesion_d2.importers import Case, ImportedVolume, Listing
from lesion_d2.scans.names import safe_name

import numpy as np


def write_cases(folder: Path, number: int = 4, *, size: int = 48) -> None:
    """Cases ``case_0.npz`` on, of 6 slices; every third without a lesion, others with two."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        rng = np.random.default_rng(i)
        labels = np.zeros((6, size, size), np.uint8)
        if i % 3:
            labels[1:4, 8:16, 8:18] = 1
            labels[2:5, 30:36, 20 + i : 26 + i] = 2
        hu = rng.integers(-100, 100, labels.shape) + 300 * (labels > 0)
        np.savez(folder / f"case_{i}.npz", hu=hu.astype(np.int16), labels=labels)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path)


def list_cases(args: Namespace) -> Listing:
    return list_npz(args.folder)


def list_npz(folder: Path, **others) -> Listing:
    cases = []
    for file in map(str, sorted(folder.glob("*.npz"))):
        name = Path(file).stem
        patient = f"patient {name[-1]}"
        cases.append(Case(safe_name(name), patient, partial(read_case, file), (file,)))
    return Listing(("small", "large"), tuple(cases), **others)


def read_case(file: str) -> ImportedVolume:
    try:
        with np.load(file) as arrays:
            hu, labels = arrays["hu"], arrays["labels"]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile):
        raise ValueError(f"{file}: found no npz file, expected hu and labels") from None
    lesions = [lesion_of_mask(n, n - 1, labels == n) for n in (1, 2) if (labels == n).any()]
    turned = (1, 0, 0, 0, 1, 0, 0, 0, -1)
    place = {"spacing": (0.8, 0.9, 3.0), "origin": (1.0, 2.0, 3.0), "direction": turned}
    volume = Volume("any", "any", "any", hu.shape, **place, lesions=tuple(lesions))
    left_out = () if lesions else (f"{file}: no lesion",)
    return ImportedVolume(hu, volume, left_out)
