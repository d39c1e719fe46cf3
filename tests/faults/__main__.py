"""The whole campaign: malformed files of all kinds, then runs that are killed.

python -m tests.faults                            # 5,000 inputs and 500 kills
python -m tests.faults --inputs 500 --kills 0
python -m tests.faults --kinds PNG YAML --inputs 400 --kills 0

It prints a table of kinds and verdicts and what did not end well, writes both to OUTPUT, and ends
with status 1 where anything did not.
"""

import argparse
import datetime
import json
import logging
import os
import platform
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

# Before torch is imported: a forked process has one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("PYTORCH_JIT", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from lesion_d2.utils.files import atomic_write

import cv2
import torch
from tqdm import tqdm

from .campaign import as_markdown, bad, count, run_campaign
from .case import VERDICTS, Found
from .kills.campaign import as_table, run_kills
from .kills.jobs import preload
from .kills.trials import VERDICTS as ENDINGS
from .kills.trials import Bench

_PERIOD = 100  # findings between two writings of the files


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--inputs", type=int, default=5000, help="malformed files (default: 5000)")
    parser.add_argument("--kills", type=int, default=500, help="default: 500")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[], help="of files; all by default")
    parser.add_argument("--jobs", nargs="*", default=[], help="that are killed; all by default")
    parser.add_argument("--processes", type=int, default=1, help="kills at a time (1)")
    parser.add_argument("--output", type=Path, default=Path("output/faults"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the campaign; the exit status is 1 where something did not end well."""
    args = get_parser().parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    args.output.mkdir(parents=True, exist_ok=True)
    found: list[Found] = []
    endings: list[Found] = []
    start = time.perf_counter()
    if args.inputs:
        results = run_campaign(args.inputs, args.seed, args.kinds)
        for one in tqdm(results, total=args.inputs, desc="inputs", unit="input"):
            found.append(one)
            if len(found) % _PERIOD == 0:
                _write(args, found, endings, start)
    if args.kills:
        preload()
        with TemporaryDirectory(prefix="kills_") as folder, tqdm(desc="kills", unit="run") as bar:
            bench = Bench(Path(folder))
            for some in run_kills(bench, args.kills, args.seed, args.jobs, args.processes):
                endings += some
                bar.update(len(some))
                _write(args, found, endings, start)
    print(_write(args, found, endings, start))
    failed = [*bad(found), *(one for one in endings if one.verdict != ENDINGS[0])]
    for one in failed:
        print(f"{one.verdict}: {one.kind}: {one.case}: {one.text[:300]}")
    return 1 if failed else 0


def _cpu_minutes() -> float:
    """Of this process and those that it began, which have ended."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) / 60


def _write(args, found: list[Found], endings: list[Found], start: float) -> str:
    """Write ``faults.json`` and ``faults.md``; the latter's text."""
    parts = [
        f"Seed {args.seed}, {datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{time.perf_counter() - start:.0f} s: {len(found)} malformed files and "
        f"{sum(one.case.startswith('SIGKILL') for one in endings)} kills; processor time "
        f"{_cpu_minutes():.0f} min.\n"
    ]
    if found:
        parts.append(as_markdown(count(found), VERDICTS))
    if endings:
        parts.append(as_table(endings))
    text = "\n".join(parts)
    with atomic_write(args.output / "faults.md") as partial:
        partial.write_text(text)
    with atomic_write(args.output / "faults.json") as partial:
        content = {"seed": args.seed, "inputs": found, "endings": endings}
        partial.write_text(json.dumps(content, default=asdict, indent=1))
    return text


if __name__ == "__main__":
    sys.exit(main())
