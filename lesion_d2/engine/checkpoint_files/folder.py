"""The last checkpoint of a folder, from which runs resume."""

import os

from ...utils.files import atomic_write

_TAG = "last_checkpoint"
_MAX_NAME = 255  # characters


def last_checkpoint(folder: str) -> str | None:
    """Return the checkpoint's path from ``folder/last_checkpoint``; None if there is no tag.

    Raises:
        ValueError: it does not name a file in the folder.
        OSError: the tag cannot be read.
    """
    tag = os.path.join(folder, _TAG)
    if not os.path.isfile(tag):
        return None
    with open(tag, "rb") as file:
        name = file.read(_MAX_NAME + 1).decode(errors="replace").strip()
    return os.path.join(folder, bare_name(name, tag))


def tag_checkpoint(folder: str, name: str) -> None:
    """Make a checkpoint the one that :func:`last_checkpoint` returns."""
    with atomic_write(os.path.join(folder, _TAG)) as partial:
        partial.write_text(name)


def bare_name(name: object, place: object) -> str:
    """Check that a file name does not lead to another folder.

    Args:
        name: name as read from a file.
        place: that file, for messages.

    Raises:
        ValueError: it is not text, too long, or not a bare name; the message contains the place.
    """
    is_bare = (
        isinstance(name, str)
        and 0 < len(name) <= _MAX_NAME
        and name.isprintable()
        and name not in (os.curdir, os.pardir)
        and os.path.basename(name) == name
        and "\\" not in name
    )
    if not is_bare:
        raise ValueError(
            f"{place}: found {str(name)[:100]!r}, expected the file name of a checkpoint in the "
            "same folder"
        )
    return name
