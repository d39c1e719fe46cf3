"""Types of command line arguments, and the KEY VALUE pairs at their end."""

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from lesion_d2.data.roots import resolve_root
from lesion_d2.data.volume_set.form import FILE_NAME
from lesion_d2.data.volume_set.splits import DEFAULT_SHARES
from lesion_d2.utils.shards import WHOLE, Shard, parse_shard

_MAX_NAMES = 5  # in a message


def positive(text: str) -> int:
    """An integer of at least 1, for ``add_argument(type=positive)``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}, expected at least 1")
    return value


def seed(text: str) -> int:
    """A seed from 0 to 2^32 - 1, as NumPy and torch accept it, for ``add_argument(type=seed)``."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"found {text[:40]!r}, expected 0 to 2^32 - 1")
    return value


def add_shares(add: Callable[..., object], text: str) -> None:
    """Add ``--shares TRAIN VAL TEST`` to a command line by its ``add_argument``.

    Args:
        add: ``add_argument``.
        text: the help.
    """
    metavar = ("TRAIN", "VAL", "TEST")
    add("--shares", type=float, nargs=3, default=DEFAULT_SHARES, metavar=metavar, help=text)


def add_shard(
    add: Callable[..., object],
    text: str = "process part I of N; the last of the N calls merges the parts (docs/clusters.md)",
) -> None:
    """Add ``--shard I/N``, parsed to a :class:`Shard`, by a parser's ``add_argument``."""
    add("--shard", type=_shard, default=WHOLE, metavar="I/N", help=text)


def _shard(text: str) -> Shard:
    try:
        return parse_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def data_set_folder(name: str) -> Path:
    """The folder of a volume set, by its name in $DETECTRON2_DATASETS or by its path.

    Raises:
        FileNotFoundError: it has no ``volume_set.json``; the message lists some folders with one.
    """
    root = Path(name if "/" in name else resolve_root(f"$DETECTRON2_DATASETS/{name}"))
    if not (root / FILE_NAME).exists():
        known = sorted(file.parent.name for file in root.parent.glob(f"*/{FILE_NAME}"))
        names = ", ".join(get_close_matches(root.name, known) or known[:_MAX_NAMES])
        raise FileNotFoundError(
            f"{root / FILE_NAME}: no such file, expected a data set of volumes"
            + (f" such as {names}" if names else "")
        )
    return root


def config_options(opts: Sequence[str]) -> list[str]:
    """Config options of a command line, without a leading ``--``."""
    return [*opts[1:]] if opts[:1] == ["--"] else [*opts]


def key_value_pairs(opts: Sequence[str]) -> list[tuple[str, str]]:
    """Parse config options to a list of (key, value).

    Raises:
        ValueError: a value is missing.
    """
    if len(opts) % 2:
        raise ValueError(f"found the options {' '.join(opts)!r}, expected pairs of KEY VALUE")
    return list(zip(opts[::2], opts[1::2], strict=True))
