import collections
import json
import os
import pickle
import runpy
import subprocess
from pathlib import Path

from lesion_d2.data.deeplesion.annotation_files import VolumeLesion, read_annotations
from lesion_d2.data.formats.restricted_pickle import load_pickle

import numpy as np
import pytest
from pickled_calls import Call, write_pickle

PROJECT = Path(__file__).parents[3]
ONE, TWO = "000001_01_01_103-115", "000002_03_01_010-012"


def key_slices(kind=list, offset=0) -> dict:
    """As published: boxes on key slices."""
    boxes = {109: [[1, 2, 30.5, 40, 109, 109], [50, 60, 70, 80, 109, 109]], 103: []}
    moved = {
        z - offset: kind([[*box[:4], z - offset, z - offset] for box in rows])
        for z, rows in boxes.items()
    }
    return {ONE: moved, TWO: {}}


def text_of(found: dict) -> dict:
    return {name.text: lesions for name, lesions in found.items()}


KEY_LESIONS = {
    ONE: [
        VolumeLesion((1, 2, 30.5, 40), 109, 109, 109),
        VolumeLesion((50, 60, 70, 80), 109, 109, 109),
    ],
    TWO: [],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [list, np.array, lambda rows: np.array(rows, object)])
def test_boxes_on_key_slices(tmp_path, protocol, kind):
    file = write_pickle(tmp_path / "a.pkl", key_slices(kind), protocol)
    assert text_of(read_annotations(file)) == KEY_LESIONS
    assert list(read_annotations(file)) == list(read_annotations(file, "val"))  # has no splits
    name = next(iter(read_annotations(file)))
    assert (name.patient, name.study, name.series_number, name.first, name.last) == (
        *(1, 1, 1),
        *(103, 115),
    )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [np.int64, np.float32, object])
def test_boxes_in_3d_by_split(tmp_path, protocol, kind):
    rows = np.array([[201, 202, 103, 230, 240, 109], [5, 6, 110, 7, 8, 110]], kind)
    content = collections.OrderedDict(val={f"{ONE}.nii.gz": rows, TWO: np.empty((0, 6))})
    content["test"] = {TWO: [np.float64([21, 32, 10, 23, 34, 12])]}
    file = write_pickle(tmp_path / "a.pkl", content, protocol)
    expected = [VolumeLesion((201, 202, 230, 240), 103, 109, None)]
    expected.append(VolumeLesion((5, 6, 7, 8), 110, 110, None))
    assert text_of(read_annotations(file, "val")) == {ONE: expected, TWO: []}
    assert text_of(read_annotations(file, "test")) == {
        TWO: [VolumeLesion((21, 32, 23, 34), 10, 12, None)]
    }
    for split, expected in (("train", "'train'"), (None, r"one of them as the split \(--split\)")):
        with pytest.raises(
            ValueError, match=rf"found the splits \['val', 'test'\], expected {expected}$"
        ):
            read_annotations(file, split)


def test_slices_from_the_first_one_on(tmp_path):
    file = write_pickle(tmp_path / "a.pkl", key_slices(offset=103))
    for numbers in ("index", None):
        assert text_of(read_annotations(file, slice_numbers=numbers)) == KEY_LESIONS
    with pytest.raises(ValueError, match=r"found the slices 6 to 6, .* within 103 to 115 .*'disk'"):
        read_annotations(file, slice_numbers="disk")
    file = write_pickle(tmp_path / "a.pkl", key_slices())
    assert text_of(read_annotations(file)) == KEY_LESIONS
    with pytest.raises(ValueError, match=r"slices 109 to 109, .* within 0 to 12 .*'index'"):
        read_annotations(file, slice_numbers="index")
    with pytest.raises(ValueError, match=r"found slice_numbers 'guess', expected one of"):
        read_annotations(file, slice_numbers="guess")


