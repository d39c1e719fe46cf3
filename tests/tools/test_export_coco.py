import json

from lesion_d2.data.catalog import load_records
from lesion_d2.data.coco import load_ct_coco
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.importers.coco import list_coco
from lesion_d2.tools.export_coco import main

import numpy as np


def test_the_command_says_what_it_wrote_and_where(tiny_phantom, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["phantom_val", "--output", str(output), "--images", "png8", "--window", "-160", "240"]
    assert main([*words, "--workers", "1"]) == 0
    said = capsys.readouterr().out
    content = json.loads((output / "annotations.json").read_text())
    count = f"{len(content['images'])} images, {len(content['annotations'])} annotations"
    assert f"annotations.json: {count}\n" in said and f"are relative to {output}\n" in said
    assert all((output / image["file_name"]).is_file() for image in content["images"])
    assert all(a["segmentation"] == [] for a in content["annotations"])


def test_phantoms_in_their_own_files(tiny_phantom, tmp_path):
    assert main(["phantom_volumes_val", "--output", str(tmp_path / "out")]) == 0
    file, root = tmp_path / "out" / "annotations.json", tiny_phantom / "phantom" / "Images_png"
    records, found = load_records("phantom_volumes_val"), load_ct_coco(file, root)
    assert (read_slice(found[3]["file_name"]) == read_slice(records[3]["file_name"])).all()
    boxes = [[a["bbox"] for d in dicts for a in d["annotations"]] for dicts in (records, found)]
    np.testing.assert_allclose(*boxes, atol=1e-5)
    volumes = [case.read().volume for case in list_coco(file, root).cases]
    assert len(volumes) == len({d["volume"] for d in records})
    lesions = {(d["volume"], a["lesion_id"]) for d in records for a in d["annotations"]}
    assert sum(len(volume.lesions) for volume in volumes) == len(lesions)


def test_errors_are_a_line(tmp_path, capsys):
    assert main(["nothing", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "lesion_d2.tools.export_coco: error: found data set 'nothing', which is not registered"
    )
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()
