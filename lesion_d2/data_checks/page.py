"""The report as a self-contained HTML file."""

import base64
import io
import os
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from ..findings.report.page import content_policy, count_text, page_file
from ..utils.files import atomic_write
from .faults import Fault
from .report import DataReport

_STYLE = """
main.index { padding-bottom: 24px; }
main.index h2 { margin: 20px 0 6px; }
main.index img { max-width: 100%; margin-top: 20px; }
td, th { vertical-align: top; }
"""


def write_page(file: str | os.PathLike, report: DataReport, sheet: np.ndarray | None) -> None:
    """Write a report as HTML, atomically.

    Args:
        file: its path.
        report: the report.
        sheet: RGB picture to include, or None.
    """
    style = page_file("report.css") + _STYLE
    content = report.to_json()
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        policy=content_policy(style) + "; img-src data:",
        style=style,
        names=escape(", ".join(report.names)),
        summary=(
            f"{count_text(content['errors'], 'kind')} of errors, "
            f"{count_text(content['warnings'], 'kind')} of warnings"
        ),
        faults="\n".join(map(_fault_row, report.faults)) or _row(["", "no fault found", "", ""]),
        columns="".join(f'<th scope="col">{escape(name)}</th>' for name in report.names),
        counts="\n".join(_row(map(escape, row)) for row in report.count_rows()),
        sheet="" if sheet is None else f'<img alt="Lesions of the data" src="{_picture(sheet)}">',
    )
    with atomic_write(file) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def _fault_row(fault: Fault) -> str:
    places = "".join(f"<small>{escape(place)}</small>" for place in fault.places)
    name = f"{escape(fault.kind)}<small>{escape(fault.meaning)}</small>"
    return _row([fault.severity, name, str(fault.count), places])


def _row(cells) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{c}</td>" for c in others) + "</tr>"


def _picture(sheet: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
