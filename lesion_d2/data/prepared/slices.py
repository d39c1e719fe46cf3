"""Prepared slices, read like a folder of PNG files, and checked against these files.

A slice of ``Images_png/<series>/`` has the path ``Images_prepared/<series>.slices/<number>.png``,
which does not exist on disk. Each access checks the PNG file: it is an error if it was changed,
added or removed since.
"""

import logging
import os
from collections.abc import Iterable

import numpy as np

from ...scans.png import numbered_pngs
from ..formats.problems import raise_problems
from .form import REMEDY, PreparedSlice, png_state, prepared_index, read_prepared

logger = logging.getLogger(__name__)

#: Suffix of the files.
EXTENSION = ".slices"
#: The folders of a data set's PNG slices and of its prepared slices, side by side.
PNG_FOLDER, PREPARED_FOLDER = "Images_png", "Images_prepared"


def prepared_file(folder: str | os.PathLike) -> str:
    """Return the file of prepared slices for ``.../Images_png/<series>``."""
    above, series = os.path.split(os.fspath(folder))
    return os.path.join(os.path.dirname(above), PREPARED_FOLDER, f"{series}{EXTENSION}")


def with_prepared_slices(name: str, dicts: list[dict]) -> list[dict]:
    """Replace PNG files by prepared slices in the dicts of a data set.

    Args:
        name: name of the data set, for messages.
        dicts: its dicts, modified in place: ``file_name`` becomes the path of the prepared slice.
            Slices of voxel files are not changed.

    Raises:
        ValueError: slices were not prepared or have changed since (the first 20 are listed), or
            none is a PNG file.
    """
    problems: dict[str, None] = {}  # ordered; a problem of a file is one line for all its slices
    num_prepared = 0
    for image in dicts:
        folder, png = os.path.split(image["file_name"])
        if os.path.basename(os.path.dirname(folder)) != PNG_FOLDER:
            continue
        file = prepared_file(folder)
        path = os.path.join(file, png)
        try:
            _current(path)
        except (FileNotFoundError, ValueError) as error:
            problems[str(error)] = None
        image["file_name"] = path
        num_prepared += 1
    if num_prepared == 0:
        problems[f"found no image in {PNG_FOLDER}, expected slices that can be prepared"] = None
    raise_problems(f"{name}, DATASETS.PREPARED_SLICES", list(problems))
    # Imported here, so that forked loader processes share its 18 MB.
    import blosc2  # noqa: F401

    logger.info(f"{name}: {num_prepared} of {len(dicts)} images are read from prepared slices")
    return dicts


def is_prepared(file: str | os.PathLike) -> bool:
    """Whether a path names a file of prepared slices."""
    return os.fspath(file).endswith(EXTENSION)


def read_prepared_slice(path: str | os.PathLike) -> np.ndarray:
    """Read one slice, H x W int16 in HU, as a copy.

    Raises:
        FileNotFoundError: the slice does not exist.
        ValueError: it is damaged, or its PNG file has changed.
    """
    _current(path)
    file, name = _split(path)
    return read_prepared(file, [name])[name]


def read_prepared_slices(file: str | os.PathLike, numbers: Iterable[int]) -> dict[int, np.ndarray]:
    """Read slices of one file: number -> H x W; see :func:`read_prepared_slice`."""
    name_of = {int(name): name for name in prepared_index(file)}
    names = {number: name_of.get(number, str(number)) for number in numbers}
    for name in names.values():
        _current(os.path.join(file, f"{name}.png"))
    slices = read_prepared(file, names.values())
    return {number: slices[name] for number, name in names.items()}


def prepared_slice_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return height and width of a slice in pixels.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_prepared_slice`.
    """
    return _current(path).size


def prepared_slice_exists(path: str | os.PathLike) -> bool:
    """Whether a slice exists.

    Raises:
        ValueError: it does not exist, but its PNG file does.
    """
    file, name = _split(path)
    if name in prepared_index(file):
        return True
    if os.path.isfile(_png(path)):
        raise _changed(path, "was added")
    return False


def prepared_slices(file: str | os.PathLike) -> dict[int, str]:
    """Slice number -> path for all slices, sorted.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: PNG files were added or removed since.
    """
    names = list(prepared_index(file))
    paths = [os.path.join(file, f"{name}.png") for name in names]
    if paths:
        folder = os.path.dirname(_png(paths[0]))
        found = {png[: -len(".png")] for png in numbered_pngs(os.listdir(folder))}
        for name in sorted(found.symmetric_difference(names)):
            what = "was added" if name in found else "was removed"
            raise _changed(os.path.join(file, f"{name}.png"), what)
    return {int(name): path for name, path in zip(names, paths, strict=True)}


def _current(path: str | os.PathLike) -> PreparedSlice:
    """A slice's index entry; raises if its PNG file has changed."""
    file, name = _split(path)
    entry = prepared_index(file).get(name)
    try:
        state = png_state(_png(path))
    except FileNotFoundError:
        if entry is None:
            raise
        raise _changed(path, "was removed") from None
    if entry is None:
        raise _changed(path, "was added")
    if entry.png != state:
        raise _changed(path, "has changed")
    return entry


def _changed(path: str | os.PathLike, what: str) -> ValueError:
    return ValueError(f"{_png(path)}: {what} since {_split(path)[0]} was prepared; {REMEDY}")


def _png(path: str | os.PathLike) -> str:
    """The PNG file of a slice."""
    file, png = os.path.split(path)
    above, series = os.path.split(file)
    root = os.path.dirname(above)
    return os.path.join(root, PNG_FOLDER, series.removesuffix(EXTENSION), png)


def _split(path: str | os.PathLike) -> tuple[str, str]:
    file, png = os.path.split(path)
    return file, os.path.splitext(png)[0]
