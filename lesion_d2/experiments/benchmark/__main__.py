"""Benchmark this project on this machine: times, ratios and memory.

python -m lesion_d2.experiments.benchmark [--only PART ... | --peers] [--threads N]

Writes small phantom data sets to a temporary folder, measures, and prints one table, each row when
it is measured. Times are the minimum over repeats unless noted otherwise; ratios of models are the
median over pairs of consecutive calls. Single-core work (slices, masks, FROC, evaluation, CSV,
voxels, patches, sweeps over volumes, anchors, clustering, linking, boxes in 3-D, and on a CPU whole
volumes) is measured in CPU time, which other programs on the machine affect least. The exit status
is 1 if a limit is exceeded. Models use configs/ of the project's checkout.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from lesion_d2.tools.common.checkout import find_in_checkout
from lesion_d2.utils.errors import run_program

import cv2
import torch
from tqdm import tqdm

from .boxes.anchors import measure_anchors
from .boxes.boxes3d import measure_boxes3d
from .boxes.clustering import measure_clustering
from .boxes.evaluation import measure_evaluation
from .boxes.froc import measure_froc
from .boxes.linking import measure_linking
from .machine import machine_line
from .memory import ignore_meshgrid_warning
from .models.bai import measure_bai
from .models.clipping import measure_clipping
from .models.monai import measure_monai
from .models.peers import measure_peers
from .models.retinanet import measure_retina_unet, measure_zlocha
from .models.scans import measure_scans
from .models.tao import measure_tao
from .models.uldor import measure_uldor
from .models.volumes import measure_volumes
from .samples.patches import measure_patches
from .samples.slices import measure_csv, measure_masks, measure_slices
from .samples.start import measure_start
from .samples.sweeps import measure_sweeps
from .samples.voxels import measure_voxels
from .timing import Row

PARTS = (
    "slices",
    "masks",
    "froc",
    "evaluation",
    "csv",
    "start",
    "voxels",
    "patches",
    "sweeps",
    "anchors",
    "clustering",
    "linking",
    "boxes3d",
    "clipping",
    "model",
    "zlocha",
    "uldor",
    "tao",
    "bai",
    "monai",
    "volumes",
    "scans",
)
# Parts of --peers: torchvision's and Detectron2's RetinaNet, MONAI's detector and operations,
# and the published toolkit's formula for clustering boxes.
_PEERS = ("peers", "monai", "clustering", "boxes3d")
# Parts that need files of configs/, which only a checkout has.
_WITH_CONFIGS = (
    "start",
    "clipping",
    "model",
    "zlocha",
    "uldor",
    "tao",
    "bai",
    "volumes",
    "scans",
    "peers",
)
_HEADERS = ("", "measured", "limit", "ok", "note")
_WIDTHS = (70, 12, 14, 3, 0)  # of the columns: rows are printed before the next ones are known
# Parts that choose their number of repeats on a GPU themselves.
_OWN_REPEATS = ("volumes", "scans")


def measure(parts: Sequence[str], folder: Path) -> Iterator[Row]:
    """Yield the rows of the chosen parts when they are measured."""
    work = {
        "slices": partial(measure_slices, folder),
        "masks": partial(measure_masks, folder),
        "froc": measure_froc,
        "evaluation": measure_evaluation,
        "csv": partial(measure_csv, folder),
        "start": partial(measure_start, folder / "start"),
        "voxels": partial(measure_voxels, folder),
        "patches": partial(measure_patches, folder),
        "sweeps": partial(measure_sweeps, folder),
        "anchors": measure_anchors,
        "clustering": measure_clustering,
        "linking": measure_linking,
        "boxes3d": measure_boxes3d,
    }
    for part, measure_part in work.items():
        if part in parts:
            yield from measure_part()
    models = {
        "clipping": measure_clipping,
        "model": measure_retina_unet,
        "zlocha": measure_zlocha,
        "uldor": partial(measure_uldor, folder=folder),
        "tao": partial(measure_tao, folder=folder),
        "bai": measure_bai,
        "monai": measure_monai,
        "volumes": partial(measure_volumes, folder=folder),
        "scans": partial(measure_scans, folder=folder),
        "peers": measure_peers,
    }
    for part, measure_model in models.items():
        if part in parts:
            yield from measure_model("cpu")
        if part in parts and torch.cuda.is_available():
            options = {} if part in _OWN_REPEATS else {"repeats": 20}
            yield from measure_model("cuda", **options)


def table_line(cells: Sequence[str]) -> str:
    """One line of the table; a cell that is wider than its column shifts the next ones."""
    padded = (cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    return "  ".join(padded).rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print each row, and return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="lesion_d2.experiments.benchmark", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parts.add_argument(
        "--peers",
        action="store_const",
        const=_PEERS,
        dest="only",
        help="only comparisons with other libraries",
    )
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    return run_program(lambda: _run(args.only))


def _run(parts: Sequence[str]) -> int:
    if not set(parts).isdisjoint(_WITH_CONFIGS):
        find_in_checkout("configs")
    cv2.setNumThreads(1)
    ignore_meshgrid_warning()
    print(machine_line(), flush=True)
    print(table_line(_HEADERS), flush=True)
    exceeded = []
    with tempfile.TemporaryDirectory() as folder:
        for row in tqdm(measure(parts, Path(folder)), desc="benchmark", unit="row"):
            with tqdm.external_write_mode():  # clears the bar meanwhile
                print(table_line(row.cells()), flush=True)
            exceeded += [] if row.ok else [row.name]
    print("; ".join(["limits exceeded", *exceeded]) if exceeded else "no limit exceeded")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
