"""Names of scans, which can be names of folders."""

import re
from collections.abc import Iterable

_MAX_LENGTH = 100


def safe_name(text: str) -> str:
    """Letters, digits, ``.``, ``_`` and ``-`` of a text, at most 100; others become ``_``.

    The first and last is a letter or digit. A safe name stays as it is.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
    return name[:_MAX_LENGTH].rstrip("._-") or "scan"


def unique_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Number the second and all later ones of a name: ``a``, ``a_2``, ``a_3``.

    Names that differ in nothing but the case of letters are one, as they are on some disks. Long
    ones are cut, so that they stay safe names.

    Args:
        names: in order.
        taken: names that none of them may have.
    """
    taken, unique = {name.lower() for name in taken}, []
    for name in names:
        number, candidate = 1, name
        while candidate.lower() in taken:
            number += 1
            candidate = f"{name[: _MAX_LENGTH - len(f'_{number}')]}_{number}"
        taken.add(candidate.lower())
        unique.append(candidate)
    return unique