def test_pickles_of_python_2(tmp_path):
    # {'<ONE>': numpy.array([[141, 132, 103, 143, 134, 104]], 'i2')} of Python 2.7 with NumPy 1.16.
    data = np.array([141, 132, 103, 143, 134, 104], "<i2").tobytes()
    escaped = b"".join(b"\\x%02x" % value for value in data)
    file = tmp_path / "old.pkl"
    file.write_bytes(
        b"(dp0\nS'" + ONE.encode() + b"'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n"
        b"(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n(I1\n(I1\nI6\ntp8\n"
        b"cnumpy\ndtype\np9\n(S'i2'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\n"
        b"tp14\nbI00\nS'" + escaped + b"'\np15\ntp16\nbs."
    )
    assert text_of(read_annotations(file)) == {
        ONE: [VolumeLesion((141, 132, 143, 134), 103, 104, None)]
    }


class _Marked:
    """Of another module's."""


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "function, name",
    [
        (os.system, "(posix|nt).system"),
        (eval, "(builtins|__builtin__).eval"),
        (getattr, "(builtins|__builtin__).getattr"),
        (subprocess.Popen, "(subprocess|commands).Popen"),
        (np.load, "numpy.load"),
        (np.fromfile, "numpy(._?core.multiarray)?.fromfile"),
    ],
)
def test_hostile_pickles_are_refused_by_name_and_run_nothing(tmp_path, protocol, function, name):
    target = tmp_path / "touched"
    args = f"touch {target}" if function is os.system else f"open({str(target)!r}, 'w')"
    file = tmp_path / "bad.pkl"
    for content in (Call(function, args), {ONE: [np.zeros(6), {1: Call(function, args)}]}):
        write_pickle(file, content, protocol)
        with pytest.raises(
            ValueError, match=rf"bad\.pkl: found {name} in the pickle, exp"
        ) as error:
            read_annotations(file)
        assert "\n" not in str(error.value) and not target.exists()


