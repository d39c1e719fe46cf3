import collections
import pickle
import struct

from lesion_d2.data.formats.restricted_pickle import load_pickle

import numpy as np
import pytest
from pickled_calls import Call, write_pickle
from warm_processes import run_script

# What a hostile pickle calls, by the functions that NumPy pickles itself with.
RECONSTRUCT = np.empty(0).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
OBJECT = ("O8", (3, "|", None, None, None, -1, -1, 63))
NO_FLAGS = ("O8", (3, "|", None, None, None, -1, -1, 0))  # objects said to be plain data
DOUBLE = ("f8", (3, "<", None, None, None, -1, -1, 0))
BOOL = ("b1", (3, "|", None, None, None, -1, -1, 0))
TEXT = ("U1", (3, "<", None, None, None, 4, 4, 8))
EMPTY_TEXT = ("U0", (3, "<", None, None, None, 0, 4, 8))
POINTERS = b"A" * 48


def dtype(code, state) -> Call:
    return Call(np.dtype, code, False, True, state=state)


def by_state(shape, kind, data, is_fortran=False) -> Call:
    """The route of protocols 0-4."""
    state = (1, shape, dtype(*kind), is_fortran, data)
    return Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=state)


def by_buffer(shape, kind, data) -> Call:
    """The route of protocol 5."""
    return Call(FROM_BUFFER, data, dtype(*kind), shape, "C")


ROUTES = [by_state, by_buffer]


def refused(file, message):
    with pytest.raises(ValueError, match=rf"a\.pkl: .*{message}") as error:
        load_pickle(file)
    assert "\n" not in str(error.value)


def test_pointers_of_the_files_author_are_never_read(tmp_path):
    # In a process of its own: reading them would end it.
    script = (
        "import sys\n"
        "from lesion_d2.data.formats.restricted_pickle import load_pickle\n"
        "for file in sys.argv[1:]:\n"
        "    try:\n"
        "        print('read', repr(load_pickle(file)))\n"
        "    except ValueError as error:\n"
        "        print('refused', error)\n"
    )
    contents = [
        *[route((1, 6), kind, POINTERS) for route in ROUTES for kind in (NO_FLAGS, OBJECT)],
        *[Call(SCALAR, dtype(*kind), POINTERS[:8]) for kind in (NO_FLAGS, OBJECT)],
        # The objects' dtype as that of a numeric array whose dtype changes later.
        by_state((1, 6), ("f8", NO_FLAGS[1]), [POINTERS] * 6),
        by_state((1, 6), ("V8", (3, "|", None, ("a",), {"a": (dtype(*OBJECT), 0)}, 8, 1, 0)), b""),
        by_state((6,), ("V8", (3, "|", (dtype(*OBJECT), (1,)), None, None, 8, 1, 0)), POINTERS),
    ]
    files = [str(write_pickle(tmp_path / f"{i}.pkl", value)) for i, value in enumerate(contents)]
    (tmp_path / "script.py").write_text(script)
    run = run_script(tmp_path / "script.py", *files, cwd=tmp_path)
    assert run.returncode == 0, run.stderr

    lines = run.stdout.splitlines()
    assert len(lines) == len(files)
    for line, file in zip(lines, files, strict=True):
        assert line.startswith(f"refused {file}: found "), line
    assert all("an array of objects, expected a list" in line for line in lines[:4])
    assert all("a scalar of dtype object" in line for line in lines[4:6])


@pytest.mark.parametrize(
    "kind, message",
    [
        (("V8", (3, "|", None, None, None, 8, 1, 0)), "found the dtype 'V8' in the pickle, exp"),
        (("i4,O", DOUBLE[1]), "found the dtype 'i4,O'"),
        (("(9999999,)i4", DOUBLE[1]), "found the dtype '.9999999,.i4'"),
        (([("a", "O")], DOUBLE[1]), r"found the dtype \[\('a', 'O'\)\]"),
        (("f8", (3, "<", None, ("a",), {}, -1, -1, 0)), "found a dtype's state .*no fields"),
        (("f8", (3, "x", None, None, None, -1, -1, 0)), "found a dtype's state .*a byte order"),
        (("f8", (3, "<")), "found a dtype's state .*, expected 5 or more values"),
        (("f8", [3]), "found a dtype's state"),
        (("f3", DOUBLE[1]), "found no readable pickle"),
    ],
)
@pytest.mark.parametrize("route", ROUTES)
def test_dtypes_of_another_structure(tmp_path, route, kind, message):
    refused(write_pickle(tmp_path / "a.pkl", route((1,), kind, b"12345678")), message)
    refused(write_pickle(tmp_path / "a.pkl", Call(SCALAR, dtype(*kind), b"12345678")), message)


