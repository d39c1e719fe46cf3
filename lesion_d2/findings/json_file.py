"""``findings.json``: findings in a file, by a versioned schema."""

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
#: What ``schema`` and ``version`` of the file are.
SCHEMA, VERSION = "lesion_d2/findings", 1


def write_findings(file: str | os.PathLike, findings: Findings) -> None:
    """Write findings as JSON; every field's meaning stands in ``findings.schema.json``.

    Raises:
        ValueError: a number is not finite, or the findings do not follow the schema.
        ImportError: there is no ``jsonschema``.
    """
    content = {"schema": SCHEMA, "version": VERSION, **asdict(findings)}
    content = json.loads(_check_finite(file, content))  # tuples are lists now
    _check(file, content)
    write_json(file, content, indent=1)


def read_findings(file: str | os.PathLike) -> Findings:
    """Read what :func:`write_findings` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, of another version, holds NaN, or does not follow the schema.
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
    """Content as JSON, which knows no NaN."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{file}: found numbers that are not finite ({error})") from None


def _check(file: str | os.PathLike, content: object) -> None:
    """Stop where a file's content is none of findings."""
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
    """The schema's validator, and what picks the error to tell."""
    try:
        import jsonschema
    except ImportError:
        raise ImportError(
            'findings.json needs the package jsonschema: pip install -e ".[scans]"'
        ) from None
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema), jsonschema.exceptions.best_match


def _check_slices(file: str | os.PathLike, content: Mapping) -> None:
    """Stop where a slice is not of the scan, or a mask not of a slice."""
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
    """Lists in lists as tuples in tuples, and all else as it is."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
