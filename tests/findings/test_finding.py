"""What findings know of themselves."""

from lesion_d2.findings import Algorithm

import pytest


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("/home/jane/a b/model.pth", "model.pth"),
        (r"C:\Users\jane\model.pth, /mnt/fold_1/best.pth", "model.pth, best.pth"),
        ("model.pth", "model.pth"),
        (None, None),
    ],
)
def test_files_without_their_folders(weights, name):
    algorithm = Algorithm(version="1", config_file="configs/a.yaml", weights=weights)
    expected = Algorithm(version="1", config_file="a.yaml", weights=name)
    assert algorithm.without_folders() == expected
