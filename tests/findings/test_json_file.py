"""findings.json: what is written is read again, and what follows no schema is refused."""

import json
from dataclasses import replace

from lesion_d2.findings import decode_mask, encode_mask, read_findings, write_findings
from lesion_d2.findings.json_file import SCHEMA_FILE

import numpy as np
import pytest
from pycocotools import mask as coco_mask

pytest.importorskip("jsonschema")


def test_what_is_read_is_what_was_written(tmp_path, made_up_findings):
    file = tmp_path / "findings.json"
    write_findings(file, made_up_findings)
    assert read_findings(file) == made_up_findings
    content = json.loads(file.read_text())
    assert content["schema"] == "lesion_d2/findings" and content["version"] == 1
    nothing = replace(made_up_findings, findings=(), messages=())
    write_findings(file, nothing)
    assert read_findings(file) == nothing


def test_every_field_is_described():
    def walk(node, path):
        for name, part in node.get("properties", {}).items():
            assert "description" in part or "$ref" in part, f"{path}/{name}"
            walk(part, f"{path}/{name}")

    schema = json.loads(SCHEMA_FILE.read_text())
    for name, part in {"": schema, **schema["$defs"]}.items():
        walk(part, name)


def _set(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("schema",), "other", "expected the schema 'lesion_d2/findings'"),
        (("version",), 2, "found version 2 of findings, expected 1"),
        (("findings", 0, "score"), "high", "findings/0/score: 'high' is not of type 'number'"),
        (("findings", 0, "diagnosis"), "cancer", "'diagnosis' was unexpected"),
        (("findings", 0, "measured_on"), "guess", "findings/0/measured_on"),
        (("findings", 0, "key_slice"), 5, "finding 1: found slice 5, expected less than 5"),
        (("findings", 0, "volume_mm3"), float("nan"), "invalid number NaN"),
        (("spacing",), [1, 1, 0], "spacing/2"),
        (("findings", 0, "slices", 0, "mask", "counts"), "00", "expected runs that fill 20 x 30"),
        (("findings", 0, "slices", 0, "mask", "size"), [30, 20], r"a mask of \[30, 20\]"),
    ],
)
def test_what_follows_no_schema_is_refused_in_one_line(
    tmp_path, made_up_findings, path, value, message
):
    file = tmp_path / "findings.json"
    write_findings(file, made_up_findings)
    content = json.loads(file.read_text())
    _set(content, path, value)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_findings(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_bad_number_leaves_the_old_file(tmp_path, made_up_findings):
    file = tmp_path / "findings.json"
    write_findings(file, made_up_findings)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="not finite"):
        write_findings(file, replace(made_up_findings, origin=(0.0, float("inf"), 0.0)))
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError, match="expected the findings of a scan"):
        read_findings(tmp_path / "nothing.json")


def test_masks_and_their_rle():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (64, 48)):
        for share in (0.0, 0.1, 0.9, 1.0):
            mask = rng.random(shape) < share
            rle = encode_mask(mask)
            assert np.array_equal(decode_mask(rle), mask)
            assert np.array_equal(coco_mask.decode(rle), mask)
    with pytest.raises(ValueError, match="found an RLE mask of 0 pixels in 0 runs"):
        decode_mask({"size": [4, 4], "counts": ""})
    with pytest.raises(ValueError, match="expected runs that fill 4 x 4"):
        decode_mask({"size": [4, 4], "counts": "zzzz"})
