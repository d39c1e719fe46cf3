"""Reading and checking of ``froc.json`` and ``volumes.json``."""

import os
from collections.abc import Iterator

from detectron2.data import MetadataCatalog

from ..utils.errors import short_repr
from ..utils.files import read_json
from ..utils.values import (
    are_digits,
    are_numbers,
    field_problems,
    is_name,
    is_number,
    is_text,
    is_whole,
)

_AGAIN = "evaluate again (--eval-only)"


def read_froc_file(file: str | os.PathLike) -> dict:
    """Read the ``froc.json`` of an evaluation.

    Returns:
        Its content: ``dataset``; ``rows``, at least one, with ``stratum``, ``lesions`` and metric
        name -> number or None, the first with ``mean_sens``; optionally ``settings``, ``curve``
        (``sensitivity`` and ``fps_per_image`` of the same length) and ``band`` (``low``, ``high``
        and ``rates`` of the same length).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file; the message names the key.
    """
    content = read_json(file, "the FROC table of an evaluation")
    _raise_first(file, _froc_problems(content), "FROC table of an evaluation")
    return content


def _froc_problems(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        optional = {"settings": {}, "curve": {"sensitivity": [], "fps_per_image": []}}
        content = {**optional, "band": None, **content}
    yield from field_problems(content, _FROC_FIELDS)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        return
    for number, row in enumerate(content["rows"]):
        where = f"rows, {number}"
        for text in field_problems(row, _ROW_FIELDS):
            yield f"{where}: {text}"
        if isinstance(row, dict):
            yield from _number_problems(where, {k: v for k, v in row.items() if k not in _TEXTS})
        if number == 0 and "mean_sens" not in row:
            yield f"{where}: found no 'mean_sens', expected a number"


def read_volumes_file(file: str | os.PathLike) -> dict:
    """Read the ``volumes.json`` of a :class:`~lesion_d2.evaluation.VolumeEvaluator`.

    Returns:
        Its content: ``settings``, whose ``criteria`` map each task, including "volume", to a text;
        ``results`` of "volume" and ``other_results`` of all other tasks, numbers or None; the
        numbers of ``lesions`` and ``volumes``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file; the message names the key.
    """
    content = read_json(file, "an evaluation of volumes")
    _raise_first(file, _volumes_problems(content), "evaluation of volumes")
    return content


def _volumes_problems(content: object) -> Iterator[str]:
    yield from field_problems(content, _VOLUMES_FIELDS)
    for text in field_problems(content["settings"], {"criteria": _CRITERIA}):
        yield f"settings: {text}"
    others = content["other_results"]
    for task in content["settings"]["criteria"].keys() - {"volume"}:
        if not isinstance(others.get(task), dict):
            yield f"other_results: found no {short_repr(task)}, expected an object of metrics"
    for task, numbers in {"results": content["results"], **others}.items():
        if isinstance(numbers, dict):
            yield from _number_problems(task, numbers)
        else:
            yield (
                f"other_results: {short_repr(task)}: found {short_repr(numbers)}, "
                f"expected an object"
            )


def check_detections(file: str | os.PathLike, content: dict) -> None:
    """Check the detections and the evaluation settings of a ``volumes.json``.

    Args:
        file: its path, for messages.
        content: see :func:`read_volumes_file`. Classes are checked against its data set.

    Raises:
        ValueError: see :func:`read_volumes_file`.
    """
    _raise_first(file, _detections_problems(content), "evaluation of volumes")


def _detections_problems(content: dict) -> Iterator[str]:
    yield from field_problems(content, _DETECTIONS_FIELDS)
    for text in field_problems(content["settings"], _SETTINGS_FIELDS):
        yield f"settings: {text}"
    for text in field_problems(content["operating_points"], {"points": (_are_points, "rates")}):
        yield f"operating_points: {text}"
    classes = MetadataCatalog.get(content["dataset"]).get("thing_classes")
    for number, entry in enumerate(content["detections"]):
        for text in field_problems(entry, _DETECTION_FIELDS):
            yield f"detections, {number}: {text}"
        if classes is not None and entry["category_id"] >= len(classes):
            yield (
                f"detections, {number}: category_id: found {entry['category_id']}, expected 0 to "
                f"{len(classes) - 1}"
            )


def _raise_first(file: str | os.PathLike, problems: Iterator[str], what: str) -> None:
    # Lazily, as later checks rely on earlier ones.
    for text in problems:
        raise ValueError(f"{file}: found no readable {what} ({text}): {_AGAIN}")


def _number_problems(where: str, numbers: dict) -> Iterator[str]:
    for name, value in numbers.items():
        if value is not None and not is_number(value):
            yield (
                f"{where}: {short_repr(name)}: found {short_repr(value)}, expected a number or null"
            )


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_count(value: object) -> bool:
    return is_whole(value) and value >= 0


def _are_points(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(point, dict) and is_number(point.get("rate")) for point in value
    )


def _is_curve(value: object, keys: tuple[str, ...] = ("sensitivity", "fps_per_image")) -> bool:
    lists = [value.get(key) for key in keys] if _is_object(value) else [None]
    return (
        all(isinstance(numbers, list) for numbers in lists)
        and len(set(map(len, lists))) == 1
        and all(n is None or is_number(n) for numbers in lists for n in numbers)
    )


def _is_band(value: object) -> bool:
    return value is None or _is_curve(value, ("rates", "low", "high"))


def _are_key_slices(value: object) -> bool:
    return isinstance(value, dict) and all(
        are_digits(number) and are_numbers(box, 4) for number, box in value.items()
    )


_TEXTS = ("stratum", "group")
_FROC_FIELDS = {
    "dataset": (is_text, "a name"),
    "settings": (_is_object, "an object"),
    "rows": (lambda value: isinstance(value, list) and len(value) > 0, "at least one row"),
    "curve": (_is_curve, "sensitivity and fps_per_image of the same length"),
    "band": (_is_band, "rates, low and high of the same length, or null"),
}
_ROW_FIELDS = {"stratum": (is_text, "a name"), "lesions": (_is_count, "a whole number from 0")}
_CRITERIA = (
    lambda value: _is_object(value) and "volume" in value and all(map(is_text, value.values())),
    "an object with a text per task, including 'volume'",
)
_VOLUMES_FIELDS = {
    "settings": (_is_object, "an object"),
    "results": (_is_object, "an object of metrics"),
    "other_results": (_is_object, "an object"),
    "lesions": (_is_count, "a whole number from 0"),
    "volumes": (_is_count, "a whole number from 0"),
}
_DETECTIONS_FIELDS = {
    "dataset": (is_text, "a name"),
    "detections": (lambda value: isinstance(value, list), "a list"),
    "operating_points": (_is_object, "an object"),
}
_SETTINGS_FIELDS = {
    "inclusive": (lambda value: isinstance(value, bool), "true or false"),
    "average_precision": (is_text, "a name"),
    "linking": (lambda value: value is None or _is_object(value), "an object or null"),
}
_DETECTION_FIELDS = {
    "volume": (is_name, "a name or number"),
    "box3d": (lambda value: are_numbers(value, 6), "6 numbers"),
    "score": (is_number, "a number"),
    "category_id": (_is_count, "a whole number from 0"),
    "key_slices": (_are_key_slices, "an object with 4 numbers per slice number"),
}
