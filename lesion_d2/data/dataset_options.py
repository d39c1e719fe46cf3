"""What a run reads of a registered data set: all of it, or less where its config says so.

``DatasetCatalog.get`` always gives all of a data set; nothing that a run asks for changes that.
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

_SERIES_KEYS = ("patient", "study", "series")  # of a series in DeepLesion; of others "volume" alone


@dataclass(frozen=True)
class ExcludedSeries:
    """Series that are left out, whole, as those of some data sets of volumes.

    Args:
        volumes: names of these data sets.
        parts: their sub-volumes: the series, and the range of slices.
    """

    volumes: tuple[str, ...] = ()
    parts: frozenset[tuple[tuple, tuple]] = frozenset()

    @classmethod
    def of(cls, volumes: Iterable[str]) -> "ExcludedSeries":
        """Read the series of data sets.

        Args:
            volumes: names of data sets whose dicts have ``patient``, ``study`` and ``series``, or
                at least ``volume``.

        Raises:
            KeyError: one of them is not registered (Detectron2's own check).
            OSError: one of them cannot be read.
            ValueError: likewise; or its dicts do not tell the series.
        """
        volumes = tuple(volumes)
        return cls(volumes, frozenset().union(*map(_read_parts, volumes)))


@dataclass(frozen=True)
class DatasetOptions:
    """What a run reads of a registered data set; by default all of it.

    Args:
        allow_missing: leave out images without a file, see
            :func:`~lesion_d2.data.deeplesion.key_slices.load_deeplesion`. The data set's metadata
            say by ``can_miss_images`` that its loader takes ``allow_missing``.
        prepared_slices: read these in place of PNG files (:mod:`lesion_d2.data.prepared.slices`),
            of a data set with ``can_be_prepared``.
        hidden_share: of all annotations, from 0 (none is hidden) to below 1, see
            :func:`hide_annotations`; of a data set with ``can_hide_annotations``.
        hidden_seed: of the random selection.
        excluded: leave out all images of these series; of a data set with ``can_exclude_volumes``.
    """

    allow_missing: bool = False
    prepared_slices: bool = False
    hidden_share: float = 0.0
    hidden_seed: int = 0
    excluded: ExcludedSeries = ExcludedSeries()

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str, kind: str) -> "DatasetOptions":
        """The options of a run, which are those of DATASETS; reads what is excluded.

        Args:
            cfg: of the run.
            name: of the data set.
            kind: "TRAIN" or "TEST"; the latter hides no annotation and excludes no series.

        Raises:
            KeyError, OSError, ValueError: see :meth:`ExcludedSeries.of`.
        """
        options, is_train = cfg.DATASETS, kind == "TRAIN"
        excluded = [volumes for volumes in options.EXCLUDED_VOLUMES if is_train and volumes != name]
        return cls(
            allow_missing=options.ALLOW_MISSING,
            prepared_slices=options.PREPARED_SLICES,
            hidden_share=options.HIDDEN_SHARE if is_train else 0.0,
            hidden_seed=options.HIDDEN_SEED,
            excluded=ExcludedSeries.of(excluded),
        )

    def problems(self, name: str) -> Iterator[tuple[str, str]]:
        """Keys of DATASETS that a data set cannot go by, and why; none are hidden where none can.

        Args:
            name: of the data set.
        """
        can = MetadataCatalog.get(name).get
        whole, layout = f"{name}: found a data set that is read as a whole", "DeepLesion's layout"
        if self.allow_missing and not can("can_miss_images"):
            yield "ALLOW_MISSING", f"{whole}, expected one in {layout} to leave missing images out"
        if self.prepared_slices and not can("can_be_prepared"):
            found = f"{name}: found a data set without a folder Images_png"
            yield "PREPARED_SLICES", f"{found}, expected one in {layout} to read prepared slices"
        if not 0 <= self.hidden_share < 1:
            found = f"{name}: found a hidden share of {self.hidden_share}"
            yield "HIDDEN_SHARE", f"{found}, expected one in [0, 1)"
        if self.excluded.volumes and not can("can_exclude_volumes"):
            expected = f"expected one in {layout} or of volumes to leave series out"
            yield "EXCLUDED_VOLUMES", f"{whole}, {expected}"


#: All of a data set, as ``DatasetCatalog.get`` gives it.
WHOLE_SET = DatasetOptions()


def read_dataset(name: str, options: DatasetOptions = WHOLE_SET) -> list[dict]:
    """Read a registered data set by a run's options.

    Args:
        name: in ``DatasetCatalog``.
        options: what is left out or hidden.

    Raises:
        KeyError: it is not registered (Detectron2's own check).
        OSError: as its loader.
        ValueError: likewise; or it cannot go by an option, or nothing is left of it.
    """
    for _, problem in options.problems(name):
        raise ValueError(problem)
    if options.allow_missing:
        dicts = DatasetCatalog[name](allow_missing=True)
    else:
        dicts = DatasetCatalog.get(name)
    dicts = exclude_series(name, dicts, options.excluded)
    if options.hidden_share > 0 and MetadataCatalog.get(name).get("can_hide_annotations"):
        hide_annotations(name, dicts, options.hidden_share, options.hidden_seed)
    return with_prepared_slices(name, dicts) if options.prepared_slices else dicts


def hide_annotations(name: str, dicts: list[dict], share: float, seed: int) -> None:
    """Simulate missing annotations: hide a share of a data set's.

    Hidden annotations are moved from a dict's ``annotations`` to its ``hidden_annotations``, a key
    that every dict then has. With the same seed, a larger share hides the same ones and more.

    Args:
        name: of the data set.
        dicts: of it, changed in place; a draw goes over its annotations in the order of their
            ``row``. Those of one ``row`` are one lesion on several slices, hidden on all. Regions
            to ignore stay.
        share: of all annotations.
        seed: of the random selection.
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
    """Leave series out: all of their images, not only those on the slices of the volumes.

    Args:
        name: of the data set.
        dicts: of it, with the same keys as those of the volumes.
        excluded: the series.

    Returns:
        Those that are left, in the same order.

    Raises:
        ValueError: none is left.
    """
    if not excluded.volumes:
        return dicts
    series = {of_series for of_series, _ in excluded.parts}
    left = [image for image in dicts if _series_of(image) not in series]
    source = ", ".join(excluded.volumes)
    if not left:
        raise ValueError(
            f"{name}: found all {len(dicts)} images in series of the excluded volumes ({source}), "
            "expected some in others"
        )
    left_out = {_part_of(image) for image in dicts if _series_of(image) in series}
    others = left_out - excluded.parts
    logger.info(
        f"{name}: {len(dicts) - len(left)} of {len(dicts)} images are left out, all of "
        f"{len({of_series for of_series, _ in left_out})} series of excluded volumes ({source}): "
        f"{len(left_out)} sub-volumes, {len(others)} of them other slices of these series"
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
