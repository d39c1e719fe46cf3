"""Summary of all scans: a table, summary.csv and a page with links to the reports."""

import csv
from collections.abc import Sequence
from pathlib import Path

from lesion_d2.utils.files import atomic_write

from tabulate import tabulate

from .outputs import INDEX, REPORT, SUMMARY, ScanRow

COLUMNS = ("scan", "slices", "findings", "seconds", "error")
_MAX_WIDTH = 60


def summary_table(rows: Sequence[ScanRow]) -> str:
    """The table as it is printed."""
    lines = []
    for row in rows:
        scan = f"{row.scan} (reused)" if row.is_old else row.scan
        lines.append([scan, row.slices, row.findings, row.seconds, row.error])
    widths = [None, None, None, None, _MAX_WIDTH] if lines else None
    return tabulate(lines, COLUMNS, tablefmt="simple", floatfmt=".1f", maxcolwidths=widths)


def write_summary(folder: Path, rows: Sequence[ScanRow]) -> None:
    """Write ``summary.csv`` and ``index.html``.

    Args:
        folder: with one folder per scan.
        rows: of the scans.
    """
    from lesion_d2.findings.report import IndexRow, write_index

    with atomic_write(folder / SUMMARY) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, name) for name in COLUMNS] for row in rows)
    index = []
    for row in rows:
        report = folder / row.scan / REPORT
        is_there = row.slices is not None and report.is_file()
        entry = {name: getattr(row, name) for name in COLUMNS}
        index.append(IndexRow(**entry, report=report if is_there else None))
    write_index(folder / INDEX, index)
