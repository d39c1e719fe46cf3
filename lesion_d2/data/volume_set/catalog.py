"""Data sets of volumes in Detectron2's catalog: each folder with a ``volume_set.json``."""

import logging
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...scans.names import safe_name
from ..deeplesion.key_slices import COLORS
from ..roots import resolve_root
from ..toys.on_demand import register_if_toy
from .dicts import load_volume_set, read_cached
from .form import FILE_NAME, read_head
from .records import VolumeSet

logger = logging.getLogger(__name__)

#: The fold and split of a registered name; None for all patients.
_Part = tuple[int | None, str | None]


def register_volume_sets(folder: str | os.PathLike = "$DETECTRON2_DATASETS") -> list[str]:
    """Register all volume sets in a folder; called when the package is imported.

    A volume set with a damaged ``volume_set.json`` or with names in use is skipped, with a warning
    in the log.

    Args:
        folder: a folder with one subfolder per data set, which gives its name;
            ``$DETECTRON2_DATASETS`` in it is expanded, and defaults to "datasets".

    Returns:
        The names that were not registered before.
    """
    folder = Path(resolve_root(os.fspath(folder)))
    try:
        roots = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    except OSError:
        return []
    names = []
    for root in roots:
        try:
            names += register_volume_set(root)
        except (OSError, ValueError) as error:
            logger.warning(f"A data set is not registered: {error}")
    return names


def register_volume_set(root: str | os.PathLike, name: str | None = None) -> list[str]:
    """Register a volume set with Detectron2; its volumes are read on first use.

    - ``<name>``, ``<name>_train``, ``_val`` and ``_test``: slices that show a lesion (and all
      volumes of one slice), like DeepLesion's key slices, with the same options except that for
      missing files.
    - ``<name>_volumes`` and ``<name>_volumes_train``, ...: every slice, for evaluation in 3-D.
    - ``<name>_fold0_train``, ``<name>_fold0_volumes_train``, ...: the same for its folds.

    Splits without patients are not registered. Names from an earlier call are kept, so it can be
    called again after splits were added.

    Args:
        root: the folder with ``volume_set.json``.
        name: name of the data set; by default that of the folder.

    Returns:
        The names that were not registered before.

    Raises:
        FileNotFoundError, ValueError: see :func:`~lesion_d2.data.volume_set.form.read_head`; or a
            name is invalid, or in use by another data set.
    """
    root = os.path.abspath(root)
    name = os.path.basename(root) if name is None else name
    if safe_name(name) != name:
        raise ValueError(
            f"{root}: found the name {name!r}, expected letters, digits, '.', '_' and '-'"
        )
    head = read_head(root)
    parts = dict(_parts(name, head))
    for registered in parts:
        if _is_known(registered) and MetadataCatalog.get(registered).get("volume_set") != root:
            raise ValueError(
                f"{root}: found the name {registered!r} of another data set, expected an unused "
                "name"
            )
    added = [registered for registered in parts if not _is_known(registered)]
    for registered in added:
        part, every_slice = parts[registered]
        load = partial(_load_registered, root, part, every_slice)
        DatasetCatalog.register(registered, load)
        MetadataCatalog.get(registered).set(
            thing_classes=list(head.classes),
            thing_colors=[COLORS[n % len(COLORS)] for n in _color_order(len(head.classes))],
            evaluator_type="lesion_volume" if every_slice else "lesion",
            can_exclude_volumes=True,
            can_hide_annotations=not every_slice,
            volume_set=root,
            volume_part=part,
        )
    return added


def volume_names(name: str) -> set[str]:
    """Return the volumes of a registered data set, with and without lesions.

    Raises:
        FileNotFoundError, ValueError: see :func:`~lesion_d2.data.volume_set.dicts.load_volume_set`.
    """
    metadata = MetadataCatalog.get(name)
    dicts = _load_registered(metadata.volume_set, metadata.volume_part, every_slice=True)
    return {image["volume"] for image in dicts}


def _parts(name: str, head: VolumeSet) -> Iterator[tuple[str, tuple[_Part, bool]]]:
    """Names to register, each with its fold and split, and whether it has every slice."""
    for every_slice, kind in ((False, ""), (True, "_volumes")):
        yield f"{name}{kind}", ((None, None), every_slice)
        for split in _used(head.splits):
            yield f"{name}{kind}_{split}", ((None, split), every_slice)
        for number, fold in enumerate(head.folds):
            for split in _used(fold):
                yield f"{name}_fold{number}{kind}_{split}", ((number, split), every_slice)


def _used(splits: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [split for split, patients in splits.items() if patients]


def _is_known(name: str) -> bool:
    register_if_toy(name)
    return name in DatasetCatalog


def _color_order(number: int) -> range:
    """A single class has the color of lesions in other data sets."""
    return range(2, 3) if number == 1 else range(number)


def _load_registered(root: str, part: _Part, every_slice: bool) -> list[dict]:
    fold, split = part
    volume_set = read_cached(root)
    patients = None
    if split is not None:
        splits = volume_set.splits if fold is None else dict(enumerate(volume_set.folds)).get(fold)
        patients = frozenset((splits or {}).get(split, ()))
    return load_volume_set(root, patients, every_slice=every_slice)


register_volume_sets()
