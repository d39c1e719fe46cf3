"""Benchmark of the start of a training at DeepLesion's size, until the first step."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ..configs import CONFIGS
from ..inputs import write_rows
from ..timing import Row
from .slices import NUM_ROWS

# Imports that every training with Detectron2 needs.
_BARE = (
    "import torch, torchvision, time, json; "
    "print(json.dumps({'seconds': time.process_time(), 'mebibytes': 0}))"
)
_BEFORE = "10.0 s, 3.4 x and 911 MiB before (2026-11-30)"


def measure_start(folder: Path, num_rows: int = NUM_ROWS) -> Iterator[Row]:
    """CPU time and memory until the first step, compared with importing torch only.

    In separate processes, without loader workers.
    """
    folder.mkdir(exist_ok=True)
    write_rows(folder / "DeepLesion", num_rows)
    bare = _run("-c", _BARE, folder=folder)["seconds"]
    whole = _run("-m", f"{__package__}.first_step", os.fspath(folder / "output"), folder=folder)
    seconds, note = whole["seconds"], f"{whole['mebibytes']:.0f} MiB; {_BEFORE}"
    yield Row(f"start at {num_rows:,} rows until the first step", seconds, "s", None, note)
    note = f"{bare:.2f} s"
    yield Row("start / imports of torch and torchvision", seconds / bare, "x", 2.5, note)


def _run(*arguments: str, folder: Path) -> dict[str, float]:
    path = os.pathsep.join([os.fspath(CONFIGS.parent), os.environ.get("PYTHONPATH", "")])
    environment = {"DETECTRON2_DATASETS": os.fspath(folder), "PYTHONPATH": path}
    ran = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])
