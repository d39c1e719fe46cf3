"""Data sets of volumes: ``volume_set.json`` and files of voxels."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from lesion_d2.data.slices.ct import read_slice
from lesion_d2.data.volume_set.catalog import register_volume_sets
from lesion_d2.data.volume_set.dicts import load_volume_set
from lesion_d2.structures.rle import decode_mask

import numpy as np
from made_up_sets import write_made_up_set

from ..case import ANY, Case, Kind
from ..damage import NO_JSON, as_json, change_tree, damage, replaced

_JSON = "set/volume_set.json"


@cache
def _files() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        write_made_up_set(root)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return {f"set/{path.relative_to(root)}": path.read_bytes() for path in paths}


@cache
def _tree() -> dict:
    return json.loads(_files()[_JSON])


def read(folder: Path) -> list:
    """All slices with their voxels and annotations."""
    root = folder / "set"
    return [
        [
            image["image_id"],
            image["spacing"] and list(image["spacing"]),
            image["patient"],
            list(image["window"]),
            read_slice(image["file_name"]),
            [_annotation(a) for a in image["annotations"]],
        ]
        for image in load_volume_set(root, every_slice=True)
    ]


def _annotation(annotation: dict) -> list:
    mask = annotation.get("segmentation")
    return [
        list(annotation["bbox"]),
        annotation["category_id"],
        annotation["row"],
        None if mask is None else decode_mask(mask),
        list(annotation.get("recist", ())),
        list(annotation.get("diameters_mm", ())),
        annotation.get("iscrowd", 0),
    ]


def read_catalog(folder: Path) -> list[str]:
    """Names that a folder of data sets gets: a damaged one is left out, with a line in the log."""
    return register_volume_sets(folder)


@cache
def _value() -> list:
    with TemporaryDirectory() as folder:
        _case("", _files()[_JSON]).write(Path(folder))
        return read(Path(folder))


def _case(name: str, content: bytes, more: dict | None = None, **options) -> Case:
    files = {**_files(), _JSON: content, **(more or {})}
    return Case(name, files, read, **options)


def known() -> list[Case]:
    """What was found."""
    tree, good = _tree(), _files()[_JSON]
    value = _value()
    cases = [_case("as it should be", good, expected=value)]
    cases += [_case(name, data) for name, data in NO_JSON]
    cases += [
        Case(f"registered: {name}", {_JSON: data}, read_catalog, expected=[])
        for name, data in NO_JSON
    ]
    names = (
        "../outside/a.b2nd",
        "/etc/passwd",
        "images/../../outside/a.b2nd",
        "",
        ".",
        "absent.b2nd",
    )
    outside = {"outside/a.b2nd": _files()["set/images/a.b2nd"]}
    for name in names:
        changed = replaced(tree, ("volumes", 0, "image"), name)
        cases.append(_case(f"image {name!r}", as_json(changed), outside))
    for shape in ([6, 48, 63], [10**9] * 3, [0, 0, 0], [6, 48], "x", [1.5, 2, 3], [10**400] * 3):
        changed = replaced(tree, ("volumes", 0, "shape"), shape)
        cases.append(_case(f"shape {str(shape)[:30]}", as_json(changed)))
    masks = tree["volumes"][0]["lesions"][0]["masks"]
    key = next(iter(masks))
    for counts in ("", "ooooooooooo", masks[key][:-2], "é", 5, None, "0" * 100000):
        changed = replaced(tree, ("volumes", 0, "lesions", 0, "masks", key), counts)
        cases.append(_case(f"counts {str(counts)[:20]!r}", as_json(changed)))
    voxels = _files()["set/images/a.b2nd"]
    for name, data in (
        ("empty voxels", b""),
        ("half of the voxels", voxels[: len(voxels) // 2]),
        ("zero bytes as voxels", bytes(len(voxels))),
        ("voxels of another volume", _files()["set/images/b.b2nd"]),
        ("text as voxels", b"voxels\n"),
    ):
        cases.append(_case(name, good, {"set/images/a.b2nd": data}))
    return cases


def draw(rng: np.random.Generator) -> Case:
    """An item that is removed or strange, or damaged voxels."""
    if rng.random() < 0.4:
        voxels = _files()["set/images/a.b2nd"]
        data, name = damage(rng, voxels)
        more = {"set/images/a.b2nd": data}
        return _case(f"voxels: {name}", _files()[_JSON], more, expected=_value(), may_refuse=True)
    tree, path, name = change_tree(rng, _tree())
    return _case(name, as_json(tree), expected=_after(tree, path), may_refuse=True)


def _after(tree: dict, path: tuple) -> object:
    """The value of a changed tree; ANY where what may be left out or be any text is changed."""
    optional = ("spacing", "origin", "direction", "window", "lesions", "recist", "diameters_mm")
    optional += ("boxes", "masks", "ignore", "attributes", "patient", "name", "category", "id")
    is_volume = path[0] == "volumes" and len(path) == 2
    return ANY if is_volume or set(path) & set(optional) else _value()


KIND = Kind("volume set", known, draw)
