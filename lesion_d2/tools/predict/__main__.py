"""Find lesions in CT scans: DICOM, NIfTI, MetaImage, NRRD, or folders of DeepLesion's PNG files.

python -m lesion_d2.tools.predict --config-file C MODEL.WEIGHTS W --input SCAN... --output DIR

Every scan gets a folder in DIR, which is complete or absent: findings.json, findings.csv,
coco_instances_results.json and report.html; for DICOM structured_report.dcm and, with masks,
segmentation.dcm; for NIfTI, MetaImage and NRRD labels.nii.gz. DIR has index.html and summary.csv.

The score threshold of findings is set by --fps-per-image or --fps-per-volume, the rate of false
positives in an evaluation of the model (--operating-points, its froc.json or volumes.json; by
default the one in inference/ beside the weights), or by --score-threshold. The default is 0.5 per
image or, for 3-D models, 0.5 per volume.

--dicomweb URL --study UID fetches scans from a PACS, and --store sends the DICOM results to it.
Credentials are read from ~/.netrc, DICOMWEB_USER and DICOMWEB_PASSWORD, or DICOMWEB_TOKEN.

A scan that cannot be read is reported, the others are processed, and the exit status is 1. Running
it again after an interruption reuses finished scans. Result folders are not searched for scans.
--num-gpus N spreads scans over N processes (also on CPUs, with MODEL.DEVICE cpu). --shard I/N
processes every N-th scan: N such calls, on machines that share a disk, process all of them, and the
last one writes index.html and summary.csv. Not a medical device: do not use it for diagnosis.
"""

import argparse
import datetime
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lesion_d2.engine import (
    InputError,
    check_prediction,
    fit_device,
    load_config,
    prepare_processes,
)
from lesion_d2.scans import ScanCandidate
from lesion_d2.tools.common.arguments import add_shard, positive
from lesion_d2.utils.errors import run_program
from lesion_d2.utils.files import one_line
from lesion_d2.utils.shards import Shard

from detectron2.config import CfgNode
from detectron2.engine import launch

from .inputs import Inputs
from .outputs import REPORTS, ScanRow
from .parts import read_parts, write_part
from .running import Job, gather_rows, predict_share, run_process, state_of
from .summary import summary_table, write_summary
from .threshold import choose_threshold

_PROGRAM = "lesion_d2.tools.predict"
_KEY = re.compile(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+")  # of a config
# Processes wait for each other at the end, and some scans take long.
_TIMEOUT = datetime.timedelta(days=30)


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--config-file", required=True, help="config of the model")
    add("--input", nargs="+", default=[], metavar="SCAN", help="files, folders, zip archives")
    add("--output", type=Path, required=True, metavar="DIR", help="output folder")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--fps-per-image", type=_rate, metavar="R", help="false positives per slice"
    )
    chosen.add_argument(
        "--fps-per-volume", type=_rate, metavar="R", help="false positives per scan"
    )
    chosen.add_argument(
        "--score-threshold", type=_score, metavar="T", help="minimum score of findings"
    )
    add(
        "--operating-points",
        type=Path,
        metavar="FILE",
        help="froc.json or volumes.json of an evaluation",
    )
    add(
        "--report",
        choices=REPORTS,
        default="short",
        help="slices in the report: around findings, all, or no report",
    )
    add("--with-identity", action="store_true", help="include the patient's identity in reports")
    add("--num-gpus", type=positive, default=1, metavar="N", help="processes (default: 1)")
    add_shard(add)
    add("--allow-gaps", action="store_true", help="interpolate missing slices")
    add("--dicomweb", metavar="URL", help="DICOMweb URL of a PACS")
    add("--study", metavar="UID", help="Study Instance UID to fetch")
    add("--series", metavar="UID", help="Series Instance UID to fetch (default: all CT series)")
    add(
        "--store",
        action="store_true",
        help="store structured reports and segmentations in the PACS",
    )
    add("--spacing", type=_spacing, metavar="X,Y,Z", help="spacing of PNG folders, mm")
    add("opts", nargs="*", metavar="KEY VALUE", help="config options, such as MODEL.WEIGHTS W")
    return parser


def _rate(text: str) -> float:
    return _number(text, lambda value: 0 < value < math.inf, "a number above 0")


def _score(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= 1, "a score from 0 to 1")


