"""Names of scans that are safe as folder names."""

import re
from collections.abc import Iterable

_MAX_LENGTH = 100


def safe_name(text: str) -> str:
    """Replace characters other than letters, digits, ``.``, ``_`` and ``-`` with ``_``.

    The result has at most 100 characters, and starts and ends with a letter or digit. Safe names
    are unchanged.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
    return name[:_MAX_LENGTH].rstrip("._-") or "scan"


def unique_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Number repeated names: ``a``, ``a_2``, ``a_3``.

    Names that differ only in case count as equal, as on some file systems. Long names are
    truncated, so that they stay safe.

    Args:
        names: in order.
        taken: names that must not be used.
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
