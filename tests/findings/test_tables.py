"""CSV and COCO's results."""

import csv
import json
from dataclasses import replace

from lesion_d2.findings import write_coco, write_csv

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO


def test_csv_has_a_row_a_finding(tmp_path, made_up_findings):
    other = replace(made_up_findings, scan_name='b, "quoted"')
    nothing = replace(made_up_findings, findings=())
    write_csv(tmp_path / "findings.csv", [made_up_findings, nothing, other])
    with open(tmp_path / "findings.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["scan"] for row in rows] == ["CT_<b>ä", 'b, "quoted"']
    row = rows[0]
    assert (row["number"], row["category"], row["measured_on"]) == ("1", "lesion", "mask")
    assert float(row["score"]) == 0.75 and row["key_slice"] == "2"
    assert (row["first_slice"], row["last_slice"], row["diameters_slice"]) == ("2", "3", "2")
    assert [float(row[c]) for c in ("x1", "y1", "x2", "y2")] == [9.5, 3.5, 19.5, 8.5]
    assert [float(row[c]) for c in ("z1_mm", "z2_mm")] == [-23.0, -13.0]
    assert float(row["long_diameter_mm"]) == 8 and float(row["short_diameter_mm"]) == 4
    assert float(row["volume_mm3"]) == 320


def test_coco_results_are_read_by_pycocotools(tmp_path, made_up_findings):
    (finding,) = made_up_findings.findings
    file = tmp_path / "coco_instances_results.json"
    write_coco(file, [made_up_findings])
    results = json.loads(file.read_text())
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [
        ("CT_<b>ä_002", 0, 0.75),
        ("CT_<b>ä_003", 0, 0.5),
    ]
    assert results[0]["bbox"] == [9.5, 3.5, 10.0, 5.0]
    assert coco_mask.decode(results[0]["segmentation"]).sum() == 50

    truth = COCO()
    truth.dataset = {
        "images": [{"id": r["image_id"], "width": 30, "height": 20} for r in results],
        "categories": [{"id": 0, "name": "lesion"}],
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(str(file))
    assert [a["area"] for a in loaded.anns.values()] == [50, 50]

    # Slices of PNG files have the names that they have in data sets, and boxes need no masks.
    slices = tuple(
        replace(entry, mask=None, file=f"Images_png/000001_01_01/{number:03d}.png")
        for entry, number in zip(finding.slices, (109, 110), strict=True)
    )
    scan = replace(
        made_up_findings, scan_name="000001_01_01", findings=(replace(finding, slices=slices),)
    )
    write_coco(file, [scan])
    results = json.loads(file.read_text())
    assert [r["image_id"] for r in results] == ["000001_01_01_109", "000001_01_01_110"]
    assert all("segmentation" not in result for result in results)
