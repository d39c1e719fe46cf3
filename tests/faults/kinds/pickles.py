"""Pickles: what they call, what they announce, and random programs of opcodes."""

import pickle
import pickletools
import struct
from pathlib import Path

from lesion_d2.data.formats.restricted_pickle import load_pickle
from lesion_d2.data.formats.table_pickle import load_table

import numpy as np

from ..case import ANY, REFUSED, Case, Kind
from ..damage import damage
from ..sandbox import CANARY

_COMMAND = f"touch {CANARY}"


class _Call:
    """Pickled, it calls a function when it is loaded."""

    def __init__(self, function: str, *args: object):
        self.function, self.args = function, args

    def opcodes(self) -> bytes:
        module, _, name = self.function.rpartition(".")
        args = pickle.dumps(self.args, 2)[2:-1]
        return b"c" + f"{module}\n{name}\n".encode() + args + b"R"


#: Calls that run something, or that no file needs.
CALLS = (
    _Call("os.system", _COMMAND),
    _Call("posix.system", _COMMAND),
    _Call("subprocess.Popen", ["touch", CANARY]),
    _Call("subprocess.check_output", ["touch", CANARY]),
    _Call("builtins.eval", f"open({CANARY!r}, 'w')"),
    _Call("builtins.exec", f"open({CANARY!r}, 'w')"),
    _Call("__builtin__.eval", f"open({CANARY!r}, 'w')"),
    _Call("builtins.open", CANARY, "w"),
    _Call("io.open", CANARY, "w"),
    _Call("pathlib.Path", CANARY),
    _Call("runpy._run_code", f"open({CANARY!r}, 'w')", {}),
    _Call("importlib.import_module", "antigravity"),
    _Call("numpy.load", CANARY),
    _Call("numpy.testing._private.utils.runstring", f"open({CANARY!r}, 'w')", {}),
    _Call("torch.load", CANARY),
    _Call("builtins.getattr", "x", "__class__"),
    _Call("builtins.bytearray", 2**40),
    _Call("builtins.range", 10**9),
    _Call("numpy.core.multiarray._reconstruct", "x", (10**9,), b"b"),
    _Call("numpy.core.multiarray.scalar", "x", b"x"),
    _Call("_codecs.encode", "x" * 100, "zip"),
    _Call("_codecs.decode", "x", "base64"),
    _Call("collections.defaultdict", "x"),
    _Call("webbrowser.open", "http://127.0.0.1:9"),
    _Call("ctypes.string_at", 0),
)


def read(folder: Path) -> object:
    """Any pickle."""
    return load_pickle(folder / "data.pkl")


def read_table(folder: Path) -> object:
    """A table that pandas pickled."""
    return load_table(folder / "data.pkl")


def _case(name: str, content: bytes, *, table: bool = False, **options) -> Case:
    reader = read_table if table else read
    return Case(name + ", as a table" * table, {"data.pkl": content}, reader, **options)


def good() -> dict:
    """What a pickle may hold."""
    return {
        "boxes": np.arange(12, dtype=np.float32).reshape(2, 6),
        "names": ["a", "ä", b"raw", 2**70, -1.5, None, True],
        "set": {1, 2},
        "nested": [[(1, 2), {"x": [3]}]] * 3,
        "scalar": np.float64(2.5),
        "objects": np.array([[1, "x"], [None, 2.0]], object),
        "text": np.array(["ab", "c"]),
    }


