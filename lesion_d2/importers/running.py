"""From a listing of cases to a data set of volumes on disk."""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.formats.problems import raise_problems
from ..data.toys.on_demand import NAMES as TOYS
from ..data.volume_set.form import (
    FILE_NAME,
    SPLITS,
    Volume,
    VolumeSet,
    read_volume_set,
    write_volume_set,
)
from ..data.volume_set.splits import DEFAULT_SHARES, check_choice, complete_splits
from ..scans.names import safe_name
from ..utils.files import atomic_write, locked, printable, recover_folder, replace_folder
from ..utils.parallel import map_with_progress
from ..utils.shards import WHOLE, Shard, joining
from .case import Case, Listing
from .journal import DoneCase, Journal, finish_case, settings_of

#: What was left out, in the folder of the data set, or in the working folder before there is one.
LEFT_OUT_FILE = "left_out.txt"


@dataclass(frozen=True)
class ImportSummary:
    """What an import found and did.

    Attributes:
        root: of the data set.
        written: whether it stands there.
        volume_set: the data set, or None where none was made (of a dry run, too).
        num_cases: what was found to import.
        num_resumed: of them, what an earlier call had finished.
        left_out: what was left out and why, a line each; first those of ``damaged``.
        damaged: of these, what is meant as a case and cannot be read.
        is_part: whether it did a part alone: cases of other parts are missing, or another call is
            about to make the data set. ``left_out`` and ``damaged`` are of this part then.
        stood: whether an earlier call had made the data set, and this one did nothing.
    """

    root: Path
    written: bool
    volume_set: VolumeSet | None
    num_cases: int
    num_resumed: int
    left_out: tuple[str, ...]
    damaged: tuple[str, ...]
    is_part: bool = False
    stood: bool = False

    @property
    def left_out_file(self) -> Path:
        """Where ``left_out`` stands, but after a dry run."""
        return (self.root if self.written else working_folder(self.root)) / LEFT_OUT_FILE


def working_folder(output: str | os.PathLike) -> Path:
    """Where an import keeps what it has finished; gone when the data set stands."""
    output = Path(os.path.abspath(output))
    return output.with_name(f"{output.name}.partial")


def run_import(
    listing: Listing,
    output: str | os.PathLike,
    *,
    format: str,
    workers: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    skip_damaged: bool = False,
    new_split: bool = False,
    shares: Sequence[float] = DEFAULT_SHARES,
    seed: int = 0,
    shard: Shard = WHOLE,
) -> ImportSummary:
    """Import all cases, on all cores, with a progress bar; any ``workers`` give the same bytes.

    What is finished stands in ``<output>.partial``: a call that follows a killed one goes on from
    there, but for cases whose files or options changed. The data set appears as a whole, last.

    Args:
        listing: of an importer.
        output: the data set's folder; its name is the data set's.
        format: the importer's name, for ``VolumeSet.source``.
        workers: processes; None for all cores.
        dry_run: read and write nothing.
        overwrite: replace a data set that stands there.
        skip_damaged: leave out cases that cannot be read; else there is no data set with one.
        new_split: leave the source's own splits and folds.
        shares: of the patients in train, val and test, where the source does not say; see
            :func:`complete_splits`.
        seed: of that choice.
        shard: the part of the cases that this call imports, while others may import theirs. The
            call after which none is missing makes the data set, the same as one call for all;
            calls that come after it do nothing.

    Raises:
        ValueError: there is no case, two have one name, a patient is in two splits, the data set's
            name is taken or cannot be one, ``shares`` or ``seed`` are none, or a part is to replace
            a data set.
        FileExistsError: something else stands at ``output``.
        BlockingIOError: another process imports there, the same part if it is one.
        OSError: a file cannot be written.
        BrokenProcessPool: a process was killed.
    """
    output = Path(os.path.abspath(output))
    _check_name(output)
    if not shard.is_whole:
        _check_part(overwrite)
        if (standing := _standing(listing, output, format)) is not None:
            return standing
    _tidy(output)
    _check_output(output, overwrite)
    _check_cases(listing)
    check_choice(shares, seed)
    splits = {} if new_split else _known_splits(listing.cases)
    folds = () if new_split else listing.folds
    _check_folds(folds)
    if dry_run:
        return _summary(listing, output)
    complete = partial(complete_splits, known=splits, folds=folds, shares=shares, seed=seed)
    working = working_folder(output)
    working.mkdir(parents=True, exist_ok=True)
    job = _Import(listing, output, format, workers, skip_damaged, complete, shard)
    with locked(shard.file(working / "lock")):
        if not shard.is_whole:
            return job.run_part()
        _check_output(output, overwrite)  # of a call that was faster
        return job.run()


def _check_part(overwrite: bool) -> None:
    if overwrite:
        raise ValueError(
            "found --overwrite with --shard, expected one of them: remove the data set first"
        )