@pytest.mark.parametrize(
    "shape, kind, data, message",
    [
        ((2,), DOUBLE, b"1234567", r"found 7 bytes for an array of the shape \(2,\) .*expected 16"),
        ((1,), DOUBLE, b"1" * 16, "found 16 bytes for .* expected 8"),
        ((1,), DOUBLE, b"", "found 0 bytes for"),
        ((), DOUBLE, b"", "found 0 bytes for"),
        ((-1,), DOUBLE, b"12345678", r"found an array's shape \(-1,\), expected numbers of 0"),
        ((-1, -1), DOUBLE, b"12345678", "found an array's shape"),
        ((1.0,), DOUBLE, b"12345678", "found an array's shape"),
        ((True,), DOUBLE, b"12345678", "found an array's shape"),
        ([1], DOUBLE, b"12345678", "found an array's shape"),
        (1, DOUBLE, b"12345678", "found an array's shape 1, expected"),
        ((2**62, 4), DOUBLE, b"", "expected sizes up to the file"),
        ((10**9,), OBJECT, [], "expected sizes up to the file"),
        ((10**9, 0), DOUBLE, b"", "expected sizes up to the file"),
        ((100, 100, 100), EMPTY_TEXT, b"", "expected sizes up to the file"),
        ((1,) * 70, DOUBLE, b"12345678", "found no readable pickle"),
        ((1,), DOUBLE, [1.0], r"found \[1.0\] as an array's data, expected bytes"),
        ((1,), DOUBLE, np.ones(1), "found .* as an array's data, expected bytes"),
        ((1,), TEXT, b"\xff\xff\xff\x7f", "found invalid code points in a text array"),
        ((2,), OBJECT, [1], r"found 1 objects for an array of the shape \(2,\), expected 2"),
        ((1,), OBJECT, [1, 2], "found 2 objects for"),
        ((), OBJECT, [], "found 0 objects for"),
        ((2,), OBJECT, (1, 2), r"found \(1, 2\) as the data of an array of objects, exp"),
        ((2,), OBJECT, "ab", "found 'ab' as the data of an array of objects, expected a list"),
        ((1,), OBJECT, bytearray(8), "found bytearray.* as the data of an array of objects"),
    ],
)
@pytest.mark.parametrize("route", ROUTES)
def test_data_that_do_not_fit(tmp_path, route, shape, kind, data, message):
    refused(write_pickle(tmp_path / "a.pkl", {"x": [route(shape, kind, data)]}), message)


def test_other_misuse_of_numpys_functions_is_refused(tmp_path):
    file = tmp_path / "a.pkl"
    inside = []
    inside.append(inside)
    double = dtype(*DOUBLE)
    for content, message in [
        (
            Call(RECONSTRUCT, list, (0,), b"b"),
            "found an array of the class .*, expected numpy.ndarray",
        ),
        (Call(RECONSTRUCT, np.ndarray, (0,), b"b"), "found an array's state None, expected 5 val"),
        (Call(np.ndarray, (9,)), "found a call of numpy.ndarray"),
        (np.ndarray, "found a value of type function in the pickle"),
        (Call(SCALAR, "f8", b"12345678"), "found 'f8' in the pickle, expected a dtype"),
        (Call(SCALAR, double, b"1234567"), "found 7 bytes for"),
        (Call(FROM_BUFFER, b"1" * 8, "O", (1,), "C"), "found 'O' in the pickle, expected a dtype"),
        (Call(FROM_BUFFER, b"1" * 8, double, (1,), "C", (1, 2)), "found no readable pickle"),
        (np.array([np.datetime64("2020")]), "found the dtype 'M8'"),
        (np.zeros(1, "f8,O"), "found the dtype 'V16'"),
        (inside, r"found no readable pickle \(RecursionError"),
    ]:
        refused(write_pickle(file, content), message)


