"""What the tests of evaluations in 3-D share."""

import lesion_d2  # noqa: F401  (makes detectron2 importable)

import pytest
from made_up_lesions import registering
from made_up_volume_lesions import NAME


@pytest.fixture
def register():
    """Registers dicts as the made-up volumes."""
    with registering(NAME, "abc", "lesion_volume") as add:
        yield add
