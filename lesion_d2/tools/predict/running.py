"""Predicts the scans of a process."""

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
from lesion_d2.utils.files import one_line, read_json, recover_folder, write_json

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

# Errors of the reader for a bad scan; other errors are bugs.
_OF_SCANS = (ValueError, OSError, ImportError, MemoryError)


@dataclass(frozen=True)
class Job:
    """The job of all processes.

    Attributes:
        cfg: of the model.
        config_file: file of ``cfg``.
        inputs: paths of the scans, and how they are read.
        output: the folder of results, with one folder per scan.
        operating_point: score threshold of findings.
        report: "short", "full" or "none".
        with_identity: whether reports have the patient's identity.
    """

    cfg: CfgNode
    config_file: str
    inputs: Inputs
    output: Path
    operating_point: OperatingPoint
    report: str
    with_identity: bool

    def settings(self) -> str:
        """Hash of everything that results depend on except the scan."""
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
    """Hash of everything that the results of a scan depend on, with its files."""
    parts = [settings, candidate.source, candidate.num_slices, candidate.series_uid]
    for file in candidate.files:
        with suppress(OSError):  # a file that is gone changes the hash, too
            status = os.stat(file)
            parts += [status.st_mtime_ns, status.st_size]
    return _digest(parts)


def state_of(settings: str, candidates: Sequence[ScanCandidate]) -> str:
    """Hash of everything that the results of all scans depend on."""
    return _digest([settings_of(settings, candidate) for candidate in candidates])


def predict_share(
    job: Job, candidates: Sequence[ScanCandidate], *, shows: bool
) -> tuple[list[ScanRow], str | None]:
    """Predict scans one after the other.

    Args:
        job: of all processes.
        candidates: the scans of this process.
        shows: whether to show progress bars.

    Returns:
        One row per processed scan, and one line with the reason if results cannot be written and
        the rest was not processed.
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
    """Predict one scan and write its folder; returns a row with the error if this fails.

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
    except Exception as error:  # errors of one scan do not stop the others
        text = one_line(error)
        if not isinstance(error, _OF_SCANS):
            tqdm.write(traceback.format_exc(), file=sys.stderr)
            text = f"{type(error).__name__}: {text}"
        return ScanRow(candidate.name, error=text or type(error).__name__)


def run_process(job: Job, names: Sequence[str], rows_folder: Path) -> None:
    """Function for ``launch``: predicts the scans of this process, and writes its rows to a file.

    Args:
        job: of all processes.
        names: of all scans; files may change between the listings of the processes.
        rows_folder: folder of the file.
    """
    share_cores(job.cfg)
    rank = comm.get_rank()
    own = set(names[rank :: comm.get_world_size()])
    # Listed again in each process, because readers may hold open files.
    candidates = [one for one in job.inputs.find().candidates if one.name in own]
    rows, fatal = predict_share(job, candidates, shows=rank == 0)
    content = {"rows": [asdict(row) for row in rows], "fatal": fatal}
    write_json(rows_folder / f"{rank}.json", content)
    finish_run()


def gather_rows(
    candidates: Sequence[ScanCandidate], rows_folder: Path, num_processes: int
) -> tuple[list[ScanRow], str | None]:
    """The rows of all processes in the order of the scans, and the first error that stopped one."""
    files = [rows_folder / f"{rank}.json" for rank in range(num_processes)]
    contents = [read_json(file, "rows of scans", allow_nan=True) for file in files]
    rows = {row["scan"]: ScanRow(**row) for content in contents for row in content["rows"]}
    fatal = next(filter(None, (content["fatal"] for content in contents)), None)
    if fatal is None:
        for one in candidates:
            gone = f"{one.source}: scan not found again, expected it to exist during the run"
            rows.setdefault(one.name, ScanRow(one.name, error=gone))
    return [rows[c.name] for c in candidates if c.name in rows], fatal
