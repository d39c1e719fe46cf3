"""Pickles that call a function when Python's own ``pickle`` loads them."""

import pickle
from collections.abc import Callable
from pathlib import Path


class Call:
    """Pickled as a call, and a state for what it gives."""

    def __init__(self, function: Callable, *args: object, state: object = None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.parts


def write_pickle(file: Path, content: object, protocol: int = 5) -> Path:
    """Write a pickle; returns the file."""
    file.write_bytes(pickle.dumps(content, protocol))
    return file
