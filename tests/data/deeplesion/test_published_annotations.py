"""Annotation files as Cai et al. and Yan et al. published them: names, numbering and columns."""

import logging
import pickle
from pathlib import Path

from lesion_d2.data.deeplesion import annotation_files
from lesion_d2.data.deeplesion.annotation_files import VolumeLesion, read_annotations
from lesion_d2.data.deeplesion.subvolumes import load_subvolumes, register_subvolumes

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from subvolume_files import write_csv, write_series

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "data" / "subvolumes_100.pkl"
VOLUME, OTHER = "001344_01_01_012-024", "001361_02_01_103-115"
BOX = (215.383, 176.983, 267.122, 220.374)  # of 001344_01_01, slice 18

needs_published = pytest.mark.skipif(
    not PUBLISHED.is_file(), reason=f"needs {PUBLISHED}, a published file"
)


def write(folder: Path, content: object, name: str = "a.pkl") -> Path:
    file = folder / name
    file.write_bytes(pickle.dumps(content))
    return file


def by_text(lesions: dict) -> dict:
    return {name.text: group for name, group in lesions.items()}


@pytest.fixture
def infos(caplog):
    """The messages of the reader."""
    caplog.set_level(logging.INFO, logger=annotation_files.__name__)
    return lambda: " ".join(record.getMessage() for record in caplog.records)


@needs_published
def test_the_published_file_is_read_as_it_is(infos):
    lesions = read_annotations(PUBLISHED)
    with PUBLISHED.open("rb") as file:
        content = pickle.load(file)
    assert (len(lesions), sum(map(len, lesions.values()))) == (100, 420)
    assert "slice numbers are counted from 0 at the volume's first slice" in infos()
    for name, group in lesions.items():
        expected = [
            (tuple(row[:4]), name.first + number)
            for number, rows in content[f"{name}.annot"].items()
            for row in rows
        ]
        assert [(x.box, x.key_slice) for x in group] == expected
        assert all(name.first <= x.first == x.last == x.key_slice <= name.last for x in group)


