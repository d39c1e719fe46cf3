"""Processes that train together: NCCL on GPUs, one each."""

import process_group
import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("more", [False, True], ids=["one", "all"])
def test_processes_end_with_the_same_model(device, tmp_path, more):
    number = (torch.cuda.device_count() if device == "cuda" else 2) if more else 1
    if more and number == 1:
        pytest.skip("one GPU, and NCCL wants one for each process")
    torch.multiprocessing.spawn(
        process_group.train, args=(number, str(tmp_path), device), nprocs=number
    )
    digests = [(tmp_path / f"rank_{rank}").read_text() for rank in range(number)]
    assert len(digests) == number and len(set(digests)) == 1
