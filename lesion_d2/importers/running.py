"""The import of a listing of cases: writes a volume set."""

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

#: File with the lines on what was left out: in the data set, or in the working folder before that.
LEFT_OUT_FILE = "left_out.txt"


@dataclass(frozen=True)
class ImportSummary:
    """The result of an import.

    Attributes:
        root: folder of the data set.
        written: whether the data set exists there.
        volume_set: the data set; None if it was not written, also after a dry run.
        num_cases: number of cases found.
        num_resumed: number of cases that an earlier call had finished.
        left_out: what was left out and why, one line each; the lines of ``damaged`` come first.
        damaged: the lines of ``left_out`` about cases that cannot be read.
        is_part: whether only a shard was imported: other shards are missing, or another call is
            about to write the data set. ``left_out`` and ``damaged`` are then those of this shard.
        stood: whether an earlier call had written the data set, so that this call did nothing.
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
        """File with the lines of ``left_out``; a dry run does not write it."""
        return (self.root if self.written else working_folder(self.root)) / LEFT_OUT_FILE


def working_folder(output: str | os.PathLike) -> Path:
    """Folder with the finished cases of an import; removed once the data set is written."""
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
    """Import all cases in parallel, with a progress bar.

    The output does not depend on ``workers``. Finished cases are kept in ``<output>.partial``, so
    that the next call resumes a killed import; cases whose files or options changed are read again.
    The data set is written atomically at the end.

    Args:
        listing: the listing of an importer.
        output: folder of the data set; its name becomes the data set's name.
        format: the importer's name, for ``VolumeSet.source``.
        workers: number of processes; None for all cores.
        dry_run: read no voxels and write nothing.
        overwrite: replace an existing data set.
        skip_damaged: leave out cases that cannot be read; by default, no data set is written if
            there are any.
        new_split: ignore the source's splits and folds.
        shares: shares of patients in train, val and test, for patients without a split; see
            :func:`complete_splits`.
        seed: random seed of these splits.
        shard: the shard of the cases to import; other calls may import other shards at the same
            time. The call that completes the last shard writes the data set, which equals that of a
            single call; later calls do nothing.

    Raises:
        ValueError: there are no cases, two cases have the same name, a patient is in two splits,
            the data set's name is taken or invalid, ``shares`` or ``seed`` is invalid, or
            ``overwrite`` is used with a shard.
        FileExistsError: ``output`` exists, and is not replaced.
        BlockingIOError: another process is importing to ``output``, or the same shard of it.
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
        _check_output(output, overwrite)  # again, as another call may have written it
        return job.run()


def _check_part(overwrite: bool) -> None:
    if overwrite:
        raise ValueError(
            "found --overwrite with --shard, expected only one of them; to replace the data set, "
            "remove it first"
        )


@dataclass(frozen=True)
class _Import:
    """:func:`run_import` after its checks; ``complete`` adds splits and folds to a data set."""

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
        """Import all cases, and write the data set."""
        return self._make(*_import_cases(self.journal, self.listing.cases, self.workers))

    def run_part(self) -> ImportSummary:
        """Import a shard, and write the data set if it was the last one."""
        journal, cases = self.journal, self.listing.cases
        finished, failed, num_resumed = _import_cases(journal, self.shard.of(cases), self.workers)
        summary = _summary(self.listing, self.output, finished, failed, num_resumed)
        # Checked before locking, so that this check cannot block the call that joins the shards.
        found = _all_parts(journal, cases)
        if found is not None:
            with joining(working_folder(self.output) / "lock", self.shard) as is_ours:
                if is_ours and journal.data.is_dir():  # else another call has done it
                    return self._make(*found, num_resumed)
        standing = _standing(self.listing, self.output, self.format)
        return standing or replace(summary, is_part=True)

    def _make(
        self, finished: Mapping[str, DoneCase], failed: Sequence[str], num_resumed: int
    ) -> ImportSummary:
        """Write the data set of finished cases, unless damaged cases must not be skipped."""
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
    """Finished cases by name, and errors of the others; None if cases are missing."""
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
    """The summary if calls for other shards have already written the data set; else None."""
    if not (output / FILE_NAME).is_file():
        return None
    found, names = read_volume_set(output), {case.name for case in listing.cases}
    is_ours = found.source == _source(format, listing)
    if not is_ours or not names.issuperset(volume.name for volume in found.volumes):
        return None
    with suppress(BlockingIOError):  # the call that has just written it cleans up
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
    """The summary of an import without a data set; damaged cases come first, each line once."""
    details = [line for case in finished.values() for line in case.left_out]
    damaged = tuple(map(printable, (*listing.damaged, *failed)))
    others = map(printable, (*listing.left_out, *details))
    left_out = tuple(dict.fromkeys((*damaged, *others)))
    return ImportSummary(output, False, None, len(listing.cases), num_resumed, left_out, damaged)


