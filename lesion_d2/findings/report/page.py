"""The report: one HTML file with a viewer for a scan and its findings."""

import base64
import functools
import hashlib
import json
import math
import os
from html import escape
from pathlib import Path
from string import Template

from ...scans import Scan
from ...utils.files import atomic_write
from ..finding import Findings
from .content import PRESETS, facts, side_letters, table_row, viewer_data, without_slices
from .identity import identity_of, identity_remover
from .packing import HU_RANGE, MARGIN, ChosenSlices, choose_slices

#: Maximum size in bytes of a report without all slices.
MAX_BYTES = 25_000_000
NOTICE = "Not a medical device. For research on detectors, not for diagnosis."

_SCRIPTS = ("state", "slices", "image", "overlay", "strip", "table", "controls", "input", "start")
_FOLDER = Path(__file__).parent / "page"


def write_report(
    file: str | os.PathLike,
    scan: Scan,
    findings: Findings,
    *,
    full: bool = False,
    with_identity: bool = False,
) -> None:
    """Write an HTML report of a scan and its findings.

    It is one HTML file that opens from disk in any browser from 2023 on; its content security
    policy forbids loading anything. It includes the slices of findings, two on each side of them,
    and every n-th slice elsewhere, with the smallest n that keeps it below 25 MB. HU are clipped to
    -1024 .. 3071.

    Args:
        file: path of the HTML file.
        scan: the scan.
        findings: its findings.
        full: include all slices, regardless of size.
        with_identity: show patient and study from the scan's DICOM headers. Otherwise they are also
            removed from its name and messages.

    Raises:
        ValueError: the findings are of a scan of another shape, or refer to slices outside of it.
    """
    _check(scan, findings)
    data = viewer_data(scan, findings)
    # Rendered once without slices but with all masks, to compute the size left for slices.
    empty = ChosenSlices({}, step=1, left_out=0)
    rest = len(_page(scan, findings, empty, data, with_identity).encode())
    words = 2000 + 60 * len(scan.volume)  # size of the slices' elements and notes
    room = None if full else max(0, MAX_BYTES - rest - words)
    chosen = choose_slices(scan.volume, findings.findings, limit=room)
    data = without_slices(data, chosen.coded)
    page = _page(scan, findings, chosen, data, with_identity)
    with atomic_write(file) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def _check(scan: Scan, findings: Findings) -> None:
    if tuple(findings.shape) != scan.volume.shape:
        raise ValueError(
            f"{findings.scan_name}: found findings in a scan of shape {tuple(findings.shape)}, "
            f"expected {scan.volume.shape}, the shape of {scan.name}"
        )
    for one in findings.findings:
        if not 0 <= one.key_slice < len(scan.volume):
            raise ValueError(
                f"{scan.name}, finding {one.number}: found key slice {one.key_slice}, expected 0 "
                f"to {len(scan.volume) - 1}"
            )


def _page(
    scan: Scan, findings: Findings, chosen: ChosenSlices, data: dict, with_identity: bool
) -> str:
    clean = str if with_identity else identity_remover(scan)
    style, script = page_file("report.css"), _script()
    letters = side_letters(scan.direction)
    identity = identity_of(scan) if with_identity else {}
    found = len(findings.findings)
    return Template(page_file("report.html")).substitute(
        policy=content_policy(style, script),
        name=escape(clean(scan.name)),
        style=style,
        summary=f"{count_text(len(scan.volume), 'slice')}, {count_text(found, 'finding')}",
        identity=_identity(identity),
        notice=NOTICE,
        presets="\n    ".join(
            f'<button type="button" id="preset-{i}" aria-pressed="false">{name}</button>'
            for i, name in enumerate(PRESETS)
        ),
        preset_keys=", ".join(f"{i} {name.lower()}" for i, name in enumerate(PRESETS, 1)),
        **{f"letter_{side}": letter for side, letter in letters.items()},
        depth=len(scan.volume),
        least_score=_least_score(findings),
        rows="\n".join(table_row(one, findings) for one in findings.findings),
        none="No finding has such a score." if found else "Nothing was found in this scan.",
        none_hidden=" hidden" if found else "",
        facts=_definitions(facts(scan, findings)),
        notes="\n".join(
            f"<li>{escape(clean(note))}</li>" for note in _notes(scan, findings, chosen)
        ),
        data=json_in_html(data),
        slices="\n".join(
            f'<script type="text/plain" id="slice-{z}">{coded}</script>'
            for z, coded in chosen.coded.items()
        ),
        script=script,
    )


def _identity(identity: dict[str, str]) -> str:
    parts = (f"{escape(label)}: {escape(value)}" for label, value in identity.items())
    return f"<p>{' · '.join(parts)}</p>" if identity else ""


def _definitions(texts: dict[str, str]) -> str:
    return "\n".join(
        f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in texts.items()
    )


def _least_score(findings: Findings) -> str:
    scores = [findings.operating_point.score_threshold]
    scores += [one.score for one in findings.findings]
    return f"{max(0.0, math.floor(min(scores) * 100) / 100):.2f}"


def _notes(scan: Scan, findings: Findings, chosen: ChosenSlices) -> list[str]:
    depth, held = len(scan.volume), len(chosen.coded)
    if held == depth:
        notes = [f"All {depth} slices are in this file."]
    else:
        every = f"every {_ordinal(chosen.step)} elsewhere" if chosen.step else "none elsewhere"
        notes = [
            f"{held} of {depth} slices are in this file: those of findings with {MARGIN} on each "
            f"side, {every}. Slices {_ranges(chosen.coded)}."
        ]
    if chosen.left_out:
        notes.append(
            f"{count_text(chosen.left_out, 'slice')} of findings or beside them had no room in "
            f"{MAX_BYTES / 1e6:.0f} MB; a full report has all slices."
        )
    notes.append(
        f"Slices count from 1, voxels from 0. HU below {HU_RANGE[0]} and above {HU_RANGE[1]} are "
        "shown as these.".replace("-", "−")
    )
    if scan.format == "png":
        notes.append("PNG files do not say where the patient lay: mm count from the first voxel.")
    return [*notes, *dict.fromkeys([*scan.messages, *findings.messages])]


def count_text(number: int, noun: str) -> str:
    """A count with its noun: "1 scan", "2 scans"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ordinal(number: int) -> str:
    teen = 10 <= number % 100 < 20
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _ranges(slices) -> str:
    """Format ascending slices from 0 as ranges from 1: "1, 5–9"."""
    runs: list[list[int]] = []
    for z in slices:
        if runs and z == runs[-1][1] + 1:
            runs[-1][1] = z
        else:
            runs.append([z, z])
    return ", ".join(
        f"{first + 1}" if first == last else f"{first + 1}–{last + 1}" for first, last in runs
    )


@functools.cache
def page_file(name: str) -> str:
    """Read one of the page's template files from this package."""
    return (_FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def _script() -> str:
    parts = "\n".join(page_file(f"{name}.js") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();'


def content_policy(style: str, script: str | None = None) -> str:
    """A content security policy that allows only this style and script."""
    policy = f"default-src 'none'; style-src '{_sha256(style)}'; "
    if script:
        policy += f"script-src '{_sha256(script)}'; "
    return policy + "base-uri 'none'; form-action 'none'"


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def json_in_html(value: object) -> str:
    """JSON escaped for a script element: no text in it can end the element or start another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
