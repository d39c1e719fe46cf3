"""Findings and reports are there whole or not at all, and one line tells which could not be."""

from lesion_d2.findings import write_coco, write_csv, write_findings, write_label_map
from lesion_d2.findings.report import IndexRow, write_index, write_report
from lesion_d2.tools.predict.outputs import OutputError, ScanRow, new_folder, write_status
from lesion_d2.tools.predict.summary import write_summary

import pytest
from full_disk import SIZE, check_refused, full_disk, left

ROW = ScanRow("a", error="x" * SIZE)


@pytest.mark.parametrize(
    "name, write",
    [
        ("findings.json", lambda file, scan, findings: write_findings(file, findings)),
        ("findings.csv", lambda file, scan, findings: write_csv(file, [findings] * 9)),
        ("coco_instances_results.json", lambda file, scan, findings: write_coco(file, [findings])),
        ("labels.nii.gz", write_label_map),
        ("report.html", write_report),
        ("index.html", lambda file, scan, findings: write_index(file, [IndexRow("a")])),
        ("status.json", lambda file, scan, findings: write_status(file.parent, ROW, "a")),
        ("summary.csv", lambda file, scan, findings: write_summary(file.parent, [ROW])),
    ],
)
def test_a_file_is_named_and_the_old_one_stays(tmp_path, small_scan, small_findings, name, write):
    check_refused(tmp_path / name, lambda file: write(file, small_scan, small_findings))


def test_the_folder_of_a_scan_is_there_with_all_files_or_not_at_all(tmp_path, small_findings):
    expected = r"^.*/a: cannot be written: .*File too large: '.*findings.json'$"
    with full_disk(), pytest.raises(OutputError, match=expected), new_folder(tmp_path / "a") as new:
        (new / "b.txt").write_text("b")
        write_findings(new / "findings.json", small_findings)
    assert left(tmp_path) == []
