"""JSON that the project wrote itself: results, hard negatives, findings, tables, rankings."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from lesion_d2.engine.checkpoint_files.best_checkpoints import checkpoint_files
from lesion_d2.evaluation.operating_points import read_operating_points
from lesion_d2.findings import (
    Algorithm,
    Diameter,
    Finding,
    Findings,
    OperatingPoint,
    SliceFinding,
    encode_mask,
)
from lesion_d2.findings.json_file import read_findings, write_findings
from lesion_d2.structures.rle import decode_mask
from lesion_d2.tools.visualize.negatives import read_mined
from lesion_d2.tools.visualize.results import read_results

import numpy as np

from ..case import ANY, REFUSED, Case, Kind
from ..damage import NO_JSON, as_json, change_tree, replaced
from ..runs import DATASET, prepare
from .csv_rows import HEIGHT, WIDTH, lesion_mask

_IDS = ("000001_01_01_010", "000001_01_01_012")
_NAME = "file.json"
_RECORDS = [{"image_id": name, "height": HEIGHT, "width": WIDTH, "file_name": "x"} for name in _IDS]


# --- detections -----------------------------------------------------------------------------------


def _results() -> list[dict]:
    entry = {
        "image_id": _IDS[0],
        "category_id": 0,
        "bbox": [6.0, 5.0, 6.0, 4.0],
        "score": 0.5,
        "segmentation": encode_mask(lesion_mask()),
    }
    return [entry, {**entry, "score": 0.25, "image_id": _IDS[1]}]


def _digest(instances) -> list:
    fields = [
        [round(x, 4) for x in instances.pred_boxes.tensor.flatten().tolist()],
        [round(x, 6) for x in instances.scores.tolist()],
        instances.pred_classes.tolist(),
    ]
    if instances.has("pred_masks_rle"):
        fields.append([decode_mask(rle) for rle in instances.pred_masks_rle])
    return fields


def read_detections(folder: Path) -> list:
    """What pictures show of a run's detections."""
    prepare()
    found = read_results(str(folder / _NAME), _RECORDS, DATASET)
    return [_digest(found[name]) for name in _IDS]


def _detections_value() -> list:
    return [[[6.0, 5.0, 12.0, 9.0], [s], [0], [lesion_mask()]] for s in (0.5, 0.25)]


def _negatives() -> list[dict]:
    return [{**entry, "mask_iou": 0.1, "category_id": 1} for entry in _results()]


def read_negatives(folder: Path) -> int:
    """How many hard negatives a training mined."""
    prepare()
    return len(read_mined(str(folder / _NAME), _RECORDS, DATASET))


# --- findings -------------------------------------------------------------------------------------


@cache
def _findings() -> dict:
    mask = encode_mask(lesion_mask())
    slices = tuple(
        SliceFinding(z, (5.5, 4.5, 11.5, 8.5), score, mask, f"{z}.dcm")
        for z, score in ((2, 0.75), (3, 0.5))
    )
    finding = Finding(
        number=1,
        score=0.75,
        category="lesion",
        category_id=0,
        box=(5.5, 4.5, 2.0, 11.5, 8.5, 3.0),
        box_mm=((-7.6, -27.2, -23.0), (0.4, -23.2, -13.0)),
        key_slice=2,
        slices=slices,
        volume_mm3=320.0,
        long_diameter=Diameter(8.0, 2, ((5.5, 6.0), (11.5, 6.0))),
        short_diameter=Diameter(4.0, 2, ((8.0, 4.5), (8.0, 8.5))),
        measured_on="mask",
    )
    content = Findings(
        scan_name="scan",
        shape=(5, HEIGHT, WIDTH),
        spacing=(0.8, 0.8, 5.0),
        origin=(-15.2, -30.0, -5.5),
        direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
        findings=(finding,),
        algorithm=Algorithm(version="0.1.0", weights="model.pth", weights_sha256="a" * 64),
        operating_point=OperatingPoint(0.4, 0.5, "image", "phantom_test"),
        messages=(),
    )
    with TemporaryDirectory() as folder:
        write_findings(Path(folder, _NAME), content)
        return json.loads(Path(folder, _NAME).read_bytes())


def read_findings_again(folder: Path) -> dict:
    """Findings, written once more: what was read is what the file holds."""
    write_findings(folder / "again.json", read_findings(folder / _NAME))
    return json.loads((folder / "again.json").read_bytes())


# --- rates and rankings ---------------------------------------------------------------------------


