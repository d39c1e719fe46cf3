"""Rows of a data set in DeepLesion's layout."""

import csv
from pathlib import Path


def read_rows(root: Path) -> list[dict[str, str]]:
    """The rows of its ``DL_info.csv``, by columns."""
    with open(root / "DL_info.csv", newline="") as file:
        return list(csv.DictReader(file))