def test_what_is_allowed_by_name_is_not_a_way_to_more(tmp_path):
    file = tmp_path / "bad.pkl"
    # Attributes of what is allowed; and another codec than the one that NumPy's bytes need.
    for text in (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", b"cnumpy\ndtype.x\n."):
        file.write_bytes(text)
        with pytest.raises(ValueError, match=r"found numpy\.(ndarray|dtype)\.\S+ in the pickle"):
            load_pickle(file)
    file.write_bytes(b"c_codecs\nencode\n(Va\nVrot13\ntR.")
    with pytest.raises(ValueError, match="found bytes as 'rot13' in the pickle, expected 'latin1'"):
        load_pickle(file)
    # A function is no content, and a write to one of a file's is not there in the next.
    for text in (b"c_codecs\nencode\n.", b"c_codecs\nencode\n(N}S'__defaults__'\nNstb."):
        file.write_bytes(text)
        with pytest.raises(ValueError, match="found a value of type function in the pickle, exp"):
            load_pickle(file)
    file.write_bytes(b"c_codecs\nencode\n(Va\ntR.")
    assert load_pickle(file) == b"a"
    write_pickle(file, {ONE: _Marked()})
    with pytest.raises(ValueError, match=r"found (copy_reg|\S*test_annotation_files)\."):
        load_pickle(file)


def test_plain_content_comes_back(tmp_path):
    values = {
        "containers": ((1, 2.5), [True, None], {"a", "b"}, frozenset([3]), b"\xff\x00"),
        "numbers": [np.float32(2.5), np.int64(-3), np.bool_(True), 10**30],
        "default": collections.defaultdict(list, a=[1]),
    }
    for protocol in range(6):
        file = write_pickle(tmp_path / "a.pkl", values, protocol)
        found = load_pickle(file)
        assert found == values and [type(x) for x in found["numbers"]] == [
            *(np.float32, np.int64, np.bool_),
            int,
        ]
        array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
        write_pickle(file, [array, array[:, 1], np.array(["ab", 3, None], object)], protocol)
        for a, b in zip(load_pickle(file), (array, array[:, 1]), strict=False):
            assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("data", [b"", b"\x80", b"(dp0", b"nothing", pickle.dumps({1: 2})[:-3]])
def test_a_damaged_pickle_is_refused_in_one_line(tmp_path, data):
    file = tmp_path / "a.pkl"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.pkl: found no readable pickle \(") as error:
        read_annotations(file)
    assert "\n" not in str(error.value)


BOX = [1, 2, 3, 4]
BAD_VOLUMES = [
    ({"000001_01_01": []}, "found the volume '000001_01_01', expected <patient>_<study>_<series>_"),
    ({"000001_01_01_115-103": []}, "found the volume .* with first <= last"),
    ({b"000001_01_01_103-115": []}, "found the volume b'0000"),
    ({ONE: [], f"{ONE}.nii.gz": []}, f"found the volume {ONE} twice"),
    ({ONE: 3}, f"volume {ONE}: found 3, expected rows of six numbers"),
    ({ONE: np.array(3)}, r"found array\(3\), expected rows"),
    ({ONE: [BOX]}, r"found the box \[1, 2, 3, 4\], expected six numbers"),
    ({ONE: np.ones(6)}, r"found the box (np.float64\()?1.0\)?, expected six numbers"),
    ({ONE: {109: [BOX]}}, r"found the box \[1, 2, 3, 4\], expected six numbers"),
    ({ONE: {109: [[*BOX, 109, 110]]}}, "slices 109 and 110 for the key 109, expected the same"),
    ({ONE: {"108": [[*BOX, 109, 109]]}}, "slices 109 and 109 for the key '108', expected the same"),
    ({ONE: {109: [[3, 2, 3, 4, 109, 109]]}}, r"box \(3, 2, 3, 4\), expected x1 < x2 and y1 < y2"),
    ({ONE: {109: [[1, 4, 3, 2, 109, 109]]}}, r"box \(1, 4, 3, 2\), expected x1 < x2 and y1 < y2"),
    ({ONE: [[1, 2, float("nan"), 4, 103, 104]]}, r"box \(1, 2, nan, 4\), expected four finite"),
    ({ONE: [["1", 2, 3, 4, 103, 104]]}, r"box \('1', 2, 3, 4\), expected four finite numbers"),
    ({ONE: {109: [[*BOX, 108.5, 108.5]]}}, "slices 108.5 and 108.5 for the key 109, expected the"),
    ({ONE: {108.5: [[*BOX, 108.5, 108.5]]}}, r"slices \(108.5, .*\), expected whole numbers"),
    ({ONE: [[1, 2, 3, 4, float("inf"), 104]]}, r"slices \(inf, 104\), expected finite numbers"),
    (
        {ONE: [[200, 150, 250, 180, 105, 104]]},
        "slices 105 to 104, expected a range within 103 to 115",
    ),
    ({ONE: [[1, 2, 3, 4, 116, 117]]}, "slices 116 to 117, expected a range within 103 to 115"),
    ({ONE: {116: [[*BOX, 116, 116]]}}, "slices 116 to 116, expected a range within 103 to 115 .*"),
    ({}, r"found \{\}, expected an object with volumes by name"),
    ([1, 2], r"found \[1, 2\], expected an object with volumes by name"),
    ({"val": [1]}, r"found the splits \['val'\], expected one of them as the split"),
]


@pytest.mark.parametrize("content, message", BAD_VOLUMES)
def test_a_pickle_of_other_content_is_refused(tmp_path, content, message):
    file = write_pickle(tmp_path / "a.pkl", content)
    with pytest.raises(ValueError, match=rf"a\.pkl: .*{message}") as error:
        read_annotations(file)
    assert "\n" not in str(error.value)


def nested(depth: int, shared: bool = False) -> list:
    """Lists in lists; ``shared``: twice the same one in each, 2**depth numbers in text."""
    value = [0]
    for _ in range(depth):
        value = [value] * 2 if shared else [value]
    return value


def object_array(value: object) -> np.ndarray:
    array = np.empty(2, object)
    array[0] = value  # NumPy would look into all of it to make an array of it
    return array


@pytest.mark.parametrize("make", [lambda: nested(30, True), lambda: nested(400)])
@pytest.mark.parametrize(
    "place",
    [
        lambda x: x,
        lambda x: {ONE: {1: x}},
        lambda x: {ONE: [[x] * 6]},
        lambda x: {ONE: {109: [[*BOX, x, x]]}},
        lambda x: {ONE: {109: [[*BOX, x, [*x]]]}},
        lambda x: {ONE: object_array(x)},
    ],
)
def test_nested_pickles_are_told_of_in_few_words(tmp_path, make, place):
    # The text of 2**30 numbers would not end in hours, and that of 400 levels is not for a reader.
    file = write_pickle(tmp_path / "a.pkl", place(make()))
    with pytest.raises(ValueError, match=r"a\.pkl: ") as error:
        read_annotations(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(file))


def test_100_000_nested_lists(tmp_path):
    file = tmp_path / "a.pkl"
    file.write_bytes(b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(ValueError, match=r"a\.pkl: found [^\n]{1,100}$"):
        read_annotations(file)


def test_all_that_is_bad_is_told_of_at_once(tmp_path):
    rows = [[41, 42, 3, 41, 5, 6]] * 30
    content = {ONE: np.array(rows), "x": [], TWO: {11: [[1, 2, 3, 4, 5]]}}
    file = write_pickle(tmp_path / "a.pkl", content)
    with pytest.raises(ValueError, match=r"a\.pkl: 32 problems, the first 20\n") as error:
        read_annotations(file)
    assert str(error.value).count("\n") == 20
    with pytest.raises(ValueError, match=r"found the suffix '\.npy', expected \.json or \.pkl"):
        read_annotations(tmp_path / "a.npy")
    for name in ("b.pkl", "b.json"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            read_annotations(tmp_path / name)


def test_the_command_writes_json(tmp_path, capsys):
    script = PROJECT / "datasets" / "convert_annotations.py"
    convert = runpy.run_path(str(script))["main"]
    content = {"val": key_slices(offset=103), "test": {TWO: np.array([[11, 12, 0, 13, 14, 2.0]])}}
    source, target = write_pickle(tmp_path / "a.pkl", content), tmp_path / "volumes_val.json"
    assert convert([str(source), str(target), "--split", "val", "--slice-numbers", "index"]) == 0
    assert "2 lesions of 2 volumes" in capsys.readouterr().out
    assert text_of(read_annotations(target)) == KEY_LESIONS
    assert convert([str(source), str(target), "--split", "val"]) == 0  # found by itself
    assert text_of(read_annotations(target)) == KEY_LESIONS
    lesions = json.loads(target.read_text())["volumes"][ONE]
    assert lesions[0] == {"box": [1.0, 2.0, 30.5, 40.0], "slices": [109, 109], "key_slice": 109}
    before = target.read_bytes()
    assert convert([str(source), str(target), "--split", "train"]) == 1
    error = capsys.readouterr().err
    assert "found the splits ['val', 'test']" in error and error.count("\n") == 1
    assert convert([str(source), str(tmp_path / "volumes.pkl"), "--split", "test"]) == 1
    assert "found another ending, expected .json" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pkl", "volumes_val.json"]
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("format"), 'found no "format": "lesion_d2 volumes"'),
        (lambda c: c.pop("volumes"), "found None, expected an object with volumes by name"),
        (lambda c: c["volumes"].update({ONE: {}}), r"found \{\}, expected a list of lesions"),
        (
            lambda c: c["volumes"][ONE][0].pop("box"),
            "expected a lesion with box, slices, key_slice",
        ),
        (lambda c: c["volumes"][ONE][0].update(box=[1, 2, 3]), "expected four finite numbers"),
        (lambda c: c["volumes"][ONE][0].update(slices=[103]), "expected the first and the last"),
        (
            lambda c: c["volumes"][ONE][0].update(slices=[110, 111]),
            "the key slice 109, expected one",
        ),
        (lambda c: c["volumes"][ONE][0].update(slices=[102, 109]), "within 103 to 115"),
        (lambda c: c["volumes"][ONE][0].update(key_slice="109"), "expected whole numbers"),
    ],
)
def test_json_of_other_content_is_refused(tmp_path, change, message):
    file = tmp_path / "a.json"
    lesion = {"box": BOX, "slices": [109, 109], "key_slice": 109}
    content = {"format": "lesion_d2 volumes", "volumes": {ONE: [lesion]}}
    file.write_text(json.dumps(content))
    expected = {ONE: [VolumeLesion((1, 2, 3, 4), 109, 109, 109)]}
    assert text_of(read_annotations(file)) == expected
    with pytest.raises(ValueError, match="found slice_numbers 'index' for JSON, expected None"):
        read_annotations(file, slice_numbers="index")
    with pytest.raises(ValueError, match="found box_columns for JSON, expected None"):
        read_annotations(file, box_columns="xyxyzz")
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        read_annotations(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="found no readable JSON"):
        read_annotations(file)
