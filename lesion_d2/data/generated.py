"""Generated data sets on disk, written atomically and identified by their options."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..utils.files import atomic_folder, read_json, recover_folder, write_json

logger = logging.getLogger(__name__)

#: Key in the metadata of dataclass fields that were added later, see :func:`write_data_set`.
LATER = {"later": True}


def check_options(kind: str, options: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Check the numeric options of a generated data set.

    Args:
        kind: kind of data set, for messages.
        options: a dataclass.
        limits: name -> lowest and highest allowed value.

    Raises:
        ValueError: an option is out of range.
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
    """Write a data set that is determined by its options, unless it exists.

    Args:
        root: the data set's folder; a temporary folder beside it is renamed at the end.
        kind: kind of data set, such as "phantom"; its options are stored in ``<kind>.json``.
        options: a dataclass. The default of a field with ``LATER`` in its metadata is not stored,
            so that data sets from before the field was added remain valid.
        write: fills the empty folder that it gets.
        overwrite: replace a folder that was written with other options.

    Returns:
        True if it was written, False if it existed with the same options.

    Raises:
        FileExistsError: if ``root`` holds a data set with other options and ``overwrite`` is not
            set, or anything other than a data set of this kind.
        BlockingIOError: another process is writing it.
        OSError: it cannot be written, for example because the disk is full.
    """
    root = Path(root).absolute()
    recover_folder(root)
    if root.exists() and _holds_these(root, kind, options, overwrite):
        logger.info("The %s data set in %s is complete: nothing to do", kind, root)
        return False
    with atomic_folder(root) as partial_root:
        if root.exists():  # another call may have been faster
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
    """Values of the later fields for data sets that do not contain them."""
    return {f.name: f.default for f in fields(options) if f.metadata.get("later")}


def _holds_these(root: Path, kind: str, options: Any, overwrite: bool) -> bool:
    """Whether ``root`` is a data set with these options; raises if it must not be replaced."""
    defaults = _later_defaults(options)
    wanted = {**defaults, **_stored(options)}
    try:
        found = {**defaults, **read_json(root / f"{kind}.json", "options")}
    except (OSError, TypeError, ValueError):  # TypeError: JSON, but not an object
        raise FileExistsError(
            f"{root}: found something other than a {kind} data set (no readable {kind}.json); "
            "choose another folder, or remove it"
        ) from None
    if found != wanted and not overwrite:
        keys = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
        text = ", ".join(f"{k} {found.get(k)} instead of {wanted.get(k)}" for k in keys)
        raise FileExistsError(
            f"{root}: found a {kind} data set with other options ({text}); choose another folder, "
            "or pass --overwrite (overwrite=True) to replace it"
        )
    return found == wanted and not overwrite
