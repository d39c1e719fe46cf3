"""Generated data sets on disk: complete or absent, and never mistaken for one another."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..utils.files import atomic_folder, read_json, recover_folder, write_json

logger = logging.getLogger(__name__)

#: In the metadata of a dataclass field that was added later, see :func:`write_data_set`.
LATER = {"later": True}


def check_options(kind: str, options: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Check the numbers among the options of a generated data set.

    Args:
        kind: of data set, for the message.
        options: a dataclass.
        limits: name -> the lowest and the highest value that it may have.

    Raises:
        ValueError: one is out of its range.
    """
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise ValueError(f"{kind} option {name}: found {value}, expected {low} to {high}")


def write_data_set(
    root: str | Path,
    kind: str,
    options: Any,
    write: Callable[[Path], None],
    *,
    overwrite: bool = False,
) -> bool:
    """Write a data set whose content its options decide, unless it is there already.

    Args:
        root: the data set's folder; made by renaming, after everything was written beside it.
        kind: of data set, such as "phantom"; its options stand in ``<kind>.json``.
        options: a dataclass. A field with ``LATER`` in its metadata came after data sets had been
            written without it: its default is not stored, which keeps them complete.
        write: fills the empty folder that it is given.
        overwrite: replace a folder that was written with other options.

    Returns:
        True if it was written, False if it was there with the same options.

    Raises:
        FileExistsError: if ``root`` holds a data set with other options and ``overwrite`` is not
            set, or anything that is no data set of this kind.
        BlockingIOError: another process writes it.
        OSError: it cannot be written, such as on a full disk.
    """
    root = Path(root).absolute()
    recover_folder(root)
    if root.exists() and _holds_these(root, kind, options, overwrite):
        logger.info("The %s data set in %s is complete: nothing to do", kind, root)
        return False
    with atomic_folder(root) as partial_root:
        if root.exists():  # maybe of a call that was faster
            _holds_these(root, kind, options, overwrite)
        write(partial_root)
        write_json(partial_root / f"{kind}.json", _stored(options), indent=2, flush=False)
        os.sync()
    return True


def _stored(options: Any) -> dict:
    """The content of ``<kind>.json``."""
    defaults = _later_defaults(options)
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}


def _later_defaults(options: Any) -> dict:
    """What holds for data sets that say nothing about the fields that came later."""
    return {f.name: f.default for f in fields(options) if f.metadata.get("later")}


def _holds_these(root: Path, kind: str, options: Any, overwrite: bool) -> bool:
    """Whether ``root`` is a data set with these options; raises where it must not be replaced."""
    defaults = _later_defaults(options)
    wanted = {**defaults, **_stored(options)}
    try:
        found = {**defaults, **read_json(root / f"{kind}.json", "options")}
    except (OSError, TypeError, ValueError):  # TypeError: JSON, but no object
        raise FileExistsError(
            f"{root} exists and is no {kind} data set (no readable {kind}.json): choose another "
            "folder, or remove it"
        ) from None
    if found != wanted and not overwrite:
        keys = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
        text = ", ".join(f"{k} {found.get(k)} instead of {wanted.get(k)}" for k in keys)
        raise FileExistsError(
            f"{root} holds a {kind} data set with other settings ({text}): choose another folder, "
            "or pass --overwrite (overwrite=True) to replace it"
        )
    return found == wanted and not overwrite
