import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_curves(no_curves) -> None:
    """What is drawn of an evaluation is tested beside the evaluators."""
