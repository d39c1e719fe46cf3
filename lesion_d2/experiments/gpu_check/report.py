"""Results of the check: one JSON file, and one table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lesion_d2.utils.files import write_json

from tabulate import tabulate

from .jobs import Job

_HEADERS = (
    "config",
    "measured",
    "training /s",
    "ms each",
    "ms each of 4",
    "MiB training",
    "GPU waits",
    "note",
)
_WIDTHS = (42, 15, 11, 9, 12, 12, 9, 0)  # rows are printed before the next ones are known


@dataclass
class Outcome:
    """The outcome of a job: its numbers, or the reason why it has none."""

    job: Job
    numbers: dict[str, float | str | None] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    skipped: str = ""

    def cells(self) -> list[str]:
        """The cells of a row of the table."""
        job, numbers = self.job, self.numbers
        what = job.kind if job.kind != "model" else job.setting
        note = numbers.get("note") or ""
        if self.skipped:
            note = f"skipped: {self.skipped}"
        elif self.error:
            note = f"FAILED: {self.error}"
        elif job.kind == "step":
            note = f"loss {numbers['loss']:.3g}"
        elif job.kind == "loader":
            note = f"loader alone {numbers['loader_per_s']:.4g} /s, {note}"
        elif job.kind == "model":
            note = f"batch {numbers['batch']}, first step {numbers['first_step_s']:.1f} s"
        waiting = numbers.get("waiting")
        return [
            job.config,
            what,
            _text(numbers.get("training_per_s"), ".4g"),
            _text(numbers.get("inference_ms"), ".4g"),
            _text(numbers.get("inference_of_4_ms"), ".4g"),
            _text(numbers.get("training_mib"), ".0f"),
            "" if waiting is None else f"{waiting:.0%}",
            str(note),
        ]


def _text(value: float | str | None, form: str) -> str:
    return "" if value is None else format(value, form)


def line(cells: Sequence[str]) -> str:
    """A row, formatted for printing when it is measured."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def header() -> str:
    """The line above the rows."""
    return line(_HEADERS)


def table(outcomes: Sequence[Outcome]) -> str:
    """All rows."""
    return tabulate([each.cells() for each in outcomes], _HEADERS, disable_numparse=True)


def write_report(file: Path, head: dict, tests: dict, outcomes: Sequence[Outcome]) -> None:
    """Write everything as JSON: ``steps``, ``rows``, ``failed`` and ``skipped`` are the jobs."""
    content = {**head, "tests": tests, "steps": [], "rows": [], "failed": [], "skipped": []}
    for each in outcomes:
        entry = {**asdict(each.job), "seconds": round(each.seconds, 2)}
        if each.skipped:
            content["skipped"].append({**asdict(each.job), "why": each.skipped})
        elif each.error:
            content["failed"].append({**entry, "error": each.error})
        else:
            content["steps" if each.job.kind == "step" else "rows"].append(entry | each.numbers)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content, indent=1, allow_nan=True)
