"""Rows of the scans of each part (``--shard``), for the summary of all parts."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lesion_d2.utils.files import read_json, write_json
from lesion_d2.utils.shards import Shard

from .outputs import ScanRow

# In the folder of results; no scan has such a name.
_FOLDER = ".parts"


def write_part(output: Path, shard: Shard, state: str, rows: Sequence[ScanRow]) -> None:
    """Write the rows of a part.

    Args:
        output: the folder of results.
        shard: the part.
        state: hash of everything that all results depend on.
        rows: of its scans, and of files that are not scans.
    """
    (output / _FOLDER).mkdir(exist_ok=True)
    content = {"state": state, "rows": [{**asdict(row), "is_old": False} for row in rows]}
    write_json(_file(output, shard), content, indent=1)


def read_parts(output: Path, count: int, state: str, names: Sequence[str]) -> list[ScanRow] | None:
    """Read the rows of all parts; None if one is missing, or has another state.

    Args:
        output, state: see :func:`write_part`.
        count: of the parts.
        names: of the scans, which come first in this order.

    Raises:
        ValueError: a file is damaged.
    """
    rows: list[ScanRow] = []
    for number in range(1, count + 1):
        file = _file(output, Shard(number, count))
        try:
            content = read_json(file, "the rows of a part", allow_nan=True)
        except FileNotFoundError:
            return None
        try:
            if content["state"] != state:
                return None
            rows += [ScanRow(**row) for row in content["rows"]]
        except (TypeError, KeyError):
            raise ValueError(
                f"{file}: found other content, expected the rows of a part; remove the file"
            ) from None
    order = {name: number for number, name in enumerate(names)}
    return sorted(rows, key=lambda row: order.get(row.scan, len(order)))


def _file(output: Path, shard: Shard) -> Path:
    return output / _FOLDER / f"{shard.number}-of-{shard.count}.json"
