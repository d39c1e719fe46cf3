"""Pickles read without running anything that they carry: arrays and plain containers alone."""

import os
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable

import numpy as np

_BUILTINS = {"dict": dict, "frozenset": frozenset, "list": list, "set": set, "tuple": tuple}
# Pickled by NumPy 1 and 2.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


def load_pickle(file: str | os.PathLike) -> object:
    """Read a pickle of NumPy arrays and scalars, plain containers, numbers and text.

    Those that Python 2 wrote can be read too; their text is taken for Latin-1, as NumPy's arrays in
    them need.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else, such as ``os.system``, which is named and neither
            imported nor run; or it is no readable pickle.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such file")
    with open(file, "rb") as opened:
        try:
            return _Unpickler(opened, encoding="latin1").load()
        except _Refused as error:
            raise ValueError(f"{file}: {error}") from None
        # A damaged pickle fails as it likes to.
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{file}: found no readable pickle ({text})") from None


class _Refused(Exception):
    """A pickle asks for what it has no need of."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._allowed = _allowed()

    def find_class(self, module: str, name: str) -> Callable:
        """The few functions and classes that a pickle may call, by their exact names."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise _Refused(
                f"found {module}.{name} in the pickle, expected NumPy arrays and plain containers"
            ) from None


def _allowed() -> dict[tuple[str, str], Callable]:
    """(module, name) -> what stands for it.

    Python's functions are made anew for every file: a pickle can write to what it can name, and
    these have nothing else's state. NumPy's are compiled and cannot be written to.
    """

    def encode(text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise _Refused(f"found bytes as {encoding!r} in the pickle, expected 'latin1'")
        return text.encode("latin1")

    def no_bytes() -> bytes:  # b"" before protocol 3
        return b""

    def from_buffer(buffer, dtype, shape, order, axis_order=None) -> np.ndarray:
        array = np.frombuffer(buffer, dtype)
        if axis_order is None:
            return array.reshape(shape, order=order)
        return array.reshape(shape, order="C").transpose(axis_order)

    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    return {
        **{
            (m, name): kind for m in ("builtins", "__builtin__") for name, kind in _BUILTINS.items()
        },
        **{(m, "bytes"): no_bytes for m in ("builtins", "__builtin__")},
        **{(m, "_reconstruct"): reconstruct for m in _MULTIARRAY},
        **{(m, "scalar"): scalar for m in _MULTIARRAY},
        **{(m, "_frombuffer"): from_buffer for m in _NUMERIC},
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): encode,
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): defaultdict,
    }
