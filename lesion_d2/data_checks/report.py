"""The report of a check, as JSON and as tables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tabulate import tabulate

from ..utils.files import write_json
from .faults import ERROR, Fault

#: Values of ``format`` and ``version`` in ``data_check.json``.
FORMAT, VERSION = "lesion_d2 data check", 1
_PLACES_SHOWN = 3


@dataclass(frozen=True)
class DataReport:
    """Statistics and faults of data sets.

    Args:
        names: registered names of the data sets.
        counts: name -> statistics, see :func:`~lesion_d2.data_checks.counts.count_set`.
        faults: the faults found by kind, errors first.
    """

    names: tuple[str, ...]
    counts: Mapping[str, dict]
    faults: tuple[Fault, ...]

    @property
    def has_errors(self) -> bool:
        """Whether any fault is an error."""
        return any(fault.severity == ERROR for fault in self.faults)

    def to_json(self) -> dict:
        """Content of ``data_check.json``; docs/data_checks.md explains its keys."""
        errors = sum(fault.severity == ERROR for fault in self.faults)
        return {
            "format": FORMAT,
            "version": VERSION,
            "data_sets": list(self.names),
            "errors": errors,
            "warnings": len(self.faults) - errors,
            "counts": dict(self.counts),
            "faults": [fault.to_json() for fault in self.faults],
        }

    def write(self, file: str | os.PathLike) -> None:
        """Write :meth:`to_json` atomically."""
        write_json(file, self.to_json(), indent=1)

    def count_rows(self) -> list[list[str]]:
        """Table of the statistics, with one column per data set."""
        columns = [_lines(self.counts[name]) for name in self.names]
        labels = list(dict.fromkeys(label for column in columns for label in column))
        return [[label, *(column.get(label, "-") for column in columns)] for label in labels]

    def text(self) -> str:
        """Text for the terminal: statistics, and faults with their first places."""
        table = tabulate(
            self.count_rows(), ["", *self.names], tablefmt="simple", disable_numparse=True
        )
        if not self.faults:
            return f"{table}\n\nno fault found"
        blocks = [table]
        for fault in self.faults:
            lines = [f"{fault.severity}: {fault.kind}, {_times(fault.count)}: {fault.meaning}"]
            lines += [f"  {place}" for place in fault.places[:_PLACES_SHOWN]]
            if fault.count > _PLACES_SHOWN:
                lines.append(f"  and {fault.count - _PLACES_SHOWN} more")
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)


def _lines(counts: Mapping) -> dict[str, str]:
    """Label -> text for the statistics of a data set."""
    lines = {
        "patients": _known(counts["patients"]),
        "volumes": str(counts["volumes"]),
        "images": str(counts["images"]),
        "images without a lesion": _share(counts),
        "lesions": str(counts["lesions"]),
    }
    if len(counts["lesions_per_class"]) > 1:
        for name, number in counts["lesions_per_class"].items():
            lines[f"lesions of class {name}"] = str(number)
    per_image = list(map(int, counts["lesions_per_image"]))
    lines["most lesions on an image"] = _known(max(per_image, default=None))
    lines["annotations with a mask"] = str(counts["annotations_with_mask"])
    lines["regions to ignore"] = str(counts["ignore_regions"])
    for key, unit in (("sizes_mm", "mm"), ("sizes_pixels", "pixels")):
        if counts[key] is not None:
            lines[f"lesion size, {unit}"] = _range_text(counts[key]["range"])
            for label, number in counts[key]["histogram"].items():
                lines[f"lesions of {label} {unit}"] = str(number)
    for axis, values in counts["spacing_mm"].items():
        lines[f"spacing {axis}, mm"] = _range_text(values)
    if counts["volumes_without_spacing"]:
        lines["volumes of unknown spacing"] = str(counts["volumes_without_spacing"])
    lines["image size, pixels"] = _sizes_text(counts["image_sizes"])
    lines["HU"] = "-" if counts["hu"] is None else "{} to {}".format(*counts["hu"])
    return lines


def _known(value: int | None) -> str:
    return "-" if value is None else str(value)


def _share(counts: Mapping) -> str:
    number, share = counts["images_without_lesion"], counts["share_without_lesion"]
    return str(number) if share is None else f"{number} ({100 * share:.1f} %)"


def _range_text(values: list[float] | None) -> str:
    return "-" if values is None else f"{values[0]:.4g} to {values[2]:.4g}, median {values[1]:.4g}"


def _sizes_text(sizes: Mapping[str, int]) -> str:
    if not sizes:
        return "-"
    first = next(iter(sizes))
    return first if len(sizes) == 1 else f"{first} and {len(sizes) - 1} more"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
