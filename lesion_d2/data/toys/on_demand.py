"""Toys in Detectron2's catalogs, registered on first use of their names.

There are many, and few are ever used; unused ones are not listed. Both ``DatasetCatalog.get`` and
``MetadataCatalog.get`` register them; ``in`` and ``list`` do not.
"""

import re
import threading

from detectron2.data import DatasetCatalog, MetadataCatalog

from .images import SPLITS, TASKS, dataset_name, register_toys

#: Names of the data sets, without those of the first n images of a split.
NAMES = tuple(dataset_name(task, split) for task in TASKS for split in SPLITS)
# Reentrant: a toy that is registered asks for its own metadata.
_LOCK = threading.RLock()
_NAME = re.compile(rf"toy_({'|'.join(TASKS)})_({'|'.join(SPLITS)})(?:_([1-9]\d{{0,5}}))?")


def register_if_toy(name: str) -> None:
    """Register a toy data set, unless it is registered or the name is not that of a toy.

    Args:
        name: ``toy_<task>_<split>``, or ``toy_<task>_<split>_<n>`` for the split's first n images;
            see :func:`~lesion_d2.data.toys.images.register_toys`.
    """
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return
    with _LOCK:
        if name not in DatasetCatalog:
            task, split, number = match.groups()
            number = None if number is None else int(number)
            register_toys(name, "$DETECTRON2_DATASETS/toys", task, split, number)


class _Datasets(type(DatasetCatalog)):
    """Detectron2's catalog of data sets, extended by the toys."""

    def __missing__(self, name: str):
        register_if_toy(name)
        return self.data[name]


class _AllMetadata(type(MetadataCatalog)):
    """Detectron2's catalog of metadata, likewise."""

    def get(self, name: str):
        """As in Detectron2."""
        register_if_toy(name)
        return super().get(name)


DatasetCatalog.__class__, MetadataCatalog.__class__ = _Datasets, _AllMetadata
