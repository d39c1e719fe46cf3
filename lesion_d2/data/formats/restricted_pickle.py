"""Restricted unpickler: reads arrays and plain containers, and never runs code.

No NumPy object takes its state from the file: the state of a dtype can declare pointers to objects
as numbers, and that of an array can refer to other memory. Functions that a pickle calls by NumPy's
names only record their arguments; arrays are built from them after loading, once the arguments are
checked.
"""

import io
import math
import os
import pickle
import re
from collections.abc import Callable, Mapping

import numpy as np

from ...utils.files import one_line
from .pickle_opcodes import Refused, check_opcodes
from .problems import short_repr

__all__ = ["Converter", "Refused", "StandIn", "load_pickle"]

_BUILTINS = ("builtins", "__builtin__")
# Pickled by NumPy 1 and 2.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_DTYPE_CODE = re.compile(r"b1|[iufc][0-9]{1,2}|[SU][0-9]{1,9}|O[48]?")
_LARGEST_CODE_POINT = 0x10FFFF
# Items and bytes that may be created from a file: a multiple of its size, plus a constant for small
# files.
_SLACK, _SMALL = 8, 4096
_REACHED = 4  # the same for items counted once per use
_MAX_NAME = 100  # characters in a message


def load_pickle(
    file: str | os.PathLike, names: Mapping[tuple[str, str], Callable] | None = None
) -> object:
    """Read a pickle of NumPy arrays and scalars, plain containers, numbers and text.

    Memory and time are bounded by the size n of the file in bytes: at most 8 n + 4,096 items and
        bytes are created; and a traversal of the result, which visits a part as often as the file
        uses it, meets at most 4 n + 4,096 items.

    Pickles of Python 2 are supported; their text is decoded as Latin-1, as NumPy's arrays in them
    require. Arrays and scalars may have bools, numbers or text, arrays also objects. Dicts of
    ``collections`` are returned as plain dicts.

    Args:
        file: its path.
        names: additional callables by module and name, which return a :class:`StandIn`; created for
            this file only.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file contains anything else, such as ``os.system``, which the message names
            and which is neither imported nor run; or an array whose data do not match its shape and
            dtype; or it is not a readable pickle.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such file")
    with open(file, "rb") as opened:
        data = opened.read()
    try:
        check_opcodes(data)
        budget = _Budget(len(data))
        loaded = _Unpickler(io.BytesIO(data), names or {}, budget, encoding="latin1").load()
        return Converter(len(data), budget).convert(loaded)
    except Refused as error:
        raise ValueError(f"{file}: {error}") from None
    # A damaged pickle can raise any exception.
    except Exception as error:
        text = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"{file}: found no readable pickle ({text})") from None


class _Budget:
    """Limit on what may be created from a file, so that its bytes are not copied repeatedly."""

    def __init__(self, file_size: int):
        self.file_size = file_size
        self.left = _SLACK * file_size + _SMALL

    def take(self, size: int) -> None:
        """Count items or bytes; raises ``Refused`` if there are too many."""
        self.left -= size
        if self.left < 0:
            raise Refused(
                f"found copies of {short_repr(size)} items or bytes in a pickle of "
                f"{self.file_size} bytes, expected no repeated copies of its parts"
            )


class StandIn:
    """Placeholder for an object of a class; records its arguments and its state.

    Subclasses are created per pickle. A pickle can only write to these two attributes: classes are
    refused as objects, and ``__setstate__`` is not that of the real class.
    """

    __slots__ = ("args", "state")

    def __new__(cls, *args):
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: object):
        self.state = state

    def convert(self, converter: "Converter") -> object:
        """Convert to the real object, including its content."""
        raise NotImplementedError


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, names: Mapping[tuple[str, str], Callable], budget: _Budget, **kwargs):
        super().__init__(file, **kwargs)
        self._allowed = {**names, **_allowed(budget)}

    def find_class(self, module: str, name: str) -> Callable:
        """Return one of the few callables that are allowed, by exact name."""
        try:
            return self._allowed[module, name]
        except KeyError:
            asked = one_line(f"{module}.{name}")[:_MAX_NAME]
            raise Refused(
                f"found {asked} in the pickle, expected NumPy arrays and plain containers"
            ) from None


class _Dtype:
    """The arguments of a dtype."""

    __slots__ = ("code", "state")

    def __init__(self, code: object):
        self.code = code
        self.state = (3, "=", None, None, None)

    def __setstate__(self, state: object):
        self.state = state


class _Array:
    """The arguments of an array."""

    __slots__ = ("axis_order", "state")

    def __init__(self, state: object = None, axis_order: object = None):
        self.state = state  # version, shape, dtype, is in Fortran order, data
        self.axis_order = axis_order

    def __setstate__(self, state: object):
        self.state = state


class _Scalar:
    """The arguments of a scalar."""

    __slots__ = ("args",)

    def __init__(self, args: tuple):
        self.args = args  # dtype, data


def _filled(kind: type, budget: _Budget) -> Callable:
    """Sets and dicts from items, as in protocols 0 to 3; created per file, see _allowed."""

    def fill(items: list | tuple = ()) -> object:
        budget.take(len(items))
        return kind(items)

    return fill


def _empty(kind: type) -> Callable:
    """``b""``, as in protocols 0 to 2; for other types only the name, as in defaultdict."""

    def make(*items) -> object:
        if items:
            raise Refused(f"found a call of {kind.__name__} in the pickle, expected only its name")
        return kind()

    return make


def _allowed(budget: _Budget) -> dict[tuple[str, str], Callable]:
    """(module, name) -> function that replaces it.

    The functions are created for every file, because a pickle can modify everything it can name.
    For the same reason, the classes above have no names here.
    """

    def encode(text: str, encoding: str = "latin1") -> bytes:
        """Bytes, as in protocols 0 to 2."""
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"found bytes as {encoding!r} in the pickle, expected 'latin1'")
        budget.take(len(text))
        return text.encode("latin1")

    def default_dict(factory: object = None) -> dict:
        """An empty dict; the following opcodes fill it."""
        return {}

    def ndarray(*args):
        """Placeholder for the class of arrays, allowed by name only."""
        raise Refused("found a call of numpy.ndarray in the pickle, expected only its name")

    def reconstruct(kind: object, shape: object, code: object) -> _Array:
        """An array whose state follows."""
        if kind is not ndarray:
            raise Refused(f"found an array of the class {short_repr(kind)}, expected numpy.ndarray")
        return _Array()

    def scalar(dtype: object, data: object = b"") -> _Scalar:
        """A scalar."""
        return _Scalar((dtype, data))

    def from_buffer(data, dtype, shape, order, axis_order=None) -> _Array:
        """An array, as in protocol 5."""
        return _Array((None, shape, dtype, order == "F", data), axis_order)

    def dtype(code: object, align: object = False, copy: object = False) -> _Dtype:
        """A dtype whose state follows."""
        return _Dtype(code)

    return {
        **{
            (m, kind.__name__): _filled(kind, budget)
            for m in _BUILTINS
            for kind in (set, frozenset)
        },
        **{(m, k.__name__): _empty(k) for m in _BUILTINS for k in (bytes, dict, list, tuple)},
        **{(m, "_reconstruct"): reconstruct for m in _MULTIARRAY},
        **{(m, "scalar"): scalar for m in _MULTIARRAY},
        **{(m, "_frombuffer"): from_buffer for m in _NUMERIC},
        ("numpy", "ndarray"): ndarray,
        ("numpy", "dtype"): dtype,
        ("_codecs", "encode"): encode,
        ("collections", "OrderedDict"): _filled(dict, budget),
        ("collections", "defaultdict"): default_dict,
    }


class Converter:
    """Converts what was loaded to new plain containers and arrays.

    Args:
        file_size: size in bytes; no result has more items than that.
        budget: limit on everything that is created.
    """

    def __init__(self, file_size: int, budget: _Budget):
        self.file_size, self.budget = file_size, budget
        # id -> converted object and its number of items; shared objects are converted once.
        self._done: dict[int, tuple[object, int]] = {}
        self._reached = 0

    def convert(self, value: object) -> object:
        """Convert a value; raises ``Refused`` for other types and for recursive containers."""
        self._reach(1)
        if value is None or type(value) in (bool, int, float, str, bytes, bytearray):
            return value
        if id(value) in self._done:
            converted, size = self._done[id(value)]
            self._reach(size)
            return converted
        before = self._reached
        converted = self._convert(value)
        if isinstance(converted, np.ndarray) and not converted.dtype.hasobject:
            self._reach(converted.size)
        self._done[id(value)] = converted, self._reached - before
        return converted

    def _reach(self, num_items: int) -> None:
        self._reached += num_items
        most = _REACHED * self.file_size + _SMALL
        if self._reached > most:
            raise Refused(
                f"found more than {most} items in a pickle of {self.file_size} bytes if shared "
                "parts count repeatedly, expected parts that are used once or a few times"
            )

    def _convert(self, value: object) -> object:
        kind = type(value)
        if kind is dict:
            return {self.convert(key): self.convert(item) for key, item in value.items()}
        if kind in (list, tuple, set, frozenset):
            return kind([self.convert(item) for item in value])
        if kind is _Dtype:
            return _dtype(value)
        if kind is _Scalar:
            dtype, data = value.args
            if _dtype(dtype).kind == "O":
                raise Refused("found a scalar of dtype object in the pickle, expected a number")
            return self._array((), dtype, "C", data)[()]
        if kind is _Array:
            if type(value.state) is not tuple or len(value.state) != 5:
                raise Refused(
                    f"found an array's state {short_repr(value.state)}, expected 5 values"
                )
            _, shape, dtype, is_fortran, data = value.state
            array = self._array(shape, dtype, "F" if is_fortran else "C", data)
            return array if value.axis_order is None else array.transpose(value.axis_order)
        if isinstance(value, StandIn):
            return value.convert(self)
        raise Refused(
            f"found a value of type {kind.__name__} in the pickle, expected arrays and plain "
            "containers"
        )

    def _array(self, shape: object, dtype: object, order: str, data: object) -> np.ndarray:
        """Build an array that owns its memory."""
        dtype = _dtype(dtype)
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused(
                f"found an array's shape {short_repr(shape)}, expected numbers of 0 or more"
            )
        size = math.prod(shape)
        # Empty ones too: (10**9, 0) has no data and very many rows.
        if max((size, *shape)) > self.file_size:
            raise Refused(
                f"found an array's shape {short_repr(shape)}, expected sizes up to the "
                "file's number of bytes"
            )
        self.budget.take(max((size, *shape)) + (0 if dtype.kind == "O" else size * dtype.itemsize))
        if dtype.kind == "O":
            return self._object_array(shape, size, order, data)
        if type(data) is str:  # from Python 2
            data = data.encode("latin1")
        if type(data) not in (bytes, bytearray):
            raise Refused(f"found {short_repr(data)} as an array's data, expected bytes")
        if len(data) != size * dtype.itemsize:
            raise Refused(
                f"found {len(data)} bytes for an array of the shape {short_repr(shape)} and the "
                f"dtype {dtype}, expected {size * dtype.itemsize}"
            )
        if dtype.kind == "b":  # NumPy relies on bytes of 0 and 1
            return np.ndarray(shape, np.uint8, bytes(data), order=order) != 0
        if dtype.kind == "U":  # and Python on these
            points = np.frombuffer(bytes(data), np.dtype("u4").newbyteorder(dtype.byteorder))
            if (points > _LARGEST_CODE_POINT).any():
                raise Refused(
                    "found invalid code points in a text array in the pickle, expected Unicode"
                )
        return np.ndarray(shape, dtype, bytes(data), order=order).copy(order="K")

    def _object_array(self, shape: tuple, size: int, order: str, data: object) -> np.ndarray:
        if type(data) is not list:  # raw bytes are pointers
            raise Refused(
                f"found {short_repr(data)} as the data of an array of objects, expected a list"
            )
        if len(data) != size:
            raise Refused(
                f"found {len(data)} objects for an array of the shape {short_repr(shape)}, "
                f"expected {size}"
            )
        array = np.empty(size, object)
        for i, item in enumerate(data):
            array[i] = self.convert(item)
        return np.array(array.reshape(shape), order=order)  # the list is always in C order


def _dtype(kept: object) -> np.dtype:
    """Build a dtype of bools, numbers, text or objects, with the byte order of its state."""
    if type(kept) is not _Dtype:
        raise Refused(f"found {short_repr(kept)} in the pickle, expected a dtype")
    if type(kept.code) is not str or not _DTYPE_CODE.fullmatch(kept.code):
        raise Refused(
            f"found the dtype {short_repr(kept.code)} in the pickle, expected bools, "
            "numbers, text or objects"
        )
    if type(kept.state) is not tuple or len(kept.state) < 5:
        raise Refused(f"found a dtype's state {short_repr(kept.state)}, expected 5 or more values")
    order, *structure = kept.state[1:5]
    if order not in ("<", ">", "=", "|") or structure != [None, None, None]:
        raise Refused(
            f"found a dtype's state {short_repr(kept.state)}, expected a byte order and no fields"
        )
    if kept.code.startswith("O"):
        return np.dtype(object)
    return np.dtype(kept.code).newbyteorder(order)
