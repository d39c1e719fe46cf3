"""Pickles read without running anything that they carry: arrays and plain containers alone.

No NumPy object takes its state from the file: a dtype's state can say that pointers to objects are
numbers, and an array's that it lies elsewhere. What a pickle calls in NumPy's name only keeps its
arguments; the arrays are made from them after loading, once they are checked.
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
# Items and bytes that may be made of a file: so many times its size, and some for small ones.
_SLACK, _SMALL = 8, 4096
_REACHED = 4  # items on all ways through what was read, likewise
_MAX_NAME = 100  # letters of it in a message


def load_pickle(
    file: str | os.PathLike, names: Mapping[tuple[str, str], Callable] | None = None
) -> object:
    """Read a pickle of NumPy arrays and scalars, plain containers, numbers and text.

    Memory and time are bounded by the size of the file, n bytes: what it makes has at most
    8 n + 4,096 items and bytes; and whoever goes through all of it, into a part as often as the
    file uses it, meets at most 4 n + 4,096 items.

    Those that Python 2 wrote can be read too; their text is taken for Latin-1, as NumPy's arrays in
    them need. Arrays and scalars are of bools, numbers or text, arrays of objects too. The dicts of
    ``collections`` come back as plain ones.

    Args:
        file: its path.
        names: more of what it may call, by module and name: what gives a :class:`StandIn`, made
            for this file alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else, such as ``os.system``, which is named and neither
            imported nor run; or an array whose data do not fit its shape and dtype; or it is no
            readable pickle.
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
    # A damaged pickle fails as it likes to.
    except Exception as error:
        text = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"{file}: found no readable pickle ({text})") from None


class _Budget:
    """How much may be made of a file: some bytes of it must not be copied again and again."""

    def __init__(self, file_size: int):
        self.file_size = file_size
        self.left = _SLACK * file_size + _SMALL

    def take(self, size: int) -> None:
        """Raises ``Refused`` where items or bytes of this number are too many."""
        self.left -= size
        if self.left < 0:
            raise Refused(
                f"found copies of {short_repr(size)} items or bytes in a pickle of "
                f"{self.file_size} "
                "bytes, expected each of its parts once"
            )


class StandIn:
    """Placeholder for an object of a class, which keeps its arguments and its state.

    Subclasses are made for one pickle only. A pickle can only write to these two attributes: a
    class is refused as an object, and ``__setstate__`` is not one of the real class.
    """

    __slots__ = ("args", "state")

    def __new__(cls, *args):
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: object):
        self.state = state

    def convert(self, converter: "Converter") -> object:
        """Convert to the real object; its content has to be converted, too."""
        raise NotImplementedError


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, names: Mapping[tuple[str, str], Callable], budget: _Budget, **kwargs):
        super().__init__(file, **kwargs)
        self._allowed = {**names, **_allowed(budget)}

    def find_class(self, module: str, name: str) -> Callable:
        """The few functions and classes that a pickle may call, by their exact names."""
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
    """Sets and dicts of their items, as protocols 0 to 3 write them; made anew, see _allowed."""

    def fill(items: list | tuple = ()) -> object:
        budget.take(len(items))
        return kind(items)

    return fill


def _empty(kind: type) -> Callable:
    """``b""``, as protocols 0 to 2 write it; of others a name, as defaultdict writes it."""

    def make(*items) -> object:
        if items:
            raise Refused(f"found a call of {kind.__name__} in the pickle, expected its name")
        return kind()

    return make


