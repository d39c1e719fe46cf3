"""Restricted unpickler of pandas tables, which neither imports pandas nor runs code."""

import os
from collections.abc import Mapping

import numpy as np

from .problems import short_repr
from .restricted_pickle import Converter, Refused, StandIn, load_pickle

# Modules of the classes in the supported pandas versions; other names are refused.
_FRAMES = (("pandas.core.frame", "DataFrame"), ("pandas", "DataFrame"))
_MANAGERS = tuple(
    (module, "BlockManager")
    for module in ("pandas.core.internals", "pandas.core.internals.managers")
)
_NEW_INDEX = tuple(
    (module, "_new_Index") for module in ("pandas.core.indexes.base", "pandas.indexes.base")
)
_INDEX_KINDS = (
    ("pandas", "Index"),
    ("pandas", "RangeIndex"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.numeric", "Int64Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.indexes.base", "Index"),
    ("pandas.indexes.numeric", "Int64Index"),
    ("pandas.indexes.range", "RangeIndex"),
)
_STRINGS = (("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"),)
_STRING_KINDS = (
    ("pandas.arrays", "StringArray"),
    ("pandas.core.arrays.string_", "StringArray"),
    ("pandas.core.arrays.string_", "StringArrayNumpySemantics"),
    ("pandas", "StringDtype"),
    ("pandas.core.arrays.string_", "StringDtype"),
)
_BLOCKS = (("pandas._libs.internals", "_unpickle_block"),)
_SLICES = (("builtins", "slice"), ("__builtin__", "slice"))


def load_table(file: str | os.PathLike) -> dict[str, list]:
    """Read a DataFrame written by ``pandas.DataFrame.to_pickle``, for pandas 0.20 to 3.

    pandas is neither imported nor run: callables with its names only record their arguments, see
        :func:`load_pickle`. Columns may contain bools, numbers, text and plain Python objects with
        NumPy arrays, but not times, categories or text stored by pyarrow.

    Returns:
        Column -> its values, one per row.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file contains anything else, or no such table.
    """
    content = load_pickle(file, _names())
    if not isinstance(content, _Table):
        raise ValueError(f"{file}: found {short_repr(content)}, expected a pandas DataFrame")
    return content.columns


class _Table:
    """A converted table; a pickle cannot create one."""

    def __init__(self, columns: dict[str, list]):
        self.columns = columns


def _names() -> dict[tuple[str, str], type]:
    """(module, name) -> a placeholder class, created for one file."""
    kinds = {
        _Frame: _FRAMES,
        _Manager: _MANAGERS,
        _Index: _NEW_INDEX,
        _Block: _BLOCKS,
        _Strings: _STRINGS,
        _Slice: _SLICES,
        _Name: (*_INDEX_KINDS, *_STRING_KINDS),
    }
    return {
        name: type(name[1], (kind,), {"__slots__": ()})
        for kind, names in kinds.items()
        for name in names
    }


class _Name(StandIn):
    """The name of a class, or a dtype of text."""

    __slots__ = ()

    def convert(self, converter: Converter) -> None:
        return None


class _Slice(StandIn):
    __slots__ = ()

    def convert(self, converter: Converter) -> slice:
        if not 1 <= len(self.args) <= 3 or not all(n is None or type(n) is int for n in self.args):
            raise Refused(f"found the slice {short_repr(self.args)}, expected up to three numbers")
        return slice(*self.args)


class _Strings(StandIn):
    """Text of pandas 3: a class and a checksum; the state is its dtype and an array of objects."""

    __slots__ = ()

    def convert(self, converter: Converter) -> np.ndarray:
        parts = self.state if type(self.state) is tuple else ()
        arrays = [a for a in map(converter.convert, parts) if isinstance(a, np.ndarray)]
        if len(arrays) != 1 or arrays[0].ndim != 1:
            raise Refused(f"found a column of text with {len(arrays)} arrays, expected one")
        return arrays[0]


class _Index(StandIn):
    """Names of columns or rows: a class and its data."""

    __slots__ = ()

    def convert(self, converter: Converter) -> list:
        made_from = self.args[1] if len(self.args) == 2 else None
        if not isinstance(made_from, dict):
            raise Refused(f"found an index of {short_repr(self.args)}, expected a class and a dict")
        if "data" in made_from:
            data = converter.convert(made_from["data"])
            if not isinstance(data, np.ndarray) or data.ndim != 1:
                raise Refused(f"found an index of {short_repr(data)}, expected an array")
            converter.budget.take(data.size)
            return data.tolist()
        ends = tuple(made_from.get(key) for key in ("start", "stop", "step"))
        if not all(type(n) is int for n in ends) or ends[2] == 0:
            raise Refused(f"found an index of {short_repr(made_from)}, expected 'data' or a range")
        rows = range(*ends)
        if len(rows) > converter.file_size:
            raise Refused(f"found an index of {len(rows)} rows, expected fewer rows than bytes")
        converter.budget.take(len(rows))
        return list(rows)


class _Block(StandIn):
    """Columns of one dtype: values, indices in the table, number of dimensions."""

    __slots__ = ()

    def convert(self, converter: Converter) -> tuple[np.ndarray, object]:
        if len(self.args) != 3:
            raise Refused(f"found a block of {short_repr(self.args)}, expected three values")
        return converter.convert(self.args[0]), converter.convert(self.args[1])


class _Manager(StandIn):
    """All blocks and both indices: its arguments, or its state before pandas 1.3."""

    __slots__ = ()

    def convert(self, converter: Converter) -> _Table:
        axes, blocks = self._by_state() if self.state is not None else self._by_args()
        names, rows = (converter.convert(axis) for axis in axes)
        columns: dict[int, list] = {}
        for block in blocks:
            if isinstance(block, _Block):
                values, places = converter.convert(block)
            else:
                values, places = (converter.convert(block.get(k)) for k in ("values", "mgr_locs"))
            columns.update(_block_columns(values, places, len(names), len(rows)))
            converter.budget.take(values.size)
        if not all(type(name) is str for name in names) or len(set(names)) != len(names):
            raise Refused(f"found the columns {short_repr(names)}, expected unique names")
        if len(columns) != len(names):
            raise Refused(f"found values of {len(columns)} columns, expected {len(names)}")
        return _Table({name: columns[number] for number, name in enumerate(names)})

    def _by_args(self) -> tuple[list, list]:
        blocks, axes = self.args if len(self.args) == 2 else (None, None)
        if type(blocks) is not tuple or not all(isinstance(block, _Block) for block in blocks):
            raise Refused(f"found a table of {short_repr(blocks)}, expected blocks")
        return _two_axes(axes), list(blocks)

    def _by_state(self) -> tuple[list, list]:
        latest = self.state[-1] if type(self.state) is tuple and self.state else None
        parts = latest.get("0.14.1") if isinstance(latest, Mapping) else None
        blocks = parts.get("blocks") if isinstance(parts, dict) else None
        if type(blocks) is not list or not all(isinstance(block, dict) for block in blocks):
            raise Refused(
                f"found a table's state {short_repr(self.state)}, expected blocks and axes"
            )
        return _two_axes(parts.get("axes")), blocks


class _Frame(StandIn):
    __slots__ = ()

    def convert(self, converter: Converter) -> _Table:
        state = self.state if isinstance(self.state, dict) else {}
        manager = state.get("_mgr", state.get("_data"))
        if not isinstance(manager, _Manager):
            raise Refused(
                f"found a DataFrame of {short_repr(sorted(map(str, state)))}, expected _mgr"
            )
        return converter.convert(manager)


def _two_axes(axes: object) -> list:
    if type(axes) is not list or len(axes) != 2 or not all(isinstance(a, _Index) for a in axes):
        raise Refused(f"found the axes {short_repr(axes)}, expected names of columns and rows")
    return axes


def _block_columns(
    values: object, places: object, num_columns: int, num_rows: int
) -> dict[int, list]:
    """Index of a column -> its values."""
    if isinstance(places, slice):
        places = list(range(*places.indices(num_columns)))
    elif isinstance(places, np.ndarray) and places.dtype.kind == "i":
        places = places.ravel().tolist()
    if not isinstance(values, np.ndarray):
        raise Refused(f"found columns of {short_repr(values)}, expected an array")
    values = values[None] if values.ndim == 1 else values
    fits = isinstance(places, list) and values.shape == (len(places), num_rows)
    if not fits or not all(0 <= place < num_columns for place in places):
        raise Refused(
            f"found values of shape {values.shape} for the columns {short_repr(places)}, expected "
            f"{num_rows} rows in {num_columns} columns"
        )
    return dict(zip(places, map(list, values), strict=True))
