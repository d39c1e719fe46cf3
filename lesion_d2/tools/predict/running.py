"""What a process does with its scans."""

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import lesion_d2
from lesion_d2.engine import (
    InputError,
    LesionPredictor,
    describe_algorithm,
    finish_run,
    predict_scan,
    share_cores,
)
from lesion_d2.findings import OperatingPoint
from lesion_d2.scans import ScanCandidate
from lesion_d2.utils.files import one_line, read_json, recover_folder

from detectron2.config import CfgNode
from detectron2.utils import comm
from tqdm import tqdm

from .inputs import Inputs
from .outputs import (
    OutputError,
    ScanRow,
    check_replaceable,
    new_folder,
    read_done,
    write_results,
    write_status,
)

# What the reader of a bad scan raises; the rest is a fault of the program.
_OF_SCANS = (ValueError, OSError, ImportError, MemoryError)


@dataclass(frozen=True)
class Job:
    """What all processes are to do.

    Attributes:
        cfg: of the model.
        config_file: that it was read from.
        inputs: where the scans are, and how they are read.
        output: the folder that gets one a scan.
        operating_point: from which score on something is a finding.
        report: "short", "full" or "none".
        with_identity: whether reports tell who the patient is.
    """

    cfg: CfgNode
    config_file: str
    inputs: Inputs
    output: Path
    operating_point: OperatingPoint
    report: str
    with_identity: bool

    def settings(self) -> str:
        """A digest of what results depend on beside the scan."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS = ""
        cfg.DATALOADER = cfg.SOLVER = CfgNode()
        algorithm = describe_algorithm(self.cfg, self.config_file)
        parts = [
            lesion_d2.__version__,
            cfg.dump(),
            algorithm.weights_sha256 or algorithm.weights,
            asdict(self.operating_point),
            self.report,
            self.with_identity,
            (self.inputs.spacing, self.inputs.allow_gaps),
        ]
        return _digest(parts)


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def settings_of(settings: str, candidate: ScanCandidate) -> str:
    """A digest of what the results of a scan depend on: other or changed files give another."""
    parts = [settings, candidate.source, candidate.num_slices, candidate.series_uid]
    for file in candidate.files:
        with suppress(OSError):  # a file that is gone is another one, too
            status = os.stat(file)
            parts += [status.st_mtime_ns, status.st_size]
    return _digest(parts)


def state_of(settings: str, candidates: Sequence[ScanCandidate]) -> str:
    """A digest of what the results of all scans depend on."""
    return _digest([settings_of(settings, candidate) for candidate in candidates])


def predict_share(
    job: Job, candidates: Sequence[ScanCandidate], *, shows: bool
) -> tuple[list[ScanRow], str | None]:
    """Predict scans one after the other.

    Args:
        job: what is to be done.
        candidates: the scans of this process.
        shows: whether there are progress bars.

    Returns:
        A row a scan that was looked at, and in one line why the rest was not: results cannot be
        written.
    """
    settings, rows, predictor = job.settings(), [], None
    for candidate in tqdm(candidates, "scans", unit="scan", disable=not shows):
        own = settings_of(settings, candidate)
        recover_folder(job.output / candidate.name)
        row = read_done(job.output / candidate.name, own)
        if row is None:
            try:
                predictor = predictor or LesionPredictor(job.cfg)
                row = _predict(job, candidate, predictor, own, shows=shows)
            except InputError as error:
                return rows, str(error)
        rows.append(row)
    return rows, None


def _predict(
    job: Job, candidate: ScanCandidate, predictor: LesionPredictor, settings: str, *, shows: bool
) -> ScanRow:
    """Predict one scan and write its folder; a scan that cannot be gives a row with the error.

    Raises:
        OutputError: its results cannot be written.
    """
    start, folder = time.perf_counter(), job.output / candidate.name
    try:
        check_replaceable(folder)
        scan = candidate.read()
        with tqdm(
            total=len(scan.volume), desc=scan.name, unit="slice", leave=False, disable=not shows
        ) as bar:
            findings = predict_scan(
                predictor,
                scan,
                score_threshold=job.operating_point,
                config_file=job.config_file,
                on_slice=bar.update,
            )
        with new_folder(folder) as partial:
            problems = write_results(
                partial, scan, findings, report=job.report, with_identity=job.with_identity
            )
            row = ScanRow(
                candidate.name,
                slices=len(scan.volume),
                findings=len(findings.findings),
                seconds=round(time.perf_counter() - start, 2),
                error="; ".join(problems) or None,
            )
            write_status(partial, row, settings)
        return row
    except OutputError:
        raise
    except Exception as error:  # whatever is wrong with one scan, the others are predicted
        text = one_line(error)
        if not isinstance(error, _OF_SCANS):
            tqdm.write(traceback.format_exc(), file=sys.stderr)
            text = f"{type(error).__name__}: {text}"
        return ScanRow(candidate.name, error=text or type(error).__name__)


def run_process(job: Job, names: Sequence[str], rows_folder: Path) -> None:
    """What ``launch`` calls: predicts this process's share, and leaves its rows in a file.

    Args:
        job: what is to be done.
        names: of all scans; files may come and go between the listings of the processes.
        rows_folder: that gets the file.
    """
    share_cores(job.cfg)
    rank = comm.get_rank()
    own = set(names[rank :: comm.get_world_size()])
    # What reads a scan may hold open files, which are no other process's.
    candidates = [one for one in job.inputs.find().candidates if one.name in own]
    rows, fatal = predict_share(job, candidates, shows=rank == 0)
    content = {"rows": [asdict(row) for row in rows], "fatal": fatal}
    (rows_folder / f"{rank}.json").write_text(json.dumps(content))
    finish_run()


def gather_rows(
    candidates: Sequence[ScanCandidate], rows_folder: Path, num_processes: int
) -> tuple[list[ScanRow], str | None]:
    """The rows of all processes in the order of the scans, and the first reason to stop."""
    files = [rows_folder / f"{rank}.json" for rank in range(num_processes)]
    contents = [read_json(file, "rows of scans", allow_nan=True) for file in files]
    rows = {row["scan"]: ScanRow(**row) for content in contents for row in content["rows"]}
    fatal = next(filter(None, (content["fatal"] for content in contents)), None)
    if fatal is None:
        for one in candidates:
            gone = f"{one.source}: found no such scan a second time, expected it to stay"
            rows.setdefault(one.name, ScanRow(one.name, error=gone))
    return [rows[c.name] for c in candidates if c.name in rows], fatal
