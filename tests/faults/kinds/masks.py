"""Files of pseudo masks, journals of ``prepare_masks`` and masks in 3-D of the phantoms."""

import copy
import os
from functools import cache
from pathlib import Path

from lesion_d2.data.phantoms.volumes import load_volumes
from lesion_d2.data.pseudo_masks import PseudoMask, ellipse_mask
from lesion_d2.data.pseudo_masks.files import mask_annotation
from lesion_d2.structures.rle import decode_mask, encode_mask
from lesion_d2.tools.prepare_masks import prepare_masks

import numpy as np

from ..case import REFUSED, Case, Kind
from ..damage import NO_JSON, as_json, change_tree, replaced, without
from ..runs import DATASET, lesion_masks, prepare, set_files, start_run
from .csv_rows import CSV, HEIGHT, WIDTH, png_files

_LESIONS = ((6, 8, 14, 8, 10, 5, 10, 11), (6, 8, 14, 8, 10, 5, 10, 11))
_IDS = ("000001_01_01_010", "000001_01_01_012")
_INFO = {"method": "ellipse", "dataset": DATASET, "window": "DICOM"}


@cache
def _true_masks() -> list[np.ndarray]:
    return [ellipse_mask(np.subtract(ends, 1), HEIGHT, WIDTH) for ends in _LESIONS]


@cache
def mask_file() -> dict:
    """A good file."""
    entries = [
        mask_annotation(
            name,
            {"row": row, "recist": [float(x) for x in np.subtract(ends, 1)]},
            PseudoMask(mask, False),
        )
        for row, name, ends, mask in zip((2, 3), _IDS, _LESIONS, _true_masks(), strict=True)
    ]
    return {
        "info": {"format": "lesion_d2 pseudo masks", "version": 1, **_INFO},
        "annotations": entries,
    }


def read_masks(folder: Path) -> list[np.ndarray]:
    """What a run with a file of masks learns."""
    prepare()
    files = f"('{folder / 'masks.json'}',)"
    return lesion_masks(start_run(folder, INPUT__PSEUDO_MASK_FILES=files))


def read_journal(folder: Path) -> list[np.ndarray]:
    """What ``prepare_masks`` makes of a journal that it goes on from."""
    prepare()
    os.environ["DETECTRON2_DATASETS"] = os.fspath(folder)
    prepare_masks(DATASET, "ellipse", os.fspath(folder / "masks.json"), workers=1)
    return read_masks(folder)


def _masks(name: str, content: bytes, **options) -> Case:
    return Case(name, {"masks.json": content, **set_files()}, read_masks, **options)


def _journal(name: str, content: bytes, **options) -> Case:
    files = {"masks.json.partial": content, **set_files()}
    return Case(f"journal: {name}", files, read_journal, **options)


def _journal_lines() -> list[dict]:
    entry = mask_file()["annotations"][0]
    return [{"info": _INFO}, {"image_id": entry["image_id"], "annotations": [entry]}]


def _lines(lines: list) -> bytes:
    return b"".join(as_json(line) + b"\n" for line in lines)


# Masks that a file lacks are made, and images that changed since a journal are done anew.
_RIGHT_OR_REFUSED = {"expected": _true_masks(), "may_refuse": True}

_SEGMENTATIONS = (
    ("size 100000 x 100000", {"size": [100000, 100000]}),
    ("size 2^31 x 2^31", {"size": [2**31, 2**31]}),
    ("size x", {"size": "x"}),
    ("size of one", {"size": [HEIGHT]}),
    ("size -1", {"size": [-1, -1]}),
    ("size of NaN", {"size": [float("nan"), WIDTH]}),
    ("size 1e29", {"size": [1e29, 1e29]}),
    ("size 32 x 32", {"size": [32, 32]}),
    ("size turned", {"size": [WIDTH, HEIGHT]}),
    ("counts of nothing", {"counts": ""}),
    ("counts of other letters", {"counts": "é\x00~~~"}),
    ("counts that go on", {"counts": "oooooooooooooooooooooooo"}),
    ("counts as a list", {"counts": [5, 5, 470]}),
    ("counts of a number", {"counts": 5}),
)


