"""Options of registered data sets: what their next loading leaves out or hides."""

import logging
from collections.abc import Iterable

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..structures.ignore_regions import is_region, lesions_of

logger = logging.getLogger(__name__)

_SERIES_KEYS = ("patient", "study", "series")  # of a series in DeepLesion; of others "volume" alone


def set_allow_missing(name: str, allow_missing: bool) -> None:
    """Say whether the next loading of a registered data set leaves out images without a file.

    Args:
        name: of the data set in Detectron2's catalogs.
        allow_missing: see :func:`~lesion_d2.data.deeplesion.load_deeplesion`; replaces what was set
            before.

    Raises:
        ValueError: the data set is not in DeepLesion's layout.
    """
    if allow_missing and not MetadataCatalog.get(name).get("can_miss_images"):
        raise ValueError(
            f"{name}: found a data set that is read as a whole, expected one in DeepLesion's "
            "layout to leave missing images out"
        )
    _set_option(name, "allow_missing", allow_missing)


def allows_missing(name: str) -> bool:
    """What :func:`set_allow_missing` said last; False before."""
    return MetadataCatalog.get(name).get("allow_missing", False)


def set_prepared_slices(name: str, prepared: bool) -> None:
    """Say whether the next loading of a registered data set reads prepared slices.

    Args:
        name: of the data set in Detectron2's catalogs.
        prepared: in place of its PNG files, see :mod:`lesion_d2.data.prepared.slices`; replaces
            what was set before.

    Raises:
        ValueError: the data set is not in DeepLesion's layout.
    """
    if prepared and not MetadataCatalog.get(name).get("can_be_prepared"):
        raise ValueError(
            f"{name}: found a data set without a folder Images_png, expected one in DeepLesion's "
            "layout to read prepared slices"
        )
    _set_option(name, "prepared_slices", prepared)


def reads_prepared_slices(name: str) -> bool:
    """What :func:`set_prepared_slices` said last; False before."""
    return MetadataCatalog.get(name).get("prepared_slices", False)


def set_first_pixel(name: str, first_pixel: float) -> None:
    """Say what the center of an image's first pixel has for coordinates in a data set's files.

    Loaders that know it say so; in the dicts it is 0. What writes boxes of a data set to files, or
    reads them from there, goes by it (see :mod:`lesion_d2.structures.boxes`).

    Args:
        name: of the data set in Detectron2's catalogs.
        first_pixel: 1 in DeepLesion's files.
    """
    _set_option(name, "first_pixel", first_pixel)


