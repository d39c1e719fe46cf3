"""What the tests of tools share."""

import lesion_d2  # noqa: F401, it makes detectron2 importable

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_results import LESIONS, NAME, SIZE, make_record
from slice_files import write_slice


@pytest.fixture
def records(tmp_path):
    """A registered data set of three small slices."""
    made = [make_record(image_id, boxes, tmp_path) for image_id, boxes in LESIONS.items()]
    for record in made:
        hu = np.full((SIZE, SIZE), -50)
        for a in record["annotations"]:
            x0, y0, x1, y1 = a["bbox"]
            hu[y0 + 4 : y1 - 4, x0 + 3 : x1 - 3] = 60
        write_slice(record["file_name"], hu)
    DatasetCatalog.register(NAME, lambda: made)
    MetadataCatalog.get(NAME).set(thing_classes=["lesion"])
    yield made
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