def test_a_state_set_twice(tmp_path):
    array = pickle.dumps(by_state((2,), DOUBLE, np.float64([1, 2]).tobytes()), 2)[:-1]
    # BUILD once more, after the array is in a list, with one number.
    state = pickle.dumps((1, (1,), dtype(*DOUBLE), False, np.float64([3]).tobytes()), 2)[2:-1]
    file = tmp_path / "a.pkl"
    file.write_bytes(array + b"q\xc8](h\xc8h\xc8eh\xc8" + state + b"b0.")
    first, second = load_pickle(file)
    assert np.array_equal(first, [3.0]) and first is second and first.flags.owndata


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_scalars_come_back(tmp_path, protocol):
    grid = np.arange(24.0).reshape(2, 3, 4)
    objects = np.empty((2, 3), object)
    objects[:] = [[1, "a", None], [(2,), [3, np.int64(4)], {"b": np.float32(5)}]]
    nested = np.empty(2, object)
    nested[:] = [np.arange(3), np.array([[1, "x"]], object)]
    codes = ("?", "i1", "<i2", ">i4", "i8", "u8", "f2", "<f4", ">f8", "c16", "S3", "<U3", ">U3")
    arrays = [
        *[np.array([[0, 1, 0], [1, 0, 1]]).astype(code) for code in codes],
        *[grid, np.asfortranarray(grid), grid.transpose(1, 0, 2), grid[:, 1], grid[::-1]],
        *[objects, np.asfortranarray(objects), objects.T, np.array(3.5), np.array(None)],
        *[np.empty(0), np.empty((0, 6)), np.empty((3, 0)), np.empty((0, 6), object)],
    ]
    for array in arrays:
        found = load_pickle(write_pickle(tmp_path / "a.pkl", array, protocol))
        assert type(found) is np.ndarray and found.flags.writeable
        assert found.dtype == array.dtype and found.shape == array.shape
        assert np.array_equal(found, array)
    found = load_pickle(write_pickle(tmp_path / "a.pkl", nested, protocol))
    assert np.array_equal(found[0], nested[0]) and np.array_equal(found[1], nested[1])

    scalars = [np.bool_(True), np.int16(-3), np.float32(2.5), np.complex128(1j), np.str_("é"), "é"]
    scalars += [np.str_(""), np.bytes_(b"a"), np.float64("inf"), np.dtype(">i4")]
    found = load_pickle(write_pickle(tmp_path / "a.pkl", scalars, protocol))
    assert found == scalars and [type(x) for x in found] == [type(x) for x in scalars]
    content = collections.OrderedDict({np.int64(3): {np.float32(1), (np.int8(2),)}})
    assert load_pickle(write_pickle(tmp_path / "a.pkl", content, protocol)) == content
    content = collections.defaultdict(list, a=[1])
    assert load_pickle(write_pickle(tmp_path / "a.pkl", content, protocol)) == content


def nested(depth: int) -> bytes:
    """Tuples of the one below, twice; the last one is on the stack."""
    content = b")q\x00"
    for level in range(depth):
        content += b"(" + 2 * (b"h" + bytes([level])) + b"tq" + bytes([level + 1])
    return content


MANY = b"\x80\x02]q\x00(" + b"N" * 50_000 + b"eX" + struct.pack("<I", 5000) + b"a" * 5000


