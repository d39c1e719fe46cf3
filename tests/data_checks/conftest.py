"""Data sets to plant faults in."""

import lesion_d2  # noqa: F401, makes detectron2 importable

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_slices import MadeUpSet


@pytest.fixture
def sets(tmp_path):
    """``made_train`` and ``made_val``, registered: six slices and four, clean, of two classes."""
    made = {
        "made_train": MadeUpSet(tmp_path / "images", "train", 6, 0, classes=2),
        "made_val": MadeUpSet(tmp_path / "images", "val", 4, 100, classes=2),
    }
    for name, one in made.items():
        DatasetCatalog.register(name, lambda one=one: one.images)
        MetadataCatalog.get(name).set(thing_classes=["cyst", "mass"], evaluator_type="lesion")
    yield made["made_train"], made["made_val"]
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
