"""The checkpoint that a folder's runs go on from."""

import os

from ...utils.files import atomic_write

_TAG = "last_checkpoint"
_MAX_NAME = 255  # letters


def last_checkpoint(folder: str) -> str | None:
    """The path of the checkpoint that ``folder/last_checkpoint`` names; None where there is no tag.

    Raises:
        ValueError: it names none, or one that is not in the folder.
        OSError: the tag cannot be read.
    """
    tag = os.path.join(folder, _TAG)
    if not os.path.isfile(tag):
        return None
    with open(tag, "rb") as file:
        name = file.read(_MAX_NAME + 1).decode(errors="replace").strip()
    return os.path.join(folder, bare_name(name, tag))


def tag_checkpoint(folder: str, name: str) -> None:
    """Make the checkpoint of a name the one that :func:`last_checkpoint` gives."""
    with atomic_write(os.path.join(folder, _TAG)) as partial:
        partial.write_text(name)


def bare_name(name: object, place: object) -> str:
    """Check that what should be a file's name leads to no other folder.

    Args:
        name: as it stands in a file.
        place: that file.

    Raises:
        ValueError: it is no text, too long, or has more than a name; says the place.
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
            f"{place}: found {str(name)[:100]!r}, expected the bare name of a checkpoint beside it"
        )
    return name