def known() -> list[Case]:
    """What was found."""
    good = mask_file()
    entry = ("annotations", 0)
    rle = (*entry, "segmentation")
    cut = good["annotations"][0]["segmentation"]["counts"][:-3]
    cases = [_masks("as it should be", as_json(good), expected=_true_masks())]
    for name, change in (*_SEGMENTATIONS, ("cut counts", {"counts": cut})):
        changed = {**good["annotations"][0]["segmentation"], **change}
        cases.append(_masks(name, as_json(replaced(good, rle, changed)), place="0"))
        line = replaced(_journal_lines(), (1, "annotations", 0, "segmentation"), changed)
        cases.append(_journal(name, _lines(line), **_RIGHT_OR_REFUSED))
    for value in ("x", [[]], {}, None, 5, [1] * 7, [None] * 8, ["a"] * 8, [float("nan")] * 8):
        name = f"recist {str(value)[:16]}"
        cases.append(_masks(name, as_json(replaced(good, (*entry, "recist"), value))))
        line = replaced(_journal_lines(), (1, "annotations", 0, "recist"), value)
        cases.append(_journal(name, _lines(line), **_RIGHT_OR_REFUSED))
    cases += [_masks(name, data) for name, data in NO_JSON]
    cases += [
        _masks("an image that lacks", as_json(without(good, entry)), **_RIGHT_OR_REFUSED),
        _masks("another row", as_json(replaced(good, (*entry, "row"), 7))),
        _masks("an entry twice", as_json(_doubled(good))),
        _masks(
            "an empty mask",
            as_json(replaced(good, rle, encode_mask(np.zeros((HEIGHT, WIDTH), bool)))),
            expected=[np.zeros((HEIGHT, WIDTH), bool), _true_masks()[1]],
            may_refuse=True,
        ),
        _masks("annotations 5", as_json({**good, "annotations": 5})),
        _masks("annotations null", as_json({**good, "annotations": None})),
        _masks("another version", as_json(replaced(good, ("info", "version"), 7))),
        _masks("of GrabCut", as_json(replaced(good, ("info", "method"), "grabcut"))),
    ]
    lines = _journal_lines()
    good_lines = _lines(lines)
    cases += [
        _journal("as it should be", good_lines, expected=_true_masks()),
        _journal("empty", b"", expected=_true_masks()),
        _journal("a half line", good_lines + b'{"image_', expected=_true_masks()),
        _journal("annotations 5", _lines([lines[0], {**lines[1], "annotations": 5}])),
        _journal("annotations null", _lines([lines[0], {**lines[1], "annotations": None}])),
        _journal("image_id a list", _lines([lines[0], {**lines[1], "image_id": [1]}])),
        _journal("a list", _lines([lines[0], [1]])),
        _journal("another data set", _lines([{"info": {**_INFO, "dataset": "x"}}, lines[1]])),
        _journal("10,000 nested lists", good_lines + b"[" * 10_000 + b"\n"),
        _journal("5,000 digits", good_lines + b"9" * 5_000 + b"\n"),
        _journal("zero bytes", good_lines + bytes(40) + b"\n"),
    ]
    return cases


def _doubled(tree: dict) -> dict:
    tree = copy.deepcopy(tree)
    rest = encode_mask(~_true_masks()[0])
    tree["annotations"].append({**tree["annotations"][0], "segmentation": rest})
    return tree


def draw(rng: np.random.Generator) -> Case:
    """An item that is removed or strange, in a file or a journal."""
    if rng.random() < 0.5:
        tree, _, name = change_tree(rng, mask_file())
        return _masks(name, as_json(tree), **_RIGHT_OR_REFUSED)
    tree, _, name = change_tree(rng, _journal_lines())
    return _journal(name, _lines(tree), **_RIGHT_OR_REFUSED)


KIND = Kind("masks", known, draw)


# --- true_volumes.json ----------------------------------------------------------------------------


@cache
def _volume_tree() -> list:
    mask = ellipse_mask(np.subtract(_LESIONS[0], 1), HEIGHT, WIDTH)
    rle = encode_mask(mask)
    return [
        {"image_id": name, "row": row, "masks": {str(number): rle}}
        for row, name, number in zip((2, 3), _IDS, (10, 12), strict=True)
    ]


def read_volumes(folder: Path) -> list:
    """The masks of a phantom's lesions on every slice."""
    return [
        [image["image_id"], [decode_mask(a["true_segmentation"]) for a in image["annotations"]]]
        for image in load_volumes(folder, "train")
    ]


def _volumes(name: str, content: bytes, **options) -> Case:
    rows = [CSV.row(), CSV.row(File_name="000001_01_01_012.png")]
    files = {**png_files(), "DL_info.csv": CSV.text(rows), "phantom.json": b"{}"}
    return Case(name, {"true_volumes.json": content, **files}, read_volumes, **options)


def _right_volumes() -> list:
    masks = [
        decode_mask(entry["masks"][k])
        for entry, k in zip(_volume_tree(), ("10", "12"), strict=True)
    ]
    return [[name, [mask]] for name, mask in zip(_IDS, masks, strict=True)]


def known_volumes() -> list[Case]:
    """What was found."""
    tree = _volume_tree()
    rle = (0, "masks", "10")
    cases = [_volumes("as it should be", as_json(tree), expected=_right_volumes())]
    for name, change in _SEGMENTATIONS:
        cases.append(
            _volumes(name, as_json(replaced(tree, rle, {**tree[0]["masks"]["10"], **change})))
        )
    cases += [_volumes(name, data) for name, data in NO_JSON]
    for key in ("999999999", "-1", "x", "1" * 5000, "\u0661\u0660"):
        masks = {**tree[0]["masks"], key: tree[0]["masks"]["10"]}
        cases.append(_volumes(f"slice {key[:12]}", as_json(replaced(tree, (0, "masks"), masks))))
    return [*cases, _volumes("a row that lacks", as_json(tree[:1]))]


def draw_volumes(rng: np.random.Generator) -> Case:
    """An item that is removed or strange."""
    tree, _, name = change_tree(rng, _volume_tree())
    return _volumes(name, as_json(tree), expected=REFUSED)


VOLUMES = Kind("true masks", known_volumes, draw_volumes)
