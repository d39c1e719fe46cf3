"""Options for reading registered data sets: a run may leave out or hide a part of them.

``DatasetCatalog.get`` always returns the complete data set, independently of these options.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..structures.ignore_regions import is_region, lesions_of
from .prepared.slices import with_prepared_slices

logger = logging.getLogger(__name__)

_SERIES_KEYS = ("patient", "study", "series")  # for DeepLesion; otherwise "volume" only


@dataclass(frozen=True)
class ExcludedSeries:
    """Series to exclude completely, given by data sets of volumes.

    Args:
        volumes: names of these data sets.
        parts: their sub-volumes, as series and range of slices.
    """

    volumes: tuple[str, ...] = ()
    parts: frozenset[tuple[tuple, tuple]] = frozenset()

    @classmethod
    def of(cls, volumes: Iterable[str]) -> "ExcludedSeries":
        """Read the series of the given data sets.

        Args:
            volumes: names of data sets with ``patient``, ``study`` and ``series``, or ``volume``,
                in their dicts.

        Raises:
            KeyError: one of them is not registered (Detectron2's check).
            OSError: one of them cannot be read.
            ValueError: one of them cannot be read, or its dicts do not identify the series.
        """
        volumes = tuple(volumes)
        return cls(volumes, frozenset().union(*map(_read_parts, volumes)))


@dataclass(frozen=True)
class DatasetOptions:
    """Options for reading a registered data set; by default all of it is read.

    Args:
        allow_missing: skip images without a file, see
            :func:`~lesion_d2.data.deeplesion.key_slices.load_deeplesion`. Requires
            ``can_miss_images`` in the data set's metadata: its loader accepts ``allow_missing``.
        prepared_slices: read prepared slices instead of PNG files
            (:mod:`lesion_d2.data.prepared.slices`). Requires ``can_be_prepared``.
        hidden_share: share of annotations to hide, in [0, 1), see :func:`hide_annotations`.
            Requires ``can_hide_annotations`` if above 0, or ``hidden_annotations`` in all dicts.
        hidden_seed: random seed of the selection.
        excluded: exclude all images of these series. Requires ``can_exclude_volumes``.
    """

    allow_missing: bool = False
    prepared_slices: bool = False
    hidden_share: float = 0.0
    hidden_seed: int = 0
    excluded: ExcludedSeries = ExcludedSeries()

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str, kind: str) -> "DatasetOptions":
        """Make the options from the DATASETS section; reads the excluded data sets.

        Args:
            cfg: config.
            name: name of the data set.
            kind: "TRAIN" or "TEST"; for "TEST" no annotations are hidden and no series excluded.

        Raises:
            KeyError, OSError, ValueError: see :meth:`ExcludedSeries.of`.
        """
        options, is_train = cfg.DATASETS, kind == "TRAIN"
        excluded = [volumes for volumes in options.EXCLUDED_VOLUMES if is_train and volumes != name]
        return cls(
            allow_missing=options.ALLOW_MISSING,
            prepared_slices=options.PREPARED_SLICES,
            hidden_share=options.MISSING_ANNOTATION_RATIO if is_train else 0.0,
            hidden_seed=options.MISSING_ANNOTATION_SEED,
            excluded=ExcludedSeries.of(excluded),
        )

    def problems(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield keys of DATASETS that a data set does not support, and the reasons.

        Args:
            name: name of the data set.
        """
        can = MetadataCatalog.get(name).get
        whole, layout = (
            f"{name}: found a data set that can only be read completely",
            "DeepLesion's layout",
        )
        if self.allow_missing and not can("can_miss_images"):
            yield "ALLOW_MISSING", f"{whole}, expected one in {layout} for this option"
        if self.prepared_slices and not can("can_be_prepared"):
            found = f"{name}: found a data set without Images_png"
            yield "PREPARED_SLICES", f"{found}, expected one in {layout} for prepared slices"
        if not 0 <= self.hidden_share < 1:
            found = f"{name}: found a hidden share of {self.hidden_share}"
            yield "MISSING_ANNOTATION_RATIO", f"{found}, expected one in [0, 1)"
        if self.excluded.volumes and not can("can_exclude_volumes"):
            expected = f"expected one in {layout}, or a volume set, for this option"
            yield "EXCLUDED_VOLUMES", f"{whole}, {expected}"


#: Options to read the complete data set, like ``DatasetCatalog.get``.
WHOLE_SET = DatasetOptions()


def read_dataset(name: str, options: DatasetOptions = WHOLE_SET) -> list[dict]:
    """Read a registered data set with a run's options.

    Args:
        name: name in ``DatasetCatalog``.
        options: what to leave out or hide.

    Raises:
        KeyError: it is not registered (Detectron2's check).
        OSError: see its loader.
        ValueError: see its loader; or it does not support an option, or no image is left.
    """
    for _, problem in options.problems(name):
        raise ValueError(problem)
    if options.allow_missing:
        dicts = DatasetCatalog[name](allow_missing=True)
    else:
        dicts = DatasetCatalog.get(name)
    dicts = exclude_series(name, dicts, options.excluded)
    if options.hidden_share > 0:
        if MetadataCatalog.get(name).get("can_hide_annotations"):
            hide_annotations(name, dicts, options.hidden_share, options.hidden_seed)
        elif any("hidden_annotations" not in image for image in dicts):
            raise ValueError(
                f"{name}: found a data set whose annotations cannot be hidden, expected a "
                f"share of 0, not {options.hidden_share:g} (DATASETS.MISSING_ANNOTATION_RATIO)"
            )
    return with_prepared_slices(name, dicts) if options.prepared_slices else dicts


def hide_annotations(name: str, dicts: list[dict], share: float, seed: int) -> None:
    """Simulate missing annotations by hiding a share of a data set's annotations.

    Hidden annotations are moved from a dict's ``annotations`` to its ``hidden_annotations``, a key
    that every dict then has. With the same seed, a larger share hides the same ones and more.

    Args:
        name: of the data set.
        dicts: its dicts, modified in place. Annotations are sampled in the order of their ``row``;
            those with the same ``row`` are one lesion on several slices, and are hidden together.
            Regions to ignore are not hidden.
        share: share of the annotations to hide.
        seed: random seed of the selection.
    """
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


def exclude_series(name: str, dicts: list[dict], excluded: ExcludedSeries) -> list[dict]:
    """Exclude series with all of their images, not only those on slices of the volumes.

    Args:
        name: of the data set.
        dicts: its dicts, with the same keys as those of the volumes.
        excluded: the series to exclude.

    Returns:
        The remaining dicts, in the same order.

    Raises:
        ValueError: no image is left.
    """
    if not excluded.volumes:
        return dicts
    series = {of_series for of_series, _ in excluded.parts}
    left = [image for image in dicts if _series_of(image) not in series]
    source = ", ".join(excluded.volumes)
    if not left:
        raise ValueError(
            f"{name}: found all {len(dicts)} images in series of the excluded volumes ({source}), "
            "expected images of other series"
        )
    left_out = {_part_of(image) for image in dicts if _series_of(image) in series}
    others = left_out - excluded.parts
    logger.info(
        f"{name}: {len(dicts) - len(left)} of {len(dicts)} images are left out, from "
        f"{len({of_series for of_series, _ in left_out})} series of excluded volumes ({source}): "
        f"{len(left_out)} sub-volumes, {len(others)} of them with other slices of these series"
    )
    return left


def _read_parts(volumes: str) -> set[tuple[tuple, tuple]]:
    """The sub-volumes of a data set."""
    dicts = DatasetCatalog.get(volumes)
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
