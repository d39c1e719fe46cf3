"""Annotations of sub-volumes: JSON and pickles as published, and names of volumes."""

import copy
import pickle
from pathlib import Path

from lesion_d2.data.deeplesion.annotation_files import read_annotations
from lesion_d2.data.deeplesion.subvolumes import load_subvolumes

import numpy as np

from ..case import Case, Kind
from ..damage import NO_JSON, as_json, change_tree, paths_of, replaced

_NAMES = ("000001_01_01_008-014", "000002_01_03_005-009")


def _tree() -> dict:
    lesion = {"box": [3.5, 2.5, 16.5, 13.5], "slices": [9, 11], "key_slice": 10}
    other = {"box": [4.0, 4.0, 9.0, 9.5], "slices": [5, 5], "key_slice": None}
    return {
        "format": "lesion_d2 volumes",
        "volumes": {_NAMES[0]: [lesion, {**lesion, "box": [1, 1, 5, 6]}], _NAMES[1]: [other]},
    }


def _value() -> dict:
    return {
        _NAMES[0]: [[[3.5, 2.5, 16.5, 13.5], 9, 11, 10], [[1, 1, 5, 6], 9, 11, 10]],
        _NAMES[1]: [[[4.0, 4.0, 9.0, 9.5], 5, 5, None]],
    }


def _boxes() -> dict:
    """As published: boxes on key slices, whose numbers are those on disk."""
    return {
        f"{_NAMES[0]}.annot": {10: [[3.5, 2.5, 16.5, 13.5, 10, 10]]},
        f"{_NAMES[1]}.annot": {7: [[4.0, 4.0, 9.0, 9.5, 7, 7], [1, 2, 3, 4, 7, 7]]},
    }


def _value_of_boxes() -> dict:
    return {
        _NAMES[0]: [[[3.5, 2.5, 16.5, 13.5], 10, 10, 10]],
        _NAMES[1]: [[[4.0, 4.0, 9.0, 9.5], 7, 7, 7], [[1, 2, 3, 4], 7, 7, 7]],
    }


def _read(file: Path) -> dict:
    found = read_annotations(file)
    return {
        str(name): [[list(x.box), x.first, x.last, x.key_slice] for x in lesions]
        for name, lesions in found.items()
    }


def read_json_file(folder: Path) -> dict:
    """Of JSON."""
    return _read(folder / "volumes.json")


def read_pickle(folder: Path) -> dict:
    """Of a pickle."""
    return _read(folder / "volumes.pkl")


def load(folder: Path) -> int:
    """All slices of the volumes, from their folders."""
    return len(load_subvolumes(folder, folder / "volumes.json"))


def _json(name: str, content: bytes, **options) -> Case:
    return Case(name, {"volumes.json": content}, read_json_file, **options)


def _pickle(name: str, content: object, protocol: int = 4, **options) -> Case:
    if not isinstance(content, bytes):
        content = pickle.dumps(content, protocol)
    return Case(f"pickle: {name}", {"volumes.pkl": content}, read_pickle, **options)


_BAD_NAMES = (
    "x",
    "",
    "1_1_1_5",
    "1_1_1_9-5",
    "\u0661_\u0661_\u0661_\u0665-\u0669",
    "1_1_1_5-9.exe",
    "../1_1_1_5-9",
    "1_1_1_5-9\n",
    "1_1_1_0-" + "9" * 5000,
)
_BAD_LESIONS = (
    ("box", [1, 2, 3]),
    ("box", [5, 5, 1, 1]),
    ("box", [1, 2, 3, float("nan")]),
    ("box", ["a"] * 4),
    ("box", [[]] * 4),
    ("box", None),
    ("box", [True, False, True, True]),
    ("slices", [11, 9]),
    ("slices", [0, 10**9]),
    ("slices", [9.5, 11]),
    ("slices", [9]),
    ("slices", [None, None]),
    ("slices", [10**400, 10**400]),
    ("key_slice", 20),
    ("key_slice", "10"),
    ("key_slice", [10]),
    ("key_slice", 1e400),
)