def set_hidden_annotations(name: str, share: float, seed: int = 0) -> None:
    """Simulate missing annotations: hide a share of a data set's annotations in its next loading.

    Hidden annotations are moved from a dict's ``annotations`` to its ``hidden_annotations``, a key
    of every dict if the share is above 0. With the same seed, a larger share hides the same ones
    and more.

    Args:
        name: of the data set in Detectron2's catalogs.
        share: of all annotations, from 0 (none is hidden) to below 1; replaces what was set before.
        seed: of the random selection.

    Raises:
        ValueError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"{name}: found a hidden share of {share}, expected one in [0, 1)")
    _set_option(name, "hidden_annotations", (share, seed))


def hide_annotations(name: str, dicts: list[dict]) -> None:
    """Do what :func:`set_hidden_annotations` said last; nothing before.

    Args:
        name: of the data set.
        dicts: of it, changed in place; a draw goes over its annotations in the order of their
            ``row``. Those of one ``row`` are one lesion on several slices, hidden on all. Regions
            to ignore stay.
    """
    share, seed = MetadataCatalog.get(name).get("hidden_annotations", (0.0, 0))
    if share == 0:
        return
    rows = sorted({a["row"] for image in dicts for a in lesions_of(image["annotations"])})
    num_hidden = round(share * len(rows))
    drawn = np.random.default_rng(seed).permutation(len(rows))[:num_hidden]
    hidden = {rows[i] for i in drawn}
    for image in dicts:
        annotations = image["annotations"]
        is_hidden = [not is_region(a) and a["row"] in hidden for a in annotations]
        pairs = list(zip(annotations, is_hidden, strict=True))
        image["annotations"] = [a for a, gone in pairs if not gone]
        image["hidden_annotations"] = [a for a, gone in pairs if gone]
    num_bare = sum(not lesions_of(image["annotations"]) for image in dicts)
    logger.info(
        f"{name}: {num_hidden} of {len(rows)} annotations are hidden (share {share}, seed {seed}); "
        f"{num_bare} of {len(dicts)} key slices have none left"
    )


def set_excluded_volumes(name: str, volumes: Iterable[str]) -> None:
    """Say of which volumes the next loading of a registered data set leaves the series out.

    All images of a series are left out, not only those on the volume's slices. The volumes are read
    here, whatever they themselves leave out.

    Args:
        name: of the data set in Detectron2's catalogs.
        volumes: names of data sets whose dicts have ``patient``, ``study`` and ``series``, or at
            least ``volume``; replaces what was set before.

    Raises:
        KeyError: one of the volumes' data sets is not registered (Detectron2's own check).
        OSError: one of them cannot be read.
        ValueError: likewise; or their dicts do not tell the series; or the data set is neither in
            DeepLesion's layout nor of volumes.
    """
    volumes = tuple(volumes)
    if volumes and not MetadataCatalog.get(name).get("can_exclude_volumes"):
        raise ValueError(
            f"{name}: found a data set that is read as a whole, expected one in DeepLesion's "
            "layout or of volumes to leave series out"
        )
    parts = frozenset().union(*map(_read_parts, volumes))
    _set_option(name, "excluded_volumes", (volumes, parts))


def exclude_series(name: str, dicts: list[dict]) -> list[dict]:
    """Do what :func:`set_excluded_volumes` said last; nothing before.

    Args:
        name: of the data set.
        dicts: of it, with the same keys.

    Returns:
        Those that are left, in the same order.

    Raises:
        ValueError: none is left.
    """
    volumes, parts = MetadataCatalog.get(name).get("excluded_volumes", ((), frozenset()))
    if not volumes:
        return dicts
    series = {of_series for of_series, _ in parts}
    left = [image for image in dicts if _series_of(image) not in series]
    source = ", ".join(volumes)
    if not left:
        raise ValueError(
            f"{name}: found all {len(dicts)} images in series of the excluded volumes ({source}), "
            "expected some in others"
        )
    left_out = {_part_of(image) for image in dicts if _series_of(image) in series}
    logger.info(
        f"{name}: {len(dicts) - len(left)} of {len(dicts)} images are left out, all of "
        f"{len({of_series for of_series, _ in left_out})} series of excluded volumes ({source}): "
        f"{len(left_out)} sub-volumes, {len(left_out - parts)} of them other slices of these series"
    )
    return left


def _read_parts(volumes: str) -> set[tuple]:
    """The sub-volumes of a data set, with those that an earlier run excluded from it."""
    excluded = MetadataCatalog.get(volumes).get("excluded_volumes", ((), frozenset()))
    _set_option(volumes, "excluded_volumes", ((), frozenset()))
    try:
        dicts = DatasetCatalog.get(volumes)
    finally:
        _set_option(volumes, "excluded_volumes", excluded)
    for image in dicts:
        missing = [key for key in _SERIES_KEYS if key not in image]
        if missing and "volume" not in image:
            raise ValueError(
                f"{volumes}, {image['image_id']}: found no {missing[0]!r}, expected "
                f"{', '.join(_SERIES_KEYS)} or volume of each image"
            )
    return set(map(_part_of, dicts))


def _series_of(image: dict) -> tuple:
    if all(key in image for key in _SERIES_KEYS):
        return tuple(image[key] for key in _SERIES_KEYS)
    return (image["volume"],)


def _part_of(image: dict) -> tuple[tuple, tuple]:
    """The sub-volume of an image: its series and range of slices."""
    return _series_of(image), tuple(image.get("slice_range", ()))


def _set_option(name: str, key: str, value: object) -> None:
    metadata = MetadataCatalog.get(name)
    vars(metadata).pop(key, None)  # Detectron2 refuses to change a value
    metadata.set(**{key: value})
