"""The check of data sets: loads them, reads every file once, and writes a report."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..visualization import save_picture
from .counts import count_set
from .faults import FaultLog
from .loading import expand_names, load_sets
from .page import write_page
from .pictures import draw_sheet
from .pixels import PixelPass
from .report import DataReport
from .rules.annotations import all_lesions, check_annotations, check_sizes
from .rules.splits import check_splits
from .rules.volume_sets import check_volume_sets

#: Files of a check.
JSON_FILE, SHEET_FILE, PAGE_FILE = "data_check.json", "data_check.png", "data_check.html"
_AIR_SHARE = 0.1  # fraction of a data set's lesions above which lesions on air are an error


def check_data_set(
    names: str | Iterable[str],
    *,
    output: str | os.PathLike | None = None,
    workers: int | None = None,
    pictures: int = 16,
    allow_missing: bool = False,
) -> DataReport:
    """Compute statistics of registered data sets, and find their faults.

    Every file is read once, in a pool of processes, without keeping pixels.
    :data:`~lesion_d2.data_checks.faults.KINDS` describes the kinds of faults.

    Args:
        names: names of data sets; without a split, all splits: ``phantom`` is ``phantom_train``,
            ``phantom_val`` and ``phantom_test``.
        output: folder for ``data_check.json``, ``data_check.png`` and ``data_check.html``; None
            writes nothing.
        workers: number of processes; None for all cores.
        pictures: maximum number of pictures on the contact sheet; 0 for no sheet.
        allow_missing: whether missing files are a warning instead of an error.

    Raises:
        OSError: a data set cannot be read at all, or ``output`` cannot be written.
        ValueError: a data set is not registered, or cannot be read at all.
    """
    log = FaultLog(warnings=("missing_file",) if allow_missing else ())
    sets = load_sets(expand_names([names] if isinstance(names, str) else names), log)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)  # fail before minutes of work
    pixel_pass = PixelPass(sets, log)
    pixel_pass.run(workers)
    lesions = {loaded.name: all_lesions(loaded) for loaded in sets}
    for loaded in sets:
        check_annotations(loaded, log)
        check_sizes(loaded, lesions[loaded.name], log)
    check_splits(sets, lesions, log)
    check_volume_sets(sets, log)
    if log.count("lesion_on_air") >= _AIR_SHARE * max(1, sum(map(len, lesions.values()))):
        log.rename("lesion_on_air", "lesions_on_air")
    counts = {
        loaded.name: count_set(
            loaded, list(pixel_pass.volumes[loaded.name].values()), lesions[loaded.name]
        )
        for loaded in sets
    }
    report = DataReport(tuple(counts), counts, log.faults())
    if output is not None:
        _write(Path(output), report, pixel_pass, pictures)
    return report


def _write(output: Path, report: DataReport, pixel_pass: PixelPass, pictures: int) -> None:
    sheet = draw_sheet(pixel_pass, report.faults, number=pictures) if pictures else None
    (output / SHEET_FILE).unlink(missing_ok=True)  # from an earlier check
    if sheet is not None:
        save_picture(sheet, output / SHEET_FILE)
    write_page(output / PAGE_FILE, report, sheet)
    report.write(output / JSON_FILE)
