"""Access to registered data sets by name, with helpful error messages."""

import weakref
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import chain

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.detection_utils import check_metadata_consistency

from .dataset_options import WHOLE_SET, DatasetOptions, read_dataset
from .dict_rules import old_key_problems
from .toys.on_demand import NAMES as TOYS
from .toys.on_demand import register_if_toy

_MAX_NAMES = 5
# Last arguments of keep_train_sets: a weak reference to the config, and the dicts.
_kept: list[tuple[weakref.ref, list[list[dict]]]] = []


def suggest_names(name: str, kind: str = "lesion") -> str:
    """Suggest names of lesion data sets, preferably those similar to a misspelled name.

    Otherwise volume sets come first, as their files exist. ``kind`` is the prefix of their
    ``evaluator_type``.
    """
    metadata = {n: MetadataCatalog.get(n) for n in DatasetCatalog.list()}
    known = [n for n, one in metadata.items() if one.get("evaluator_type", "").startswith(kind)]
    known.sort(key=lambda n: metadata[n].get("volume_set") is None)
    if kind == "lesion":
        known += [toy for toy in TOYS if toy not in metadata]
    return ", ".join(get_close_matches(name, known, _MAX_NAMES) or known[:_MAX_NAMES])


def is_registered(name: str) -> bool:
    """Whether a data set is registered; toys are registered by this call."""
    register_if_toy(name)
    return isinstance(name, str) and name in DatasetCatalog


def load_records(dataset: str, options: DatasetOptions = WHOLE_SET) -> list[dict]:
    """Load the dicts of a registered data set.

    Args:
        dataset: its name in ``DatasetCatalog``.
        options: what to leave out or hide.

    Raises:
        ValueError: the data set is not registered, has no images or old keys, or does not support
            an option.
    """
    if not is_registered(dataset):
        raise ValueError(
            f"found data set {dataset!r}, which is not registered, expected a name such as "
            f"{suggest_names(dataset)}"
        )
    records = read_dataset(dataset, options)
    if not records:
        raise ValueError(f"data set {dataset!r}: found no images, expected at least one")
    for image in records:
        for annotation in image.get("annotations", ()):
            for problem in old_key_problems(annotation):
                raise ValueError(f"data set {dataset!r}, image {image.get('image_id')}: {problem}")
    return records


def load_run_dicts(
    cfg: CfgNode, names: Sequence[str], kind: str, *, filter_empty: bool = False
) -> list[dict]:
    """Load the dicts of a run's data sets, as Detectron2's ``get_detection_dataset_dicts``.

    Args:
        cfg: config, with the options for reading (:class:`DatasetOptions`).
        names: names in ``DatasetCatalog``.
        kind: "TRAIN" or "TEST", the split that these are used as.
        filter_empty: skip images without lesions.

    Raises:
        ValueError: there are no images.
    """
    options = (DatasetOptions.from_config(cfg, name, kind) for name in names)
    return _join(names, map(read_dataset, names, options), kind, filter_empty)


def keep_train_sets(cfg: CfgNode, train_sets: list[list[dict]]) -> None:
    """Keep checked training dicts for the loader of the same run.

    Args:
        cfg: the run's config object; the dicts are released with it.
        train_sets: the dicts of each data set of its DATASETS.TRAIN.
    """
    _kept[:] = [(weakref.ref(cfg, lambda gone: _forget(gone)), train_sets)]


def _forget(gone: weakref.ref) -> None:
    _kept[:] = [(of_run, sets) for of_run, sets in _kept if of_run is not gone]


def load_train_dicts(cfg: CfgNode) -> list[dict]:
    """Load the dicts of DATASETS.TRAIN, as Detectron2's ``get_detection_dataset_dicts``.

    Dicts of :func:`keep_train_sets` are handed over instead of read again.

    Raises:
        ValueError: there are no images.
    """
    names, filter_empty = cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if _kept and _kept[0][0]() is cfg:
        _, train_sets = _kept.pop()
        return _join(names, train_sets, "TRAIN", filter_empty)
    return load_run_dicts(cfg, names, "TRAIN", filter_empty=filter_empty)


def _join(
    names: Sequence[str], sets: Iterable[list[dict]], kind: str, filter_empty: bool
) -> list[dict]:
    """Concatenate and filter the dicts of data sets, and log the number of lesions per class."""
    dicts = list(chain.from_iterable(sets))
    if filter_empty:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if not dicts:
        raise ValueError(
            f"DATASETS.{kind}: found no image in {', '.join(names)}, expected at least one"
        )
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if classes is not None:
        check_metadata_consistency("thing_classes", names)
        # Detectron2 counts image by image, ten times slower.
        every = chain.from_iterable(image["annotations"] for image in dicts)
        print_instances_class_histogram([{"annotations": list(every)}], classes)
    return dicts
