"""What the tests of data sets share."""

from collections.abc import Callable, Iterator

from lesion_d2.data.deeplesion.key_slices import register_deeplesion

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def registered() -> Iterator[Callable]:
    """``register_deeplesion``, undone after the test."""
    names = []

    def register(name, *args, **options):
        register_deeplesion(name, *args, **options)
        names.append(name)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
