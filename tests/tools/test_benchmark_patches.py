import sys

from lesion_d2.tools.benchmark import patches

import numpy as np


def test_patches_are_measured_with_and_without_a_deformation(tmp_path, monkeypatch):
    volume = np.random.default_rng(0).integers(-1000, 500, (12, 48, 48)).astype(np.int16)
    monkeypatch.setattr(patches, "real_volume", lambda folder: volume)
    monkeypatch.setattr(patches, "PATCH", (4, 16, 16))
    monkeypatch.setattr(patches, "_REPEATS", 1)
    monkeypatch.setitem(sys.modules, "monai.transforms", None)  # not installed
    rows = patches.measure_patches(tmp_path)
    assert [row.name for row in rows] == ["patches of volumes", "patches of volumes, elastic"]
    assert all(row.measured > 0 and row.unit == "/s" for row in rows)
    assert "4 x 16 x 16, three lesions" in rows[0].note