@dataclass(frozen=True)
class _Import:
    """:func:`run_import` behind its checks; ``complete`` gives a data set its splits and folds."""

    listing: Listing
    output: Path
    format: str
    workers: int | None
    skip_damaged: bool
    complete: Callable[[VolumeSet], VolumeSet]
    shard: Shard

    @property
    def journal(self) -> Journal:
        working, listing = working_folder(self.output), self.listing
        settings = settings_of(self.format, listing)
        return Journal(working / "data", working / "cases", settings, listing.classes)

    def run(self) -> ImportSummary:
        """Import all cases, and make the data set."""
        return self._make(*_import_cases(self.journal, self.listing.cases, self.workers))

    def run_part(self) -> ImportSummary:
        """Import a part of the cases, and make the data set where it was the last part."""
        journal, cases = self.journal, self.listing.cases
        finished, failed, num_resumed = _import_cases(journal, self.shard.of(cases), self.workers)
        summary = _summary(self.listing, self.output, finished, failed, num_resumed)
        # Before the lock is taken: a call that only looks never keeps the last one from joining.
        found = _all_parts(journal, cases)
        if found is not None:
            with joining(working_folder(self.output) / "lock", self.shard) as is_ours:
                if is_ours and journal.data.is_dir():  # else another call was faster
                    return self._make(*found, num_resumed)
        standing = _standing(self.listing, self.output, self.format)
        return standing or replace(summary, is_part=True)

    def _make(
        self, finished: Mapping[str, DoneCase], failed: Sequence[str], num_resumed: int
    ) -> ImportSummary:
        """Make the data set of finished cases, unless one is damaged that may not be skipped."""
        listing, output = self.listing, self.output
        summary = _summary(listing, output, finished, failed, num_resumed)
        if not finished or (summary.damaged and not self.skip_damaged):
            _write_lines(summary.left_out_file, summary.left_out)
            return summary
        volumes = _numbered([case.volume for case in finished.values()])
        volume_set = self.complete(
            VolumeSet(listing.classes, volumes, _source(self.format, listing))
        )
        _put_in_place(volume_set, summary.left_out, output)
        return replace(summary, written=True, volume_set=volume_set)


def _source(format: str, listing: Listing) -> dict:
    return {"format": format, **listing.options}


def _all_parts(
    journal: Journal, cases: Sequence[Case]
) -> tuple[dict[str, DoneCase], list[str]] | None:
    """Finished cases by name, and what is wrong with the others; None where some are missing."""
    finished: dict[str, DoneCase] = {}
    failed = []
    for case in cases:
        done = journal.done(case)
        if done is not None:
            finished[case.name] = done
        elif (problem := journal.problem(case)) is not None:
            failed.append(problem)
        else:
            return None
    return finished, failed


def _standing(listing: Listing, output: Path, format: str) -> ImportSummary | None:
    """The summary where calls for parts of this listing have made the data set already."""
    if not (output / FILE_NAME).is_file():
        return None
    found, names = read_volume_set(output), {case.name for case in listing.cases}
    is_ours = found.source == _source(format, listing)
    if not is_ours or not names.issuperset(volume.name for volume in found.volumes):
        return None
    with suppress(BlockingIOError):  # the call that has just made it tidies up
        _tidy(output)
    number = len(listing.cases)
    return ImportSummary(output, True, found, number, number, (), (), stood=True)


def _summary(
    listing: Listing,
    output: Path,
    finished: Mapping[str, DoneCase] = MappingProxyType({}),
    failed: Sequence[str] = (),
    num_resumed: int = 0,
) -> ImportSummary:
    """Of an import that has written no data set. What is damaged is told first, each line once."""
    details = [line for case in finished.values() for line in case.left_out]
    damaged = tuple(map(printable, (*listing.damaged, *failed)))
    others = map(printable, (*listing.left_out, *details))
    left_out = tuple(dict.fromkeys((*damaged, *others)))
    return ImportSummary(output, False, None, len(listing.cases), num_resumed, left_out, damaged)


def is_registered_from(name: str, root: Path) -> bool:
    """Whether a registered data set is that of a folder, whatever links lead there."""
    found = MetadataCatalog.get(name).get("volume_set")
    return found is not None and os.path.realpath(found) == os.path.realpath(root)


def _check_name(output: Path) -> None:
    """Refuse names under which other data sets are registered, and those that can be none."""
    name = output.name
    if name != safe_name(name):
        raise ValueError(
            f"--output {output}: found the name {name!r}, expected up to 100 letters, digits, "
            "'.', '_' and '-', the first and last no sign"
        )
    splits = "|".join(SPLITS)
    own = re.compile(rf"{re.escape(name)}(_fold\d+)?(_volumes)?(_({splits}))?")
    taken = [
        other
        for other in (*DatasetCatalog.list(), *TOYS)
        if own.fullmatch(other) and not is_registered_from(other, output)
    ]
    if taken:
        raise ValueError(
            f"--output {output}: found the data set {taken[0]} of that name, expected another name"
        )


def _tidy(output: Path) -> None:
    """Bring to its end what a call left that was killed when its data set was complete."""
    recover_folder(output)
    working = working_folder(output)
    if working.is_dir() and (working / "cases").is_dir() and not (working / "data").exists():
        with suppress(FileNotFoundError), locked(working / "lock"):  # else it is gone by now
            _remove_working(output)


