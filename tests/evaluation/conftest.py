"""What the tests of evaluations share."""

import lesion_d2  # noqa: F401, it makes detectron2 importable

import pytest
from made_up_lesions import NAME, registering


@pytest.fixture
def register():
    with registering(NAME, ["lesion"], "lesion") as add:
        yield add