@pytest.mark.parametrize(
    "content, message",
    [
        # A table of so many entries: 16 GiB and more.
        (b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".", "object number 2147483648"),
        (b"\x80\x02Np-1\n.", "object number -1"),
        # Lengths that the file has not.
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "pickle data was truncated"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "pickle data was truncated"),
        (b"\x80\x02T" + struct.pack("<i", -9) + b"x.", "pickle data was truncated"),
        # Hashes of 2^60 parts: of a key, and of a set's member.
        (b"}" + nested(60) + b"Ns.", "found more than .* parts in a pickle of"),
        (
            nested(60) + b"0cbuiltins\nset\n(h\x3cl\x85R.",
            "found more than .* parts in a pickle of",
        ),
        # Copies, 5 bytes each.
        (
            MANY + b"0cbuiltins\nset\nq\x010(" + b"h\x01h\x00\x85R" * 50 + b"l.",
            "copies of 50000",
        ),
        (
            MANY + b"q\x020c_codecs\nencode\nq\x01" + b"0(" + b"h\x01h\x02\x85R" * 9999 + b"l.",
            "copies of 5000 items",
        ),
        # A name without an end in the message.
        (
            b"\x80\x04\x8c\x02o\nX" + struct.pack("<I", 5000) + b"x" * 5000 + b"\x93.",
            r"found o\s?\.x{90,98} in",
        ),
        (b"\x80\x02cbuiltins\nlist\n]\x85R.", "found a call of list in the pickle"),
    ],
)
def test_a_small_file_asks_for_no_end_of_memory_or_time(tmp_path, content, message):
    file = tmp_path / "a.pkl"
    file.write_bytes(content)
    refused(file, message)


def test_arrays_that_share_their_data_are_not_copied_without_end(tmp_path):
    data = bytes(80_000)
    arrays = [by_buffer((10_000,), DOUBLE, data) for _ in range(40)]
    refused(write_pickle(tmp_path / "a.pkl", arrays), "copies of 90000 items or bytes")
    again = [by_buffer((10_000,), DOUBLE, data)] * 30  # one array, named often
    found = load_pickle(write_pickle(tmp_path / "a.pkl", again))
    assert len(found) == 30 and all(array is found[0] for array in found)


@pytest.mark.parametrize("part", [np.zeros((1000, 6)), [0] * 6000, {i: i for i in range(6000)}])
def test_what_a_file_uses_again_and_again_is_bounded(tmp_path, part):
    # Whoever reads all boxes of the first one has 4,000 times as many as the file.
    refused(
        write_pickle(tmp_path / "a.pkl", [part] * 4000),
        "found more than .* items in a pickle of .* shared",
    )
    nested = part
    for _ in range(40):
        nested = [nested, nested]
    with pytest.raises(ValueError, match=r"a\.pkl: found more than"):
        load_pickle(write_pickle(tmp_path / "a.pkl", nested))


def test_small_parts_may_be_used_often(tmp_path):
    spacing, name = np.array([0.7, 0.7, 2.0]), "a name of some letters"
    rows = [[spacing, name, (i, i)] for i in range(500)]
    found = load_pickle(write_pickle(tmp_path / "a.pkl", rows))
    assert [row[1:] for row in found] == [row[1:] for row in rows]
    assert all(row[0] is found[0][0] for row in found)


def test_bools_are_of_0_and_1(tmp_path):
    # NumPy counts the true ones by the sum of their bytes.
    for route in ROUTES:
        content = route((4,), BOOL, b"\x00\x01\x02\xff")
        found = load_pickle(write_pickle(tmp_path / "a.pkl", content))
        assert found.tobytes() == b"\x00\x01\x01\x01" and found.dtype == bool


def test_objects_and_scalars_of_python_2(tmp_path):
    # [numpy.array([1, 'a'], object), numpy.float64(1.5)] as Python 2.7 wrote them, protocol 0.
    file = tmp_path / "a.pkl"
    data = b"".join(b"\\x%02x" % value for value in np.float64(1.5).tobytes())
    file.write_bytes(
        b"(lp0\ncnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\np2\n(I0\ntp3\nS'b'\n"
        b"p4\ntp5\nRp6\n(I1\n(I2\ntp7\ncnumpy\ndtype\np8\n(S'O8'\np9\nI0\nI1\ntp10\nRp11\n(I3\n"
        b"S'|'\np12\nNNNI-1\nI-1\nI63\ntp13\nbI00\n(lp14\nI1\naS'a'\np15\natp16\nba"
        b"cnumpy.core.multiarray\nscalar\np17\n(g8\n(S'f8'\np18\nI0\nI1\ntp19\nRp20\n(I3\nS'<'\n"
        b"p21\nNNNI-1\nI-1\nI0\ntp22\nbS'" + data + b"'\np23\ntp24\nRp25\na."
    )
    array, number = load_pickle(file)
    assert array.dtype == object and array.tolist() == [1, "a"]
    assert type(number) is np.float64 and number == 1.5
