"""What the tests of configs share."""

from lesion_d2.config import get_lesion_config

import pytest


@pytest.fixture
def cfg():
    return get_lesion_config()
