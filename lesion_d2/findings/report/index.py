"""A page that lists scans, with links to their reports."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from ...utils.files import atomic_write
from .page import NOTICE, content_policy, count_text, page_file


@dataclass(frozen=True)
class IndexRow:
    """A scan of an index.

    Args:
        scan: name of the scan.
        slices: number of slices; None if the scan could not be read.
        findings: number of findings; None without a prediction.
        seconds: run time; None if it was not run.
        error: one-line reason for missing findings, or None.
        report: path of the report, or None.
    """

    scan: str
    slices: int | None = None
    findings: int | None = None
    seconds: float | None = None
    error: str | None = None
    report: str | os.PathLike | None = None


def write_index(file: str | os.PathLike, rows: Iterable[IndexRow]) -> None:
    """Write a page with a table of scans that links to their reports.

    Args:
        file: path of the HTML file; links are relative to its folder.
        rows: one per scan.
    """
    rows = list(rows)
    style = page_file("report.css")
    failed = sum(row.error is not None for row in rows)
    page = Template(page_file("index.html")).substitute(
        policy=content_policy(style),
        style=style,
        notice=NOTICE,
        summary=count_text(len(rows), "scan") + (f", {failed} without a result" if failed else ""),
        rows="\n".join(_row(row, Path(file).parent) for row in rows),
    )
    with atomic_write(file) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def _row(row: IndexRow, folder: Path) -> str:
    name = escape(row.scan)
    if row.report is not None:
        # Fully quoted, so that no name is parsed as a scheme such as "javascript:".
        link = quote(Path(os.path.relpath(row.report, folder)).as_posix())
        name = f'<a href="{link}">{name}</a>'
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    cells = [_number(row.slices), _number(row.findings), seconds]
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{name}</th>{numbers}<td>{escape(row.error or "")}</td></tr>'


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
