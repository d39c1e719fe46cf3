"""DICOM results are there whole or not at all, and one line tells which could not be."""

from lesion_d2.scans import read_scan

import pytest
from dicom_results import findings_of
from dicom_series import write_series
from full_disk import check_refused

pytest.importorskip("highdicom")


def test_reports_and_segmentations(tmp_path):
    from lesion_d2.findings.dicom import write_segmentation, write_structured_report

    write_series(tmp_path / "ct")
    scan = read_scan(tmp_path / "ct")
    findings = findings_of(scan)
    for name, write in (
        ("structured_report.dcm", write_structured_report),
        ("segmentation.dcm", write_segmentation),
    ):
        folder = tmp_path / name
        folder.mkdir()
        check_refused(folder / name, lambda file, write=write: write(file, scan, findings))
