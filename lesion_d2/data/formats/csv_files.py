"""CSV files as tables of text."""

import csv
import os
from collections.abc import Sequence

import pandas as pd

from ...utils.files import check_columns, one_line


def read_csv_table(file: str | os.PathLike, columns: Sequence[str], expected: str) -> pd.DataFrame:
    """Read a CSV file with a header line.

    Args:
        file: its path.
        columns: required columns.
        expected: description of the expected file, for messages.

    Returns:
        All cells of all columns as text, "" if empty; the index is the line number in the file.
        Empty rows are left out.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not CSV, columns are missing or duplicate, or a row is longer than
            the header.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: no such file, expected {expected}")
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            names = next(csv.reader(opened), [])
            opened.seek(0)
            table = pd.read_csv(opened, dtype=object, keep_default_na=False, skip_blank_lines=False)
    except (ValueError, csv.Error) as error:  # pandas' file errors are ValueErrors
        raise ValueError(
            f"{file}: found no readable CSV ({one_line(error)}), expected {expected}"
        ) from None
    check_columns(file, names)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{file}: found no column {', '.join(missing)}, expected {expected}")
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the surplus cells for row labels
        raise ValueError(f"{file}: found rows longer than the header, expected {expected}")
    table.index = table.index + 2
    table = table.fillna("")
    return table[(table != "").any(axis=1)]