def known() -> list[Case]:
    """What was found."""
    tree, boxes = _tree(), _boxes()
    cases = [
        _json("as it should be", as_json(tree), expected=_value()),
        _pickle("as it should be", boxes, expected=_value_of_boxes()),
        _pickle("protocol 0", boxes, 0, expected=_value_of_boxes()),
        _pickle("arrays", _as_arrays(boxes), expected=_value_of_boxes()),
        *(_json(name, data) for name, data in NO_JSON),
    ]
    for key, value in _BAD_LESIONS:
        changed = replaced(tree, ("volumes", _NAMES[0], 0, key), value)
        cases.append(_json(f"{key} {str(value)[:20]}", as_json(changed), place=_NAMES[0]))
    for name in _BAD_NAMES:
        volumes = {**tree["volumes"], name: []}
        cases.append(_json(f"name {name[:20]!r}", as_json({**tree, "volumes": volumes})))
        cases.append(_pickle(f"name {name[:20]!r}", {**boxes, name: {}}))
    for number in (5 * 10**7, 10**9):
        huge = {"format": "lesion_d2 volumes", "volumes": {f"000001_01_01_0-{number}": []}}
        files = {"volumes.json": as_json(huge), "Images_png/000001_01_01/010.png": b"x"}
        cases.append(Case(f"a name of {number} slices", files, load))
        nifti = {**files, f"Images_nifti/000001_01_01_0-{number}.nii.gz": b"x"}
        del nifti["Images_png/000001_01_01/010.png"]
        cases.append(Case(f"a NIfTI's name of {number} slices", nifti, load))
    rows = [[1, 2, 3, 4, 10, 10]]
    bad = (
        ("a row of five", {10: [[1, 2, 3, 4, 10]]}),
        ("rows of text", {10: ["abcdef"]}),
        ("rows None", {10: None}),
        ("rows 5", 5),
        ("a slice of text", {"x": rows}),
        ("another slice", {11: rows}),
        ("nested", {10: [rows]}),
        ("NaN", {10: [[float("nan")] * 6]}),
        ("an integer of 10,000 bits", {10: [[1, 2, 3, 2**10_000, 10, 10]]}),
        ("far away", {10**30: [[1, 2, 3, 4, 10**30, 10**30]]}),
        ("complex", {10: np.zeros((1, 6), complex)}),
        ("bytes", {10: [b"123456"]}),
    )
    return [*cases, *(_pickle(name, {**boxes, _NAMES[0]: value}) for name, value in bad)]


def _as_arrays(boxes: dict) -> dict:
    return {name: {k: np.array(v, float) for k, v in b.items()} for name, b in boxes.items()}


def draw(rng: np.random.Generator) -> Case:
    """An item that is removed or strange; numbers that are moved."""
    way = rng.random()
    if way < 0.6:
        tree, _, name = change_tree(rng, _tree())
        return _json(name, as_json(tree), expected=_after(tree), may_refuse=True)
    tree = copy.deepcopy(_boxes())
    paths = [p for p in paths_of(tree) if isinstance(_at(tree, p), (int, float))]
    path = paths[int(rng.integers(len(paths)))]
    value = (None, "x", -1, float("nan"), 1e29, [], {}, (1,), b"x")[int(rng.integers(9))]
    tree = replaced(tree, path, value)
    is_corner = path[-1] < 2 and value == -1  # x1 or y1 beside the image
    if is_corner:
        expected = _value_of_boxes()
        expected[path[0].removesuffix(".annot")][path[2]][0][path[-1]] = -1
        return _pickle(f"{path} = {value}", tree, expected=expected)
    return _pickle(f"{path} = {value!r}", tree)


def _at(tree: object, path: tuple) -> object:
    for key in path:
        tree = tree[key]
    return tree


def _after(tree: dict) -> object:
    """The value of a changed tree, read by its plain meaning; None where it has none."""
    try:
        return {
            name: [
                [list(map(float, x["box"])), x["slices"][0], x["slices"][1], x["key_slice"]]
                for x in lesions
            ]
            for name, lesions in tree["volumes"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None


KIND = Kind("annotations", known, draw)
