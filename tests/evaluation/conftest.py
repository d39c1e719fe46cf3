"""What the tests of evaluations share."""

import lesion_d2  # noqa: F401, it makes detectron2 importable

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_lesions import NAME


@pytest.fixture
def register():
    def add(dicts, classes=("lesion",)):
        remove()
        DatasetCatalog.register(NAME, lambda: dicts)
        MetadataCatalog.get(NAME).set(thing_classes=list(classes), evaluator_type="lesion")
        return dicts

    def remove():
        if NAME in DatasetCatalog:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)

    yield add
    remove()
