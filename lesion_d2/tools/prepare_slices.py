"""Pack the PNG slices of a data set into files that are faster to read.

python -m lesion_d2.tools.prepare_slices datasets/DeepLesion

For each folder Images_png/<series> it writes Images_prepared/<series>.slices, lossless and with
checksums; DATASETS.PREPARED_SLICES True reads them instead of the PNG files, which must be kept.
Running it again after an interruption reuses finished series with unchanged PNG files. Parts
(--shard I/N) do not have to be merged.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.data.formats.problems import raise_problems
from lesion_d2.data.prepared.form import png_state, prepared_index, write_prepared
from lesion_d2.data.prepared.slices import PNG_FOLDER, PREPARED_FOLDER, prepared_file
from lesion_d2.scans.png import numbered_pngs
from lesion_d2.utils.errors import run_program
from lesion_d2.utils.files import one_line
from lesion_d2.utils.parallel import map_with_progress
from lesion_d2.utils.shards import WHOLE, Shard

from detectron2.utils.logger import setup_logger

from .common.arguments import add_shard, positive


@dataclass
class Summary:
    """Summary: prepared series and slices, their bytes and those of the PNG files, and series of
    this call."""

    series: int = 0
    slices: int = 0
    png_bytes: int = 0
    prepared_bytes: int = 0
    written: int = 0


def prepare_slices(
    root: str | os.PathLike, workers: int | None = None, shard: Shard = WHOLE
) -> Summary:
    """Write the prepared slices of all series; the same for any ``workers``.

    Args:
        root: the data set's folder, with ``Images_png``.
        workers: processes; all cores by default.
        shard: the part of the series of this call.

    Raises:
        FileNotFoundError: there is no ``Images_png``.
        ValueError: it has no series; or slices cannot be read, which are all reported at the end,
            after the other series.
        OSError: a file cannot be written, for instance on a full disk.
        BrokenProcessPool: a process was killed; finished series are kept.
    """
    images = Path(root) / PNG_FOLDER
    if not images.is_dir():
        raise FileNotFoundError(
            f"{images}: no such folder, expected a folder of PNG slices per series in it"
        )
    folders = sorted(entry.path for entry in os.scandir(images) if entry.is_dir())
    if not folders:
        raise ValueError(f"{images}: found no folder, expected one per series")
    summary, problems = Summary(), []
    part, bar = shard.of(folders), {"desc": "prepared slices", "unit": "series"}
    with map_with_progress(_prepare_series, part, workers, **bar) as results:
        for result in results:
            if isinstance(result, str):
                problems.append(result)
            else:
                for key, value in vars(result).items():
                    setattr(summary, key, getattr(summary, key) + value)
    raise_problems(images, sorted(problems))
    return summary


def _prepare_series(folder: str) -> Summary | str:
    """Prepare one series; returns the faults of its slices."""
    names = numbered_pngs(os.listdir(folder))
    if not names:
        return Summary()
    pngs = {name.removesuffix(".png"): os.path.join(folder, name) for name in names}
    file = prepared_file(folder)
    try:
        states = {name: png_state(png) for name, png in pngs.items()}
        is_current = _states(file) == states
        if not is_current:
            write_prepared(file, pngs)
    except (FileNotFoundError, ValueError) as error:
        return one_line(error)
    sizes = sum(size for size, _ in states.values()), os.path.getsize(file)
    return Summary(1, len(pngs), *sizes, int(not is_current))


def _states(file: str) -> dict[str, tuple[int, int]] | None:
    """The PNG files that a file was made from; None if it does not exist or is incomplete."""
    try:
        return {name: entry.png for name, entry in prepared_index(file).items()}
    except (FileNotFoundError, ValueError):
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool.

    Args:
        argv: its arguments; the command line's by default.

    Returns:
        The exit status: 0, 1 after an error, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.prepare_slices", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("root", help="the data set's folder, such as datasets/DeepLesion")
    parser.add_argument("--workers", type=positive, help="processes (default: all cores)")
    add_shard(parser.add_argument, "process part I of N (docs/clusters.md)")
    args = parser.parse_args(argv)
    setup_logger(name="lesion_d2")
    return run_program(
        lambda: _run(args), interrupted="interrupted: run the same command again to continue"
    )


def _run(args: argparse.Namespace) -> None:
    done = prepare_slices(args.root, args.workers, args.shard)
    share = done.prepared_bytes / max(done.png_bytes, 1)
    part = "" if args.shard.is_whole else f" (part {args.shard})"
    print(
        f"{Path(args.root) / PREPARED_FOLDER}{part}: {done.slices} slices of {done.series} series "
        f"({done.written} written now), {done.prepared_bytes / 1e6:.1f} MB, {share:.2f} times the "
        "PNG files'"
    )


if __name__ == "__main__":
    sys.exit(main())