def _remove_working(output: Path) -> None:
    """Remove the working folder at one go for other calls, which could not use a part of it."""
    working = working_folder(output)
    trash = working.with_name(f".{working.name}.trash")
    shutil.rmtree(trash, ignore_errors=True)  # of a call that was killed here
    os.replace(working, trash)
    shutil.rmtree(trash, ignore_errors=True)  # NFS keeps files that other calls have open


def _check_output(output: Path, overwrite: bool) -> None:
    is_empty = output.is_dir() and not any(output.iterdir())
    if not output.exists() or is_empty:
        return
    if not (output / FILE_NAME).is_file():
        raise FileExistsError(
            f"{output}: found something else than a data set of volumes, expected a free place: "
            "name another --output"
        )
    if not overwrite:
        raise FileExistsError(
            f"{output}: found a data set of volumes, expected a free place: name another --output, "
            "or pass --overwrite to replace it"
        )


def _check_cases(listing: Listing) -> None:
    if not listing.cases:
        problems = listing.left_out or ("nothing is like one",)
        raise_problems("found no case to import, expected one at least", problems)
    names: dict[str, Case] = {}
    for case in listing.cases:
        other = names.setdefault(case.name.lower(), case)
        if other is not case:
            raise ValueError(
                f"{', '.join((*other.sources[:1], *case.sources[:1]))}: found two cases of the "
                f"name {case.name!r}, expected names that differ"
            )


def _known_splits(cases: Sequence[Case]) -> dict[str, str]:
    """patient -> split, as the source has it."""
    known: dict[str, str] = {}
    for case in cases:
        if case.split is None:
            continue
        if case.split not in SPLITS:
            raise ValueError(
                f"case {case.name}: found the split {case.split!r}, expected one of {list(SPLITS)}"
            )
        if known.setdefault(case.patient, case.split) != case.split:
            raise ValueError(
                f"patient {case.patient}: found in {known[case.patient]} and in {case.split} "
                f"(case {case.name}), expected one split for all of a patient: correct the source, "
                "or pass --new-split to split anew"
            )
    return known


def _check_folds(folds: Sequence[Mapping[str, Sequence[str]]]) -> None:
    """As the data set would be refused, but before anything is read."""
    for number, fold in enumerate(folds):
        split_of: dict[str, str] = {}
        for patient, split in ((name, split) for split, names in fold.items() for name in names):
            if split_of.setdefault(patient, split) != split:
                raise ValueError(
                    f"patient {patient}: found in {split_of[patient]} and in {split} of fold "
                    f"{number}, expected one split for all of a patient: correct the source, or "
                    "pass --new-split to split anew"
                )


def _import_cases(
    journal: Journal, cases: Sequence[Case], workers: int | None
) -> tuple[dict[str, DoneCase], list[str], int]:
    """Finished cases by name, what is wrong with the others, and how many were there before."""
    finished = {case.name: done for case in cases if (done := journal.done(case)) is not None}
    left = [(journal, case) for case in cases if case.name not in finished]
    for case in cases:
        journal.forget_problem(case)
    num_resumed, failed = len(finished), {}
    (journal.data / "images").mkdir(parents=True, exist_ok=True)
    journal.cases.mkdir(parents=True, exist_ok=True)
    bar = {"total": len(cases), "initial": num_resumed, "desc": "import", "disable": None}
    with map_with_progress(finish_case, left, workers, unit="case", **bar) as results:
        failed.update((name, problem) for name, problem in results if problem)
    for _, case in left:
        if case.name not in failed:
            done = journal.done(case)
            if done is None:
                failed[case.name] = f"case {case.name}: its files changed while they were read"
            else:
                finished[case.name] = done
        if case.name in failed:
            journal.fail(case, failed[case.name])
    order = [case.name for case in cases]
    finished = {name: finished[name] for name in order if name in finished}
    return finished, [failed[name] for name in order if name in failed], num_resumed


def _numbered(volumes: Sequence[Volume]) -> tuple[Volume, ...]:
    """Volumes whose lesions have ids from 1 on over all of them."""
    numbered, next_id = [], 1
    for volume in volumes:
        lesions = tuple(replace(le, id=next_id + i) for i, le in enumerate(volume.lesions))
        numbered.append(replace(volume, lesions=lesions))
        next_id += len(lesions)
    return tuple(numbered)


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    with atomic_write(file) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _put_in_place(volume_set: VolumeSet, left_out: Sequence[str], output: Path) -> None:
    """Complete the working folder's data and let it become the data set."""
    data = working_folder(output) / "data"
    wanted = {data / volume.image for volume in volume_set.volumes}
    for file in (data / "images").iterdir():  # of cases that are none any more, and of killed calls
        if file not in wanted:
            file.unlink()
    _write_lines(data / LEFT_OUT_FILE, left_out)
    write_volume_set(data, volume_set)
    replace_folder(data, output)
    _remove_working(output)
