"""Content of a report: data for its viewer, and rows of its table."""

from collections.abc import Collection
from html import escape

import numpy as np

from ...scans import Scan
from ...structures.rle import decode_mask
from ...utils.display_windows import WINDOWS
from ..finding import Algorithm, Diameter, Finding, Findings, OperatingPoint, SliceFinding

#: Windows of the viewer's buttons, (low, high) in HU; the first is the default.
PRESETS = {
    "Soft tissue": WINDOWS["abdomen"],
    "Lung": WINDOWS["lung"],
    "Bone": WINDOWS["bone"],
    "Liver": WINDOWS["liver"],
}
_NO_BREAK = "\u00a0"
_PATIENT_SIDES = (("L", "R"), ("P", "A"), ("S", "I"))  # positive and negative LPS directions


def viewer_data(scan: Scan, findings: Findings) -> dict:
    """JSON data for the page's script, for a report with all slices."""
    depth, height, width = scan.volume.shape
    return {
        "depth": depth,
        "height": height,
        "width": width,
        "spacing": list(map(float, scan.spacing)),
        "origin": np.asarray(scan.origin, float).tolist(),
        "direction": np.asarray(scan.direction, float).tolist(),
        "slices": list(range(depth)),
        "presets": [{"low": low, "high": high} for low, high in PRESETS.values()],
        "findings": [_finding(one) for one in findings.findings],
    }


def without_slices(data: dict, slices: Collection[int]) -> dict:
    """Restrict :func:`viewer_data` to ``slices`` and their masks."""
    return {
        **data,
        "slices": sorted(slices),
        "findings": [
            {**one, "slices": [_without_mask(part, slices) for part in one["slices"]]}
            for one in data["findings"]
        ],
    }


def _without_mask(part: dict, slices: Collection[int]) -> dict:
    return part if part["z"] in slices else {**part, "mask": None}


def _finding(finding: Finding) -> dict:
    return {
        "number": finding.number,
        "score": float(finding.score),
        "keySlice": int(finding.key_slice),
        "box": _rounded(finding.box),
        "slices": [_slice_finding(one) for one in finding.slices],
        "long": _diameter(finding.long_diameter),
        "short": _diameter(finding.short_diameter),
    }


def _slice_finding(one: SliceFinding) -> dict:
    return {
        "z": int(one.slice_index),
        "box": _rounded(one.box),
        "mask": None if one.mask is None else mask_runs(decode_mask(one.mask)),
    }


def _diameter(diameter: Diameter) -> dict:
    points = [_rounded(point) for point in diameter.points]
    return {"z": int(diameter.slice_index), "points": points, "mm": float(diameter.length_mm)}


def _rounded(numbers: Collection[float]) -> list[float]:
    return [round(float(number), 2) for number in numbers]


def mask_runs(mask: np.ndarray) -> list[int]:
    """Encode a mask as runs of pixels.

    Args:
        mask: H x W bool.

    Returns:
        y, first x and last x of each run, row by row.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    steps = np.diff(np.pad(mask[rows].astype(np.int8), ((0, 0), (1, 1))), axis=1)
    y, first = np.nonzero(steps == 1)
    last = np.nonzero(steps == -1)[1] - 1
    return np.column_stack([rows[y], first, last]).ravel().tolist()


def table_row(finding: Finding, findings: Findings) -> str:
    """A finding as a row of the table, in HTML."""
    x1, y1, _, x2, y2, _ = finding.box
    center = np.array([(x1 + x2) / 2, (y1 + y2) / 2, finding.key_slice])
    first, last = int(finding.box[2]) + 1, int(finding.box[5]) + 1
    place = place_text(findings.to_patient(center[None])[0])
    voxel = ", ".join(number_text(value, 0) for value in center)
    measured = "on the mask" if finding.measured_on == "mask" else "estimated from the box"
    return (
        f'<tr data-finding="{finding.number}"><th scope="row"><div>'
        f'<canvas width="176" height="176" role="img" '
        f'aria-label="Picture of finding {finding.number}"></canvas>'
        f'<span><button type="button" aria-label="Finding {finding.number}">{finding.number}'
        f"</button><br><small>{escape(finding.category)}</small></span></div></th>"
        f"<td><strong>{finding.score:.2f}</strong>"
        f'<meter min="0" max="1" value="{finding.score:.4f}" aria-hidden="true"></meter></td>'
        f"<td><strong>{_size_text(finding)}</strong>"
        f"<small>{_volume_text(finding.volume_mm3)}</small><small>{measured}</small></td>"
        f"<td><strong>Slice {finding.key_slice + 1}</strong>"
        f"<small>of {first}–{last}</small><small>{place}</small>"
        f"<small>voxel {voxel}</small></td></tr>"
    )


def _size_text(finding: Finding) -> str:
    diameters = (finding.long_diameter, finding.short_diameter)
    return " × ".join(number_text(one.length_mm, 1) for one in diameters) + f"{_NO_BREAK}mm"


def _volume_text(mm3: float) -> str:
    return f"{mm3 / 1000:.1f} cm³" if mm3 >= 1000 else f"{mm3:.0f} mm³"


def place_text(point: np.ndarray) -> str:
    """Format patient coordinates, (3,) LPS in mm, with sides: "R 12 A 45 S 120"."""
    parts = zip(_PATIENT_SIDES, point, strict=True)
    texts = [f"{sides[int(value < 0)]}{_NO_BREAK}{abs(value):.0f}" for sides, value in parts]
    return " ".join(texts) + f"{_NO_BREAK}mm"


def number_text(value: float, digits: int) -> str:
    """Format a number with a typographic minus sign, and without a minus for 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def side_letters(direction: np.ndarray) -> dict[str, str]:
    """The patient's sides at the image's edges: ``left``, ``right`` and ``top``.

    Args:
        direction: 3 x 3, columns are the unit vectors along x, y and z in LPS.
    """
    across, down = np.asarray(direction, float)[:, 0], np.asarray(direction, float)[:, 1]
    return {"left": _side(-across), "right": _side(across), "top": _side(-down)}


def _side(vector: np.ndarray) -> str:
    axis = int(np.argmax(np.abs(vector)))
    return _PATIENT_SIDES[axis][int(vector[axis] < 0)]


def facts(scan: Scan, findings: Findings) -> dict[str, str]:
    """Facts about scan and algorithm: label -> text."""
    algorithm = findings.algorithm.without_folders()
    depth, height, width = scan.volume.shape
    x, y, z = scan.spacing
    result = {
        "Algorithm": f"{algorithm.name} {algorithm.version}".strip(),
        "Model": algorithm.meta_architecture,
        "Config": algorithm.config_file,
        "Weights": _weights_text(algorithm),
        "Operating point": operating_point_text(findings.operating_point),
        "Scan": f"{width} × {height} × {depth} voxels of {x:.2f} × {y:.2f} × {z:.2f} mm, "
        f"from {scan.format}",
        "Reviewed": "no: made by an algorithm, verified by nobody",
    }
    return {label: text for label, text in result.items() if text}


def operating_point_text(point: OperatingPoint) -> str:
    """Describe the score threshold and its reason."""
    text = f"score {point.score_threshold:.3g} or more"
    if point.rate is None:
        return f"{text}, as given"
    text += f": {point.rate:g} false positives per {point.unit}"
    return f"{text} on {point.dataset}" if point.dataset else text


def _weights_text(algorithm: Algorithm) -> str | None:
    if not algorithm.weights_sha256:
        return algorithm.weights
    return f"{algorithm.weights} (SHA-256 {algorithm.weights_sha256})"
