"""Clean data sets have no fault; what is counted and written."""

import json
import os
import re
from pathlib import Path

from lesion_d2.data.coco import register_ct_coco
from lesion_d2.data_checks import (
    JSON_FILE,
    KINDS,
    PAGE_FILE,
    SHEET_FILE,
    check_data_set,
)
from lesion_d2.data_checks.faults import MAX_PLACES, FaultLog
from lesion_d2.utils import parallel

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from made_up_slices import annotation, body, rle, square, write_slice
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_a_clean_data_set_has_no_fault(sets):
    for one in sets[0].images:
        one["annotations"][0]["bbox"] = [17.5, 21.5, 30.5, 35.5]
        one["annotations"][0]["segmentation"] = rle(square(18, 22, 30, 35))
    report = check_data_set("made", workers=1)
    assert report.names == ("made_train", "made_val")
    assert not report.faults and not report.has_errors
    assert "no fault found" in report.text()


def test_counts_are_those_of_a_slow_count(tiny_phantom):
    report = check_data_set("phantom_volumes_train", workers=1)
    assert not report.has_errors
    counts, images = (
        report.counts["phantom_volumes_train"],
        DatasetCatalog.get("phantom_volumes_train"),
    )
    lesions = {}
    for image in images:
        for one in image["annotations"]:
            lesions.setdefault((image["volume"], one["lesion_id"]), []).append(
                one["diameters_mm"][0]
            )
    sizes = sorted(max(sizes) for sizes in lesions.values())
    values = [np.array(Image.open(image["file_name"])).astype(int) - 32768 for image in images]

    assert counts["lesions"] == len(lesions)
    assert counts["images"] == len(images)
    assert counts["images_without_lesion"] == sum(not image["annotations"] for image in images)
    assert counts["patients"] == len({image["patient"] for image in images})
    assert counts["volumes"] == len({image["volume"] for image in images})
    assert counts["hu"] == [min(v.min() for v in values), max(v.max() for v in values)]
    assert counts["sizes_mm"]["range"] == pytest.approx(
        [sizes[0], np.median(sizes), sizes[-1]], abs=1e-6
    )
    assert sum(counts["sizes_mm"]["histogram"].values()) == len(lesions)
    assert counts["sizes_mm"]["histogram"]["10 to 20"] == sum(10 <= s < 20 for s in sizes)


def test_what_is_read_first_makes_no_difference(sets, monkeypatch):
    for one in sets[0].images[1:4]:
        one["annotations"][0]["bbox"] = [0, 0, 9, 9]
    Path(sets[0].images[5]["file_name"]).write_bytes(b"")
    for one in sets[1].images[:2]:
        write_slice(Path(one["file_name"]), body(0))
    in_order = check_data_set("made", workers=1)
    assert {fault.kind: fault.count for fault in in_order.faults} == {
        "lesions_on_air": 3,
        "unreadable_file": 1,
        "image_in_two_splits": 2,
    }

    def last_first(function, items, _):
        yield from map(function, reversed(items))

    monkeypatch.setattr(parallel, "map_unordered", last_first)
    assert check_data_set("made").to_json() == in_order.to_json()


def test_files_hold_what_was_found(sets, tmp_path):
    sets[0].images[0]["annotations"][0]["segmentation"] = rle(square(18, 22, 30, 35))
    sets[0].images[1]["annotations"][0] = annotation(0, 0, 9, 9, row="<b>&")
    output = tmp_path / "out"
    sets[0].images[2]["file_name"] = os.fsdecode(b"/none/\xff.png")  # no UTF-8
    report = check_data_set("made", output=output, workers=1, pictures=3)
    assert sorted(os.listdir(output)) == sorted([JSON_FILE, SHEET_FILE, PAGE_FILE])
    content = json.loads((output / JSON_FILE).read_text())
    assert content == report.to_json() and content["errors"] == 2
    assert content["faults"][0]["places"] == list(report.faults[0].places)
    assert "/none/\\udcff.png" in content["faults"][0]["places"][0]
    sheet = np.array(Image.open(output / SHEET_FILE))
    assert sheet.shape[1] > 3 * 512 and (sheet == (240, 228, 66)).all(axis=2).any()
    page = (output / PAGE_FILE).read_text()
    assert "row &lt;b&gt;&amp;" in page and "<b>" not in page
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    check_data_set("made", output=output, workers=1, pictures=0)
    assert sorted(os.listdir(output)) == sorted([JSON_FILE, PAGE_FILE])


def test_a_log_keeps_the_first_places_in_any_order():
    logs = FaultLog(), FaultLog()
    numbers = np.random.default_rng(0).permutation(100).tolist()
    for log, order in zip(logs, (range(100), numbers), strict=True):
        for number in order:
            log.add("tiny_box", f"image {number}\n", number)
    assert logs[0].faults() == logs[1].faults()
    (fault,) = logs[1].faults()
    assert fault.count == 100
    assert fault.places == tuple(f"image {n}" for n in range(MAX_PLACES))


def test_every_kind_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "data_checks.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (error|warning) \| ([^|]+?) \| [^|]+ \|$", text, re.M)
    assert rows == [(name, *kind) for name, kind in KINDS.items()]


@pytest.mark.skipif(not (SHARED / "deeplesion_sample").is_dir(), reason="no real slices here")
def test_real_slices_have_no_fault(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SHARED))
    report = check_data_set("deeplesion_sample", workers=1)
    assert not report.faults
    assert report.counts["deeplesion_sample"]["lesions"] == 4


@pytest.mark.skipif(not (SHARED / "liver_slices").is_dir(), reason="no real slices here")
def test_real_boxes_alone_have_no_fault():
    root = SHARED / "liver_slices"
    options = {"hu_offset": 32768, "patient": r"(\d+)_"}
    register_ct_coco("liver_checked", root / "annotations.json", root, **options)
    try:
        report = check_data_set("liver_checked", workers=1)
    finally:
        DatasetCatalog.remove("liver_checked")
        MetadataCatalog.remove("liver_checked")
    assert not report.faults
    counts = report.counts["liver_checked"]
    assert counts["patients"] == 11 and counts["lesions"] == 24