@needs_published
def test_volumes_of_the_published_file_are_a_data_set(tmp_path, monkeypatch):
    """Under the published name, without anything said about it."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with PUBLISHED.open("rb") as file:
        content = pickle.load(file)
    names = sorted(content, key=lambda text: len(text.split("-")[1]))[:2]  # any two
    root = tmp_path / "DeepLesion"
    rows = {}
    for text in names:
        volume = text.removesuffix(".annot")
        first, last = map(int, volume.rsplit("_", 1)[1].split("-"))
        folder = root / "Images_png" / volume.rsplit("_", 1)[0]
        write_series(folder, range(first, last + 1))
        rows[f"{folder.name}_{first:03d}.png"] = "0.8, 0.8, 2"
    write_csv(root, rows)
    # Slices are tiny here, and boxes with them; keys, numbers and layout are as they are.
    kept = {
        text: {z: [[1.0, 2.0, 9.0, 9.0, z, z] for _ in rows] for z, rows in content[text].items()}
        for text in names
    }
    write(root, kept, "Revised-Train100.pkl")
    dicts = DatasetCatalog.get("deeplesion_volumes_val")
    found = {
        (d["volume"], d["slice_index"]): len(d["annotations"]) for d in dicts if d["annotations"]
    }

    assert found == {
        (text.removesuffix(".annot"), int(text.split("_")[3].split("-")[0]) + z): len(rows)
        for text in names
        for z, rows in content[text].items()
    }


@pytest.mark.parametrize(
    "file, name",
    [
        ("Revised-Train744.pkl", "deeplesion_volumes_train"),
        ("Revised-Train100.pkl", "deeplesion_volumes_val"),
        ("Revised-Test1071.pkl", "deeplesion_volumes_test"),
        ("3D-Box.pkl", "deeplesion_volumes_3d"),
        ("RECIST-Box-Valid.pkl", "my_recist_volumes"),
    ],
)
def test_published_names_are_found(tmp_path, monkeypatch, file, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "DeepLesion"
    write_series(root / "Images_png" / VOLUME.rsplit("_", 1)[0], range(10, 30))
    write_csv(root, {f"{VOLUME.rsplit('_', 1)[0]}_018.png": "0.8, 0.8, 2"})
    if name == "my_recist_volumes":
        register_subvolumes(name, str(root), str(root / file))
    try:
        with pytest.raises(FileNotFoundError, match=file):
            DatasetCatalog.get(name)
        is_3d = file == "3D-Box.pkl"
        rows = [[21.5, 4.0, 29.5, 20.0, 5.5, 6.5]] if is_3d else {6: [[1, 2, 9, 9, 6, 6]]}
        write(root, {f"{VOLUME}.annot": rows}, file)
        dicts = DatasetCatalog.get(name)
        assert [d["slice_index"] for d in dicts] == list(range(12, 25))
        annotated = [d["slice_index"] for d in dicts if d["annotations"]]
        assert annotated == ([17, 18, 19] if is_3d else [18])
    finally:
        if name == "my_recist_volumes":
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


# Boxes in 3-D. The first row is in the published README of Lesion-Harvester.
ROWS = {
    "000001_01_01_103-115": [
        [224.11279125118176, 92.50398222171341, 241.87335205606877, 113.86161863265343, 5.0, 6.0],
        [234.2, 78.1, 256.5, 104.8, 5.5, 6.5],
        [234.2, 78.1, 256.5, 104.8, 4.0000000001, 5.9999999999],
        [234.2, 78.1, 256.5, 104.8, -1.0, 2.0],
        [234.2, 78.1, 256.5, 104.8, 11.5, 14.5],
    ],
    OTHER: [],
}
SLICES = [(108, 109), (108, 110), (107, 109), (103, 105), (114, 115)]


@pytest.mark.parametrize("columns", ["xyxyzz", "xyzxyz"])
@pytest.mark.parametrize("kind", [list, np.array])
@pytest.mark.parametrize("offset", [0, 103])
def test_boxes_in_3d_of_either_layout(tmp_path, infos, columns, kind, offset):
    """Columns and numbering are found; halves count where they cover half a slice."""
    order = [0, 1, 2, 3, 4, 5] if columns == "xyxyzz" else [0, 1, 4, 2, 3, 5]
    volumes = {}
    for name, rows in ROWS.items():
        moved = np.array(rows).reshape(-1, 6) + np.array([0, 0, 0, 0, offset, offset])
        volumes[name] = kind(moved[:, order].tolist())
    content = volumes if columns == "xyxyzz" else {"val": {}, "test": volumes}
    file = write(tmp_path, content)
    lesions = by_text(read_annotations(file, "test"))
    expected = [
        VolumeLesion(tuple(row[:4]), *z, None)
        for row, z in zip(ROWS["000001_01_01_103-115"], SLICES, strict=True)
    ]
    assert lesions == {"000001_01_01_103-115": expected, OTHER: []}
    layout = {"xyxyzz": "x1, y1, x2, y2, z1, z2", "xyzxyz": "x1, y1, z1, x2, y2, z2"}[columns]
    numbers = "as on disk" if offset else "counted from 0 at the volume's first slice"
    assert f"3-D boxes with the columns {layout}" in infos()
    assert f"slice numbers are {numbers}" in infos()
    assert "2 3-D boxes begin or end within a slice" in infos()
    assert "2 extend beyond their volumes and are clipped" in infos()
    numbering = "disk" if offset else "index"
    read = read_annotations(file, "test", slice_numbers=numbering, box_columns=columns)
    assert by_text(read) == lesions
    wrong = {"xyxyzz": "xyzxyz", "xyzxyz": "xyxyzz"}[columns]
    with pytest.raises(ValueError, match="found the box"):
        read_annotations(file, "test", box_columns=wrong)


@pytest.mark.parametrize(
    "z, slices",
    [
        ((5, 5), (5, 5)),
        ((5.5, 5.5), (5, 6)),
        ((5.4, 6.6), (5, 7)),  # from 4.9 to 7.1
        ((5.6, 6.4), (6, 6)),  # from 5.1 to 6.9
        ((5.4999999, 6.5000001), (5, 7)),
        ((5.5000001, 6.4999999), (5, 7)),
    ],
)
def test_slices_of_which_half_is_covered(tmp_path, z, slices):
    file = write(tmp_path, {VOLUME: [[*BOX, *z]]})
    [[lesion]] = read_annotations(file, slice_numbers="index").values()
    assert (lesion.first - 12, lesion.last - 12) == slices
    low, high = z[0] - 0.5, z[1] + 0.5
    shares = [min(high, n + 0.5) - max(low, n - 0.5) for n in range(13)]
    assert [n for n, share in enumerate(shares) if share > 0.499] == list(
        range(slices[0], slices[1] + 1)
    )


@pytest.mark.parametrize(
    "content, options, message",
    [
        (
            {"000001_01_01_000-012": {6: [[*BOX, 6, 6]]}},
            {"slice_numbers": "index"},
            r"a\.pkl: found ambiguous slice numbers \(as on disk or counted from 0 at the "
            r"volume's first slice\), expected slice_numbers \(--slice-numbers\) disk or index",
        ),
        (
            {VOLUME: {12: [[*BOX, 12, 12]]}},
            {"slice_numbers": "disk"},
            "found ambiguous slice numbers",
        ),
        (
            {"000001_01_01_103-115": [[1, 2, 105, 3, 106, 107]]},
            {"box_columns": "xyzxyz"},
            r"a\.pkl: found 3-D boxes with ambiguous columns \(x1, y1, x2, y2, z1, z2 or x1, y1, "
            r"z1, x2, y2, z2\), expected box_columns \(--box-columns\) xyxyzz or xyzxyz",
        ),
    ],
)
def test_what_a_file_does_not_tell_is_asked_for(tmp_path, content, options, message):
    file = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(file, **({"slice_numbers": "disk"} if "box_columns" in options else {}))
    assert "\n" not in str(error.value)
    assert len(read_annotations(file, **options)) == 1
    with pytest.raises(ValueError, match=r"found box_columns 'zyx', expected one of .*, or None"):
        read_annotations(file, box_columns="zyx")


def test_one_lesion_decides_for_the_file_and_all_must_agree(tmp_path):
    small = {"000001_01_01_000-012": {6: [[*BOX, 6, 6]]}}  # tells nothing
    index, disk = {VOLUME: {2: [[*BOX, 2, 2]]}}, {OTHER: {109: [[*BOX, 109, 109]]}}
    [first, second] = read_annotations(write(tmp_path, small | index)).values()
    assert (first[0].key_slice, second[0].key_slice) == (6, 14)
    [first, second] = read_annotations(write(tmp_path, small | disk)).values()
    assert (first[0].key_slice, second[0].key_slice) == (6, 109)
    with pytest.raises(ValueError, match=r"found the slices .* expected a range within"):
        read_annotations(write(tmp_path, index | disk))


def test_volumes_of_boxes_in_3d_are_cut_to_slices_that_are_there(tmp_path):
    root = tmp_path / "DeepLesion"
    write_series(root / "Images_png" / VOLUME, range(12, 25))
    write_csv(root, {"001344_01_01_018.png": "0.8, 0.8, 2"})
    file = write(root, {VOLUME: [[21.5, 4.0, 29.5, 20.0, 10.0, 15.0]]})
    dicts = load_subvolumes(root, file, slice_numbers="index")
    assert [d["slice_index"] for d in dicts if d["annotations"]] == [22, 23, 24]
    assert not any("is_key" in a for d in dicts for a in d["annotations"])
