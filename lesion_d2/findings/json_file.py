"""``findings.json``: findings as JSON with a versioned schema."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from ..structures.rle import check_mask
from ..utils.files import one_line, read_json, write_json
from .finding import Algorithm, Diameter, Finding, Findings, OperatingPoint, SliceFinding

SCHEMA_FILE = Path(__file__).with_name("findings.schema.json")
#: Values of ``schema`` and ``version`` in the file.
SCHEMA, VERSION = "lesion_d2/findings", 1


def write_findings(file: str | os.PathLike, findings: Findings) -> None:
    """Write findings as JSON; ``findings.schema.json`` describes all fields.

    Raises:
        ValueError: a number is not finite, or the findings do not follow the schema.
        ImportError: there is no ``jsonschema``.
    """
    content = {"schema": SCHEMA, "version": VERSION, **asdict(findings)}
    content = json.loads(_check_finite(file, content))  # tuples become lists
    _check(file, content)
    write_json(file, content, indent=1)


def read_findings(file: str | os.PathLike) -> Findings:
    """Read a file of :func:`write_findings`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, has another version or NaN, or does not follow the schema.
        ImportError: there is no ``jsonschema``.
    """
    content = read_json(file, "the findings of a scan")
    _check_finite(file, content)
    _check(file, content)
    return Findings(
        **{
            **{key: _tuple(value) for key, value in content.items() if key not in _HEADER},
            "findings": tuple(_finding(entry) for entry in content["findings"]),
            "algorithm": Algorithm(**content["algorithm"]),
            "operating_point": OperatingPoint(**content["operating_point"]),
        }
    )


_HEADER = ("schema", "version")


def _check_finite(file: str | os.PathLike, content: object) -> str:
    """Content as JSON; refuses NaN."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{file}: found numbers that are not finite ({error})") from None


def _check(file: str | os.PathLike, content: object) -> None:
    """Check a file's content against the schema."""
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        raise ValueError(f"{file}: found no findings, expected the schema {SCHEMA!r}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{file}: found version {content.get('version')!r} of findings, expected {VERSION}"
        )
    validator, best_match = _validator()
    error = best_match(validator.iter_errors(content))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the file"
        message = one_line(error.message)
        raise ValueError(f"{file}: {place}: {message[:200]}, by {SCHEMA_FILE.name}")
    _check_slices(file, content)


@lru_cache(1)
def _validator():
    """The schema's validator, and the function that selects the error to report."""
    try:
        import jsonschema
    except ImportError:
        raise ImportError(
            'findings.json needs the package jsonschema: pip install -e ".[scans]"'
        ) from None
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema), jsonschema.exceptions.best_match


def _check_slices(file: str | os.PathLike, content: Mapping) -> None:
    """Check that slices lie in the scan, and that masks have the slices' size."""
    depth, *size = content["shape"]
    for finding in content["findings"]:
        diameters = (finding["long_diameter"], finding["short_diameter"])
        indices = [entry["slice_index"] for entry in (*finding["slices"], *diameters)]
        where = f"{file}: finding {finding['number']}"
        for index in (finding["key_slice"], *indices):
            if index >= depth:
                raise ValueError(f"{where}: found slice {index}, expected less than {depth}")
        for entry in finding["slices"]:
            if entry["mask"] is None:
                continue
            try:
                check_mask(entry["mask"], size)
            except ValueError as error:
                raise ValueError(f"{where}, slice {entry['slice_index']}: {error}") from None


def _finding(entry: Mapping) -> Finding:
    return Finding(
        **{
            **{key: _tuple(value) for key, value in entry.items()},
            "slices": tuple(_slice(part) for part in entry["slices"]),
            "long_diameter": _diameter(entry["long_diameter"]),
            "short_diameter": _diameter(entry["short_diameter"]),
        }
    )


def _slice(entry: Mapping) -> SliceFinding:
    return SliceFinding(**{**entry, "box": tuple(entry["box"])})


def _diameter(entry: Mapping) -> Diameter:
    return Diameter(**{**entry, "points": _tuple(entry["points"])})


def _tuple(value: object) -> object:
    """Convert nested lists to nested tuples."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