def _froc() -> dict:
    point = {"rate": 0.5, "score_threshold": 0.25, "sensitivity": 50.0}
    stored = {"dataset": "phantom_test", "unit": "image", "last_rate": 9.5, "points": [point]}
    return {"operating_points": stored}


def read_points(folder: Path) -> list:
    """Thresholds of an evaluation."""
    found = read_operating_points(folder / _NAME)
    return [found.dataset, found.unit, found.last_rate, dict(found.thresholds)]


def _ranking() -> list[dict]:
    entry = {"file": "model_0000001.pth", "metric": "a", "value": 1.0, "iteration": 1}
    return [{**entry, "run_id": "x"}]


def read_best(folder: Path) -> list[str]:
    """The checkpoints of an ensemble."""
    (folder / "best.json").symlink_to(_NAME)
    return [Path(name).name for name in checkpoint_files([str(folder)])]


# name -> tree, reader, value.
_FILES: dict[str, tuple[Callable[[], object], Callable[[Path], object], Callable[[], object]]] = {
    "results": (_results, read_detections, _detections_value),
    "hard negatives": (_negatives, read_negatives, lambda: 2),
    "findings": (_findings, read_findings_again, _findings),
    "operating points": (
        _froc,
        read_points,
        lambda: ["phantom_test", "image", 9.5, {0.5: 0.25}],
    ),
    "ranking": (_ranking, read_best, lambda: ["model_0000001.pth"]),
}


def _case(kind: str, name: str, content: bytes, **options) -> Case:
    reader = _FILES[kind][1]
    return Case(f"{kind}: {name}", {_NAME: content, "outside/x.pth": b"x"}, reader, **options)


_RESULT_VALUES = (
    ("score", (1e29, float("nan"), "x", None, True, [], 10**400, "9" * 5000)),
    ("category_id", (None, "x", 7, -1, 0.5, [])),
    ("image_id", (None, [], {}, "absent", 5)),
    ("bbox", (None, [], [1, 2, 3], [1, 2, -3, 4], [float("inf")] * 4, [1e300] * 4, "abcd")),
    (
        "segmentation",
        (
            None,
            5,
            {"size": [100000, 100000], "counts": "1"},
            {"size": [HEIGHT, WIDTH], "counts": ""},
            {"size": [HEIGHT, WIDTH], "counts": "oooooooo"},
            {"size": [WIDTH, HEIGHT], "counts": "1"},
            {"size": [HEIGHT, WIDTH], "counts": [480]},
        ),
    ),
)


def known() -> list[Case]:
    """What was found."""
    cases = []
    for kind, (tree, _, value) in _FILES.items():
        cases.append(_case(kind, "as it should be", as_json(tree()), expected=value()))
        cases += [_case(kind, name, data) for name, data in NO_JSON]
    for kind in ("results", "hard negatives"):
        tree = _FILES[kind][0]()
        for key, values in _RESULT_VALUES:
            for value in values:
                name = f"{key} {str(value)[:40]}"
                content = as_json(replaced(tree, (0, key), value))
                cases.append(_case(kind, name, content, place="entry 0"))
    names = ("/etc/passwd", "../outside/x.pth", "outside/x.pth", "", 5, None, "x\x00.pth")
    for name in names:
        content = as_json(replaced(_ranking(), (0, "file"), name))
        cases.append(_case("ranking", f"file {name!r}", content))
    return cases


def draw(rng: np.random.Generator) -> Case:
    """An item that is removed or strange."""
    kind = list(_FILES)[int(rng.integers(len(_FILES)))]
    tree, path, name = change_tree(rng, _FILES[kind][0]())
    content = as_json(tree)
    if kind == "findings":  # what is read has to be what the file holds
        is_json = "NaN" not in content.decode() and "Infinity" not in content.decode()
        expected = json.loads(content) if is_json else REFUSED
        return _case(kind, name, content, expected=expected, may_refuse=True)
    return _case(kind, name, content, expected=_after(kind, tree, path), may_refuse=True)


def _after(kind: str, tree: object, path: tuple) -> object:
    """The value of a changed tree, where it has a plain meaning; ANY where it has several."""
    if kind == "results" and len(path) == 1:  # an entry is gone
        value = _detections_value()
        value[path[0]] = [[], [], []]
        return value
    free = path[-1] in ("score", "sensitivity", "dataset", "segmentation", "mask_iou")
    free |= path[1:2] == ("bbox",) and path[2:] in ((0,), (1,))  # another corner, such as -1
    free |= kind in ("hard negatives", "operating points", "ranking") and len(path) <= 3
    return ANY if free else _FILES[kind][2]()


KIND = Kind("reports", known, draw)
