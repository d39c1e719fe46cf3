"""Prediction on the command line by a model of volumes, to all of its files."""

from lesion_d2.engine import Trainer, load_config
from lesion_d2.findings import decode_mask, read_findings
from lesion_d2.scans.writing import write_dicom, write_nifti
from lesion_d2.tools.predict.__main__ import main

import nibabel
import numpy as np
import pytest
import torch
from tiny_prediction import FILES, read_summary
from tiny_volume_run import SPACING, volume_args, volume_command

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("jsonschema")

# Thinner than a patch, and wider; a hardly trained model is sure of nothing.
SHAPE = (8, 32, 40)
OPTIONS = {
    "MODEL__DEVICE": "cpu",
    "MODEL__SEG_HEAD__PREDICT_MASKS": True,
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    "TEST__DETECTIONS_PER_IMAGE": 3,
}


@pytest.fixture
def run(tmp_path, quick_weights):
    """Weights of an untrained model whose segmentation is drawn."""
    torch.manual_seed(0)
    model = Trainer.build_model(load_config(volume_args(tmp_path, **OPTIONS)))
    state = model.state_dict()
    state["seg_predictor.weight"].normal_(std=2.0)
    state["seg_predictor.bias"].zero_()
    torch.save({"model": state}, tmp_path / "model_best.pth")
    return tmp_path


def test_dicom_and_nifti_have_the_same_findings_in_all_files(run, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)
    write_dicom(tmp_path / "dicom", hu, SPACING)
    write_nifti(tmp_path / "ct.nii.gz", hu, SPACING)
    command = volume_command(run, MODEL__WEIGHTS=run / "model_best.pth", **OPTIONS)
    scans = ["--input", str(tmp_path / "dicom"), str(tmp_path / "ct.nii.gz")]
    assert (
        main([*scans, "--output", str(tmp_path / "out"), "--score-threshold", "0", *command]) == 0
    )

    rows = read_summary(tmp_path / "out")
    found = {}
    for name, row in rows.items():
        folder = tmp_path / "out" / name
        findings = read_findings(folder / "findings.json")
        number = len(findings.findings)
        assert (int(row["slices"]), int(row["findings"]), row["error"]) == (8, number, "")
        assert 0 < number <= 3
        kind = findings.findings[0].slices[0].file.rpartition(".")[2]
        found[kind] = folder, findings
        made = {path.name for path in folder.iterdir()} - {*FILES, "status.json"}
        assert (
            made
            == {
                "dcm": {"structured_report.dcm", "segmentation.dcm"},
                "gz": {"labels.nii.gz"},
            }[kind]
        )
        assert all(f.measured_on == "mask" for f in findings.findings)

    dicom, nifti = (found[kind][1].findings for kind in ("dcm", "gz"))
    assert [(f.score, f.box, f.volume_mm3) for f in dicom] == [
        (f.score, f.box, f.volume_mm3) for f in nifti
    ]

    masks = [
        {s.slice_index: decode_mask(s.mask) for s in f.slices if s.mask is not None} for f in dicom
    ]
    _check_segmentation(found["dcm"][0] / "segmentation.dcm", masks)
    _check_label_map(found["gz"][0] / "labels.nii.gz", masks, [f.score for f in nifti])


def _check_segmentation(file, masks):
    """It has the pixels of all masks, in a frame for each of their slices."""
    segmentation = pydicom.dcmread(file)
    frames = segmentation.pixel_array.reshape(-1, *SHAPE[1:])
    count = sum(int(mask.sum()) for one in masks for mask in one.values())
    assert len(segmentation.SegmentSequence) == len(masks) and int((frames > 0).sum()) == count > 0
    assert len(frames) == sum(map(len, masks))


def _check_label_map(file, masks, scores):
    """It has the number of the best finding at each voxel, in the file's grid."""
    labels = np.asarray(nibabel.load(file).dataobj).transpose(2, 1, 0)
    expected = np.zeros(SHAPE, int)
    for i in np.argsort(scores, kind="stable"):
        for index, mask in masks[i].items():
            expected[index][mask] = i + 1
    np.testing.assert_array_equal(labels, expected)
