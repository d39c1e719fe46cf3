"""Test this project and measure its models on a machine with a GPU, within a time limit.

python -m lesion_d2.experiments.gpu_check [--seconds 460] [--output FILE]   # make gpu-check
python -m lesion_d2.experiments.gpu_check --device cpu --tiny               # tests the check itself

First the tests of tests/gpu, then a training step of every kind of model at a small size, then rows
of models at full width: images (or patches of volumes) per second in training, milliseconds each at
inference, memory, and the share of time in which the GPU is idle. Rows are printed when they are
measured. Rows that exceed the time limit are listed as skipped. At the end, one JSON file and one
table are written. The exit status is 1 if a test, a step or a row failed. Results of an earlier
check are replaced.
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lesion_d2.tools.common.arguments import positive
from lesion_d2.tools.common.checkout import find_in_checkout
from lesion_d2.utils.errors import InputError, run_program

import torch

from ..benchmark.machine import machine_line
from .jobs import FIRST_GUESS, Job, plan, steps
from .report import Outcome, header, line, table, write_report
from .running_tests import run_tests
from .worker import PREPARE, Options, Worker

OUTPUT = "output/gpu_check.json"
_SECONDS = 460  # eight minutes together with imports and the end
_OF_TESTS, _OF_STEPS = 0.35, 0.25  # of the remaining time, at most
_END = 4.0  # seconds for the end
# A job that hangs is stopped after a multiple of its kind's time, or this share of the time left.
_PATIENCE, _SHARE = 5.0, 1 / 3
_TIMED = {False: 1.2, True: 0.05}  # seconds of calls for each number, and with --tiny


def main(argv: Sequence[str] | None = None) -> int:
    """Test and measure; returns 1 if something failed."""
    parser = argparse.ArgumentParser(prog="lesion_d2.experiments.gpu_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="what to check (default: cuda)")
    add("--seconds", type=positive, default=_SECONDS, help=f"time limit (default: {_SECONDS})")
    add(
        "--output",
        type=Path,
        default=Path(OUTPUT),
        metavar="FILE",
        help=f"JSON file to write (default: {OUTPUT})",
    )
    add("--tiny", action="store_true", help="narrow models, small images and few calls")
    add(
        "--rows",
        nargs="+",
        metavar="CONFIG",
        help="only rows of these configs, such as uldor/uldor",
    )
    add("--no-tests", action="store_true", help="only rows, without tests and small configs")
    args = parser.parse_args(argv)
    return run_program(lambda: check(args), "gpu_check")


def check(args: argparse.Namespace) -> int:
    """Run tests, steps and rows.

    Raises:
        InputError: there is no GPU, or no config with a name.
    """
    start = time.perf_counter()
    find_in_checkout("tests")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device: found 'cuda' without a GPU, expected a GPU, or --device cpu --tiny"
        )
    jobs = _chosen(plan(), args.rows)
    print(machine_line(), flush=True)
    deadline = start + args.seconds - _END
    with tempfile.TemporaryDirectory() as folder:
        options = Options(args.device, Path(folder), args.tiny, _TIMED[args.tiny])
        worker = Worker(options)
        try:
            tests, outcomes = _run(worker, options, jobs, deadline, with_tests=not args.no_tests)
        finally:
            worker.stop()
    head = {
        "machine": machine_line(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": args.device,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tiny": args.tiny,
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_allowed": args.seconds,
    }
    write_report(args.output, head, tests, outcomes)
    print(f"\n{table(outcomes)}\n")
    failed = [each for each in outcomes if each.error]
    skipped = sum(bool(each.skipped) for each in outcomes)
    print(
        f"{args.output}: {len(outcomes) - len(failed) - skipped} rows, {len(failed)} failed, "
        f"{skipped} skipped; {_summary(tests)}; {head['seconds']:.0f} s"
    )
    return int(bool(failed) or not tests.get("ok", True))


def _chosen(jobs: list[Job], names: Sequence[str] | None) -> list[Job]:
    known = {job.config for job in jobs}
    for name in names or ():
        if name not in known:
            raise InputError(f"--rows: found {name!r}, expected one of {', '.join(sorted(known))}")
    return [job for job in jobs if names is None or job.config in names]


def _run(
    worker: Worker, options: Options, jobs: list[Job], deadline: float, *, with_tests: bool
) -> tuple[dict, list[Outcome]]:
    """Tests, steps and rows; data is written while the tests run."""
    worker.submit(PREPARE)
    tests = {}
    if with_tests:
        left = _OF_TESTS * (deadline - time.perf_counter())
        tests = run_tests(options.device, options.folder, left)
        print(_summary(tests), *tests["output"], sep="\n", flush=True)
    prepared = worker.wait(deadline - time.perf_counter())
    if "error" in prepared:
        print(f"data: {prepared['error']}", flush=True)
    print(header(), flush=True)
    left = deadline - time.perf_counter()
    outcomes = []
    parts = [(steps(), deadline - (1 - _OF_STEPS) * left)] if with_tests else []
    for part, end in [*parts, (jobs, deadline)]:
        for outcome in do_jobs(worker, part, end):
            outcomes.append(outcome)
            if not outcome.skipped:  # the table at the end has all
                print(line(outcome.cells()), flush=True)
    return tests, outcomes


def do_jobs(worker: Worker, jobs: Iterable[Job], deadline: float) -> Iterator[Outcome]:
    """Run jobs within the time limit.

    A job that would exceed it, estimated from others of its kind, is skipped; shorter ones may fit.

    Args:
        worker: runs them.
        jobs: in their order.
        deadline: of ``time.perf_counter``; a job that still runs then, or hangs, is stopped.
    """
    took: dict[str, float] = {}
    for job in jobs:
        left = deadline - time.perf_counter()
        expected = took.get(job.cost_kind, FIRST_GUESS[job.cost_kind])
        if left < expected:
            yield Outcome(job, skipped=f"{max(0.0, left):.0f} s left, expected {expected:.0f}")
            continue
        begin = time.perf_counter()
        worker.submit(job)
        allowed = max(_PATIENCE * expected, _SHARE * left)
        found = worker.wait(min(left, allowed))
        seconds = time.perf_counter() - begin
        if "error" in found and left <= allowed and seconds >= left:
            yield Outcome(job, skipped=f"not finished in the {left:.0f} s that were left")
            continue
        if "error" not in found:
            took[job.cost_kind] = max(seconds, took.get(job.cost_kind, 0.0))
        yield Outcome(job, found.get("numbers", {}), seconds, found.get("error", ""))


def _summary(tests: dict) -> str:
    if not tests:
        return "no tests"
    text = f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped"
    return f"{text}, {tests['error']}" if tests["error"] else text


if __name__ == "__main__":
    sys.exit(main())