def _number(text: str, is_usable: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_usable(value):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return value


def _spacing(text: str) -> tuple[float, float, float]:
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected three numbers, X,Y,Z in mm")
    x, y, z = (_number(part, lambda v: 0 < v < math.inf, "mm above 0") for part in parts)
    return x, y, z


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, print the summary, and return 1 if a scan has no results, 130 after Ctrl-C."""
    parser = get_parser()
    args = parser.parse_intermixed_args(argv)
    _check_combined(parser, args)
    goes_on = "interrupted: run the same command again to continue"
    return run_program(lambda: run(args), _PROGRAM, interrupted=goes_on)


def _check_combined(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.input and args.study is None:
        parser.error("found neither --input nor --study, expected scans")
    key = next((p for p in args.input if _KEY.fullmatch(p) and not os.path.exists(p)), None)
    if key is not None:
        parser.error(f"found {key} among the scans of --input, expected KEY VALUE before --input")
    if args.series is not None and args.study is None:
        parser.error("found --series without --study, expected both")
    if args.study is not None and not args.shard.is_whole:
        parser.error("found --study with --shard, expected one: each part would fetch the study")
    wanted = [name for name in ("study", "store") if getattr(args, name)]
    if bool(wanted) != (args.dicomweb is not None):
        found = f"--{wanted[0]}" if wanted else "--dicomweb"
        parser.error(f"found only {found}, expected --dicomweb with --study, --store or both")


def run(args: argparse.Namespace) -> int:
    """:func:`main` for parsed arguments.

    Raises:
        InputError: scans cannot be predicted, or results cannot be written.
    """
    cfg = load_config(args)
    check_prediction(cfg)
    fit_device(cfg)
    operating_point, said = choose_threshold(args, cfg)
    print(f"Score threshold: {said}", file=sys.stderr)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output: {args.output} cannot be created: {one_line(error)}") from None
    if not os.access(args.output, os.W_OK | os.X_OK):
        raise InputError(f"--output: {args.output} cannot be written to")
    inputs, failed = _inputs(args, cfg)
    found = inputs.find(progress=True)
    for line in found.left_out:
        print(f"left out: {line}", file=sys.stderr)
    job = Job(
        cfg,
        args.config_file,
        inputs,
        args.output,
        operating_point,
        args.report,
        args.with_identity,
    )
    rows, fatal = predict_all(job, args.shard.of(found.candidates), args.num_gpus)
    if args.store and fatal is None:
        from .pacs import store_results

        rows = store_results(args.dicomweb, rows, args.output)
    others = (*found.unreadable, *failed)
    if args.shard.number == 1:
        rows = [*rows, *others]
    print(summary_table(rows))
    if fatal is not None:
        raise InputError(fatal)
    try:
        is_complete = _write_summary(job, args.shard, found.candidates, rows)
    except OSError as error:
        raise InputError(f"{args.output}: cannot be written: {one_line(error)}") from None
    if is_complete:
        print(f"Results are in {args.output}: open {args.output / 'index.html'}")
    else:
        print(f"part {args.shard} has finished: the last part writes the summary")
    return 1 if any(row.error for row in rows) else 0


def _write_summary(
    job: Job, shard: Shard, candidates: Sequence[ScanCandidate], rows: list[ScanRow]
) -> bool:
    """Write the summary of all parts; returns False if some are missing."""
    if not shard.is_whole:
        state = state_of(job.settings(), candidates)
        write_part(job.output, shard, state, rows)
        rows = read_parts(job.output, shard.count, state, [one.name for one in candidates])
        if rows is None:
            return False
    write_summary(job.output, rows)
    return True


def _inputs(args: argparse.Namespace, cfg: CfgNode) -> tuple[Inputs, list[ScanRow]]:
    """The inputs, and a row for the study if it cannot be fetched."""
    paths, failed = list(args.input), []
    if args.study is not None:
        from .pacs import fetch_study

        try:
            paths.append(str(fetch_study(args.dicomweb, args.study, args.series, args.output)))
        except (ValueError, OSError, ImportError) as error:
            failed.append(ScanRow(f"study {args.study}", error=one_line(error)))
    inputs = Inputs(
        tuple(paths),
        args.output,
        args.spacing,
        args.allow_gaps,
        cfg.INPUT.CT.NUM_SLICES,
        cfg.INPUT.CT.SLICE_INTERVAL,
    )
    return inputs, failed


def predict_all(
    job: Job, candidates: Sequence[ScanCandidate], num_processes: int
) -> tuple[list[ScanRow], str | None]:
    """The rows of all scans, and the reason if some have none.

    Raises:
        InputError: there are fewer GPUs, or a process died.
    """
    num_processes = max(1, min(num_processes, len(candidates)))
    if num_processes == 1:
        return predict_share(job, candidates, shows=True)
    prepare_processes(job.cfg, num_processes)
    with tempfile.TemporaryDirectory() as folder:
        try:
            launch(
                run_process,
                num_processes,
                dist_url="auto",
                args=(job, [candidate.name for candidate in candidates], Path(folder)),
                timeout=_TIMEOUT,
            )
        except Exception as error:  # of a process that died, with its traceback
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"a process ended early: {lines[-1]}; run the same command again"
            ) from error
        return gather_rows(candidates, Path(folder), num_processes)


if __name__ == "__main__":
    sys.exit(main())