def is_registered_from(name: str, root: Path) -> bool:
    """Whether a registered data set is that of a folder, with symbolic links resolved."""
    found = MetadataCatalog.get(name).get("volume_set")
    return found is not None and os.path.realpath(found) == os.path.realpath(root)


def _check_name(output: Path) -> None:
    """Refuse invalid names, and names under which other data sets are registered."""
    name = output.name
    if name != safe_name(name):
        raise ValueError(
            f"--output {output}: found the name {name!r}, expected up to 100 letters, digits, "
            "'.', '_' and '-' that begin and end with a letter or digit"
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
            f"--output {output}: found a registered data set {taken[0]}, expected another name"
        )


def _tidy(output: Path) -> None:
    """Finish the work of a call that was killed after its data set was complete."""
    recover_folder(output)
    working = working_folder(output)
    if working.is_dir() and (working / "cases").is_dir() and not (working / "data").exists():
        with (
            suppress(FileNotFoundError),
            locked(working / "lock"),
        ):  # another call may have removed it
            _remove_working(output)


def _remove_working(output: Path) -> None:
    """Remove the working folder atomically, so that other calls never find a part of it."""
    working = working_folder(output)
    trash = working.with_name(f".{working.name}.trash")
    shutil.rmtree(trash, ignore_errors=True)  # left by a killed call
    os.replace(working, trash)
    shutil.rmtree(trash, ignore_errors=True)  # NFS keeps files that other calls have open


def _check_output(output: Path, overwrite: bool) -> None:
    is_empty = output.is_dir() and not any(output.iterdir())
    if not output.exists() or is_empty:
        return
    if not (output / FILE_NAME).is_file():
        raise FileExistsError(
            f"{output}: found a file or folder that is not a volume set, expected none; "
            "choose another --output"
        )
    if not overwrite:
        raise FileExistsError(
            f"{output}: found a volume set, expected none; choose another --output, or pass "
            "--overwrite to replace it"
        )


def _check_cases(listing: Listing) -> None:
    if not listing.cases:
        problems = listing.left_out or ("found no files of this format",)
        raise_problems("found no case to import, expected at least one", problems)
    names: dict[str, Case] = {}
    for case in listing.cases:
        other = names.setdefault(case.name.lower(), case)
        if other is not case:
            raise ValueError(
                f"{', '.join((*other.sources[:1], *case.sources[:1]))}: found two cases with the "
                f"name {case.name!r}, expected unique names"
            )


def _known_splits(cases: Sequence[Case]) -> dict[str, str]:
    """Patient -> split of the source."""
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
                f"(case {case.name}), expected each patient in one split; correct the source, or "
                "pass --new-split for new splits"
            )
    return known


def _check_folds(folds: Sequence[Mapping[str, Sequence[str]]]) -> None:
    """Check folds before anything is read, as writing the data set would."""
    for number, fold in enumerate(folds):
        split_of: dict[str, str] = {}
        for patient, split in ((name, split) for split, names in fold.items() for name in names):
            if split_of.setdefault(patient, split) != split:
                raise ValueError(
                    f"patient {patient}: found in {split_of[patient]} and in {split} of fold "
                    f"{number}, expected each patient in one split; correct the source, or pass "
                    "--new-split for new splits"
                )


def _import_cases(
    journal: Journal, cases: Sequence[Case], workers: int | None
) -> tuple[dict[str, DoneCase], list[str], int]:
    """Finished cases by name, errors of the others, and the number of resumed cases."""
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
    """Number the lesions of all volumes consecutively, from 1."""
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
    """Complete the data in the working folder, and move it to ``output``."""
    data = working_folder(output) / "data"
    wanted = {data / volume.image for volume in volume_set.volumes}
    for file in (data / "images").iterdir():  # of cases no longer listed, or of killed calls
        if file not in wanted:
            file.unlink()
    _write_lines(data / LEFT_OUT_FILE, left_out)
    write_volume_set(data, volume_set)
    replace_folder(data, output)
    _remove_working(output)
