"""Tests of what only a GPU shows; ``make gpu-check`` runs them on a machine that has one.

Where there is none they are skipped. With the variable LESION_D2_TEST_DEVICE "cpu" they run there,
which tests themselves.
"""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """ "cuda", or what the environment names."""
    name = os.environ.get("LESION_D2_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return name


@pytest.fixture
def exact() -> Iterator[None]:
    """float32 convolutions and products, as on a CPU: no TF32."""
    parts = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = False
    yield
    for part, value in zip(parts, before, strict=True):
        part.allow_tf32 = value