def _allowed(budget: _Budget) -> dict[tuple[str, str], Callable]:
    """(module, name) -> function that replaces it.

    The functions are created for every file, because a pickle can write to everything it can name,
    and so cannot change other state. For the same reason, the classes above have no names here.
    """

    def encode(text: str, encoding: str = "latin1") -> bytes:
        """Bytes, as protocols 0 to 2 write them."""
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"found bytes as {encoding!r} in the pickle, expected 'latin1'")
        budget.take(len(text))
        return text.encode("latin1")

    def default_dict(factory: object = None) -> dict:
        """An empty dict; what follows fills it."""
        return {}

    def ndarray(*args):
        """The name that stands for the class of arrays."""
        raise Refused("found a call of numpy.ndarray in the pickle, expected its name alone")

    def reconstruct(kind: object, shape: object, code: object) -> _Array:
        """An array whose state follows."""
        if kind is not ndarray:
            raise Refused(f"found an array of the class {short_repr(kind)}, expected numpy.ndarray")
        return _Array()

    def scalar(dtype: object, data: object = b"") -> _Scalar:
        """A scalar."""
        return _Scalar((dtype, data))

    def from_buffer(data, dtype, shape, order, axis_order=None) -> _Array:
        """An array, as protocol 5 writes it."""
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
    """From what was loaded to plain containers and arrays, all built anew.

    Args:
        file_size: bytes; nothing that is built has more items than that.
        budget: of all that is built.
    """

    def __init__(self, file_size: int, budget: _Budget):
        self.file_size, self.budget = file_size, budget
        # id -> converted, and items in it: what a file names often is converted once.
        self._done: dict[int, tuple[object, int]] = {}
        self._reached = 0

    def convert(self, value: object) -> object:
        """Raises ``Refused`` for anything else; a container within itself is too deep."""
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
                f"found more than {most} items on all ways through a pickle of {self.file_size} "
                "bytes, expected parts that are used once or a few times"
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
        """An array with memory of its own."""
        dtype = _dtype(dtype)
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise Refused(f"found an array's shape {short_repr(shape)}, expected numbers from 0 on")
        size = math.prod(shape)
        # Empty ones too: (10**9, 0) has no data and very many rows.
        if max((size, *shape)) > self.file_size:
            raise Refused(
                f"found an array's shape {short_repr(shape)}, expected none above the size "
                f"of the file"
            )
        self.budget.take(max((size, *shape)) + (0 if dtype.kind == "O" else size * dtype.itemsize))
        if dtype.kind == "O":
            return self._object_array(shape, size, order, data)
        if type(data) is str:  # of Python 2
            data = data.encode("latin1")
        if type(data) not in (bytes, bytearray):
            raise Refused(f"found {short_repr(data)} as an array's data, expected bytes")
        if len(data) != size * dtype.itemsize:
            raise Refused(
                f"found {len(data)} bytes for an array of the shape {short_repr(shape)} and the "
                f"dtype {dtype}, expected {size * dtype.itemsize}"
            )
        if dtype.kind == "b":  # NumPy counts on bytes of 0 and 1
            return np.ndarray(shape, np.uint8, bytes(data), order=order) != 0
        if dtype.kind == "U":  # and Python on these
            points = np.frombuffer(bytes(data), np.dtype("u4").newbyteorder(dtype.byteorder))
            if (points > _LARGEST_CODE_POINT).any():
                raise Refused("found an array of text with no Unicode in the pickle")
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
        return np.array(array.reshape(shape), order=order)  # the list is in C order always


def _dtype(kept: object) -> np.dtype:
    """Bools, numbers, text and objects; of the state, the byte order alone."""
    if type(kept) is not _Dtype:
        raise Refused(f"found {short_repr(kept)} in the pickle, expected a dtype")
    if type(kept.code) is not str or not _DTYPE_CODE.fullmatch(kept.code):
        raise Refused(
            f"found the dtype {short_repr(kept.code)} in the pickle, expected bools, "
            f"numbers, text or "
            "objects"
        )
    if type(kept.state) is not tuple or len(kept.state) < 5:
        raise Refused(f"found a dtype's state {short_repr(kept.state)}, expected 5 values or more")
    order, *structure = kept.state[1:5]
    if order not in ("<", ">", "=", "|") or structure != [None, None, None]:
        raise Refused(
            f"found a dtype's state {short_repr(kept.state)}, expected a byte order and no fields"
        )
    if kept.code.startswith("O"):
        return np.dtype(object)
    return np.dtype(kept.code).newbyteorder(order)
