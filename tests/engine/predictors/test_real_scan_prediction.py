"""Real slices as a data set and as a scan in every format: the same detections to the bit."""

from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.engine import LesionPredictor, detect_slices
from lesion_d2.scans import read_scan
from lesion_d2.scans.writing import write_dicom, write_nifti

import numpy as np
import pytest
import torch
from tiny_run import tiny_config

pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")
SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "deeplesion_sample"
SERIES = "000001_02_01"  # 16 slices


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the sample of DeepLesion's slices")
def test_real_slices_in_all_formats(tmp_path):
    folder = SAMPLE / "Images_png" / SERIES
    records = load_deeplesion(SAMPLE / "DL_info.csv", SAMPLE / "Images_png", None)
    records = [record for record in records if SERIES in record["file_name"]]
    assert records
    torch.manual_seed(0)
    changes = {"TEST__DETECTIONS_PER_IMAGE": 10, "INPUT__CT__IMAGE_SIZE": 64}
    predictor = LesionPredictor(tiny_config(MODEL__RETINANET__SCORE_THRESH_TEST=0.0, **changes))
    expected = {r["slice_index"]: predictor(r)["instances"] for r in records}
    assert all(len(found) == 10 for found in expected.values())

    png = read_scan(folder)  # the spacing is that of DL_info.csv
    assert png.spacing == pytest.approx(records[0]["spacing"])
    volume, spacing = png.volume, png.spacing
    write_dicom(tmp_path / "dicom", volume, spacing)
    write_nifti(tmp_path / "ct.nii.gz", volume, spacing)
    image = sitk.GetImageFromArray(volume[::-1])
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(tmp_path / "ct.mhd"))
    first = min(int(file.stem) for file in folder.glob("*.png"))
    for path in (folder, tmp_path / "dicom", tmp_path / "ct.nii.gz", tmp_path / "ct.mhd"):
        found = {d.slice_index: d for d in detect_slices(predictor, read_scan(path))}
        assert sorted(found) == list(range(16))
        for number, instances in expected.items():
            key = found[number - first]
            np.testing.assert_array_equal(key.boxes, instances.pred_boxes.tensor.double().numpy())
            np.testing.assert_array_equal(key.scores, instances.scores.double().numpy())
        if path is folder:
            all_found = found
        for index, detections in found.items():
            np.testing.assert_array_equal(detections.boxes, all_found[index].boxes)
            np.testing.assert_array_equal(detections.scores, all_found[index].scores)
