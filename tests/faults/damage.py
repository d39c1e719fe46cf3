"""Ways to damage what files hold: bytes, and trees of JSON."""

import copy
import json
from collections.abc import Callable, Iterator

import numpy as np

Path = tuple[str | int, ...]

#: What no field of a number, a list of numbers, a text or an object takes.
STRANGE = (
    None,
    "x",
    "",
    -1,
    1e29,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"size": 5},
    True,
    "9" * 30,
    10**300,
    "../../etc/passwd",
    "\x1b[2J\u202e",
)


def flip_bits(rng: np.random.Generator, data: bytes, start: int = 0, end: int | None = None):
    """Flip one to four bits. Returns the data and words for it."""
    end = len(data) if end is None else end
    changed, places = bytearray(data), []
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        place, bit = int(rng.integers(start, end)), int(rng.integers(8))
        changed[place] ^= 1 << bit
        places.append(f"bit {bit} of byte {place}")
    return bytes(changed), "flip " + ", ".join(places)


def cut(rng: np.random.Generator, data: bytes):
    """Keep a part from the start."""
    length = int(rng.integers(len(data)))
    return data[:length], f"cut to {length} bytes"


def splice(rng: np.random.Generator, data: bytes):
    """Remove, double, overwrite or insert a stretch."""
    start = int(rng.integers(len(data)))
    length = int(rng.integers(1, min(64, len(data)) + 1))
    stretch = data[start : start + length]
    way = int(rng.integers(4))
    middle = (
        b"",
        stretch * 2,
        rng.bytes(len(stretch)),
        rng.bytes(length) + stretch,
    )[way]
    name = ("remove", "double", "overwrite", "insert")[way]
    return data[:start] + middle + data[start + length :], f"{name} {length} bytes at {start}"


DAMAGES: tuple[Callable, ...] = (flip_bits, flip_bits, cut, splice)


def damage(rng: np.random.Generator, data: bytes):
    """Damage bytes in any way. Returns the data and words for it."""
    return DAMAGES[int(rng.integers(len(DAMAGES)))](rng, data)


def paths_of(tree: object, path: Path = ()) -> Iterator[Path]:
    """The paths of all that a tree of dicts and lists has below its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from paths_of(value, (*path, key))


def get(tree: object, path: Path) -> object:
    """The content at a path."""
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: object, path: Path, value: object) -> object:
    """A copy of a tree with another value at a path; at () the value itself."""
    if not path:
        return value
    tree = copy.deepcopy(tree)
    get(tree, path[:-1])[path[-1]] = value
    return tree


def without(tree: object, path: Path) -> object:
    """A copy of a tree without the content at a path."""
    tree = copy.deepcopy(tree)
    del get(tree, path[:-1])[path[-1]]
    return tree


def change_tree(rng: np.random.Generator, tree: object) -> tuple[object, Path, str]:
    """Remove an item of a tree, or replace it by something strange.

    Returns:
        The tree, the path of the change, and words for it.
    """
    paths = list(paths_of(tree))
    path = paths[int(rng.integers(len(paths)))]
    if rng.random() < 0.2:
        return without(tree, path), path, f"remove {dotted(path)}"
    value = STRANGE[int(rng.integers(len(STRANGE)))]
    return replaced(tree, path, value), path, f"{dotted(path)} = {str(value)[:20]!r}"


def dotted(path: Path) -> str:
    """A path as text."""
    return ".".join(map(str, path))


def as_json(tree: object) -> bytes:
    """JSON, with NaN where there is one."""
    return json.dumps(tree).encode()


#: Files that hold no object of JSON: what is there, and the bytes.
NO_JSON = (
    ("empty", b""),
    ("an open brace", b"{"),
    ("a zero byte", b"\x00"),
    ("UTF-16", "{}".encode("utf-16")),
    ("no UTF-8", b'{"a": "\xff"}'),
    ("10,000 nested lists", b"[" * 10_000 + b"]" * 10_000),
    ("100,000 open brackets", b"[" * 100_000),
    ("a number of 5,000 digits", b"9" * 5_000),
    ("a list with a number of 5,000 digits", b"[" + b"9" * 5_000 + b"]"),
    ("null", b"null"),
    ("a number", b"5"),
    ("a text", b'"x"'),
    ("an empty object", b"{}"),
    ("a list of null", b"[null]"),
    ("two objects", b"{}{}"),
    ("YAML", b"a: [1, 2]\n"),
)