def known() -> list[Case]:
    """What was found."""
    value = good()
    cases = [_case(f"protocol {p}", pickle.dumps(value, p), expected=value) for p in range(6)]
    for call in CALLS:
        body = call.opcodes()
        # A dict that makes its items by what it is given is read as a plain one.
        expected = ANY if call.function == "collections.defaultdict" else REFUSED
        content = b"\x80\x02" + body + b"."
        cases.append(_case(f"calls {call.function}", content, expected=expected))
        cases.append(_case(f"calls {call.function}", content, table=True))
    nested = b"\x80\x02]" + b"".join(c.opcodes() + b"a" for c in CALLS[:1]) + b"."
    many = [np.arange(64)] * 4000
    return [
        *cases,
        _case("a call in a list", nested),
        _case("an instance", b"(S'" + _COMMAND.encode() + b"'\nios\nsystem\n."),
        _case("an object", b"(cos\nsystem\nS'" + _COMMAND.encode() + b"'\no."),
        _case("a dotted name", b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
        _case("an extension", b"\x80\x02\x82\x01."),
        _case("a persistent id", b"\x80\x02K\x01Q."),
        _case("state that is run", b"\x80\x02cnumpy\ndtype\n(K\x01tR}b."),
        _case("2^40 bytes announced", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."),
        _case("2^31 bytes announced", b"\x80\x02B" + struct.pack("<I", 2**31) + b"x."),
        _case(
            "a frame of 2^60",
            b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
            expected=None,
            may_refuse=True,
        ),
        _case("a memo index of 2.5e8", b"\x80\x02Kar" + struct.pack("<I", 250_000_000) + b"."),
        _case("a memo index of 7 bytes", b"Nr\xff\xff\xff\xff."),
        _case("a memo index of text", b"Np4000000000\n."),
        _case("a number of 10^6 digits", b"I" + b"9" * 10**6 + b"\n."),
        _case(
            "a long of 10^6 bytes",
            b"\x80\x02\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b".",
            expected=ANY,
        ),
        _case("4,000 references to one array", pickle.dumps(many), expected=many, may_refuse=True),
        _case("tuples that double 60 times", b"\x80\x02)" + b"2\x86" * 60 + b"."),
        _case("tuples that double in a set", b"\x80\x04\x8f()" + b"2\x86" * 40 + b"\x90."),
        _case("tuples that double as a key", b"\x80\x02})" + b"2\x86" * 40 + b"Ns."),
        _case("10,000 nested lists", b"(" * 10_000 + b"l" * 10_000 + b"."),
        _case("a list in itself", b"\x80\x02]q\x00h\x00a."),
        _case("a dict in itself", b"\x80\x02}q\x00K\x01h\x00s."),
        _case("no end", pickle.dumps(value)[:-1]),
        _case("empty", b""),
        _case("text", b"hello\n"),
        _case("an empty stack", b"."),
        _case("a mark at the end", b"(."),
        _case("an array of pointers", _array(b"O8", 16)),
        _case("an array of 2^40 items", _array(b"f8", 8, (2**40,))),
        _case("an array of negative size", _array(b"f8", 8, (-1,))),
        _case("an array of no rows", _array(b"f8", 0, (10**9, 0))),
        _case("text of no Unicode", _array(b"U1", 4, (1,), b"\xff\xff\xff\xff")),
    ]


def _array(code: bytes, size: int, shape: tuple = (2,), data: bytes | None = None) -> bytes:
    """An array as protocol 2 writes it, with another dtype, shape and data."""
    data = bytes(size) if data is None else data
    dtype = b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R"
    state = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    body = pickle.dumps(shape, 2)[2:-1]
    raw = b"B" + struct.pack("<I", len(data)) + data
    return b"\x80\x02" + head + b"(K\x01" + body + dtype + state + b"\x89" + raw + b"tb."


def _program(rng: np.random.Generator) -> bytes:
    """Random opcodes with small arguments, calls among them."""
    parts = [b"\x80\x04"]
    opcodes = [o for o in pickletools.opcodes if o.name not in ("PROTO", "STOP", "FRAME")]
    for _ in range(int(rng.integers(1, 40))):
        if rng.random() < 0.1:
            parts.append(CALLS[int(rng.integers(len(CALLS)))].opcodes())
            continue
        opcode = opcodes[int(rng.integers(len(opcodes)))]
        parts.append(opcode.code.encode("latin1") + _argument(rng, opcode))
    return b"".join(parts) + b"."


def _argument(rng: np.random.Generator, opcode: pickletools.OpcodeInfo) -> bytes:
    if opcode.arg is None:
        return b""
    length = opcode.arg.n
    if length == pickletools.UP_TO_NEWLINE:
        texts = (b"0\n", b"1\n", b"'x'\n", b"x\n", b"99999999999\n", b"1.5\n")
        text = texts[int(rng.integers(len(texts)))]
        return b"os\nsystem\n" if opcode.name in ("GLOBAL", "INST") else text
    widths = {
        pickletools.TAKEN_FROM_ARGUMENT1: "<B",
        pickletools.TAKEN_FROM_ARGUMENT4: "<i",
        pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
        pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
    }
    if length in widths:
        data = rng.bytes(int(rng.integers(4)))
        return struct.pack(widths[length], len(data)) + data
    return (
        bytes([int(rng.integers(4))]) + bytes(length - 1)
        if rng.random() < 0.8
        else rng.bytes(length)
    )


def draw(rng: np.random.Generator) -> Case:
    """A damaged pickle, or a random program: nothing is run, nothing takes long."""
    table = bool(rng.random() < 0.2)
    if rng.random() < 0.5:
        content = _program(rng)
        return _case(f"program {content[:16].hex()}", content, table=table, expected=ANY)
    content, name = damage(rng, pickle.dumps(good(), int(rng.integers(6))))
    return _case(name, content, table=table, expected=ANY)


KIND = Kind("pickle", known, draw)
