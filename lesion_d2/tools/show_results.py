"""Print the FROC table of a run and the paths of its files.

python -m lesion_d2.tools.show_results OUTPUT_DIR [--dataset phantom_test]

The FROC table is that of the run's last evaluation on the data set (froc.json); without
--dataset, of every data set that the run was evaluated on.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from lesion_d2.engine import TrainingCurvesHook
from lesion_d2.engine.checkpoint_files import ENDINGS
from lesion_d2.evaluation.result_files import read_froc_file
from lesion_d2.utils.errors import run_program

from tabulate import tabulate

# The best by validation first, because it is the one to use.
CHECKPOINTS = ("model_best", "model_final")


def find_evaluations(output_dir: Path, dataset: str | None = None) -> list[Path]:
    """Folders of a run's evaluations.

    Args:
        output_dir: OUTPUT_DIR of the run.
        dataset: only the evaluation on this data set.

    Raises:
        FileNotFoundError: no such run, or it was not evaluated (on this data set).
    """
    if not output_dir.is_dir():
        raise FileNotFoundError(f"{output_dir}: no such folder, expected the OUTPUT_DIR of a run")
    folders = sorted(file.parent for file in output_dir.glob("inference/*/froc.json"))
    chosen = [folder for folder in folders if dataset in (None, folder.name)]
    if not chosen:
        found = ", ".join(folder.name for folder in folders) or "none"
        wanted = f"one on {dataset}" if dataset else "inference/<data set>/froc.json"
        raise FileNotFoundError(f"{output_dir}: found evaluations: {found}; expected {wanted}")
    return chosen


def metric_names(row: dict) -> list[str]:
    """The names of the sensitivities in a line of a ``froc.json``, without their intervals."""
    names = [name for name in row if name.startswith("sens@") or name == "mean_sens"]
    return [name for name in names if not name.endswith(("_low", "_high"))]


def froc_table(content: dict) -> str:
    """The table of a ``froc.json``: sensitivities in percent, one line per stratum.

    The first line is for all lesions, followed by two lines with its 95 % interval if there is one.
    """
    rows = content["rows"]
    metrics = metric_names(rows[0])
    lines = []
    for i, row in enumerate(rows):
        counts = [row.get("stratum", ""), row.get("lesions"), row.get("images")]
        lines.append(counts + [row.get(name) for name in metrics])
        for label, suffix in (("95 % from", "_low"), ("95 % to", "_high")):
            if i == 0 and f"{metrics[0]}{suffix}" in row:
                lines.append([f"  {label}", None, None, *(row[name + suffix] for name in metrics)])
    headers = ["sensitivity in %", "lesions", "images", *metrics]
    return tabulate(lines, headers, tablefmt="simple", floatfmt=".1f", missingval="-")


def describe(folder: Path) -> str:
    """The FROC table of an evaluation and the paths of its curve and pictures."""
    content = read_froc_file(folder / "froc.json")
    pictures = sorted((folder / "pictures").glob("*.png"))
    lines = [f"FROC on {content['dataset']}, sensitivity at false positives per image", ""]
    lines += [froc_table(content), "", f"curve       {_path(folder / 'froc.png')}"]
    sheet = folder / "pictures" / "contact_sheet.png"
    lines.append(f"pictures    {_path(sheet)}")
    if pictures:
        lines.append(f"            {folder / 'pictures'}/ ({len(pictures)} files)")
    return "\n".join(lines)


def find_checkpoint(output_dir: Path) -> str:
    """The run's best checkpoint, or its final one, or the last one written, as text."""
    for name, ending in product(CHECKPOINTS, ENDINGS):
        if (output_dir / (name + ending)).is_file():
            return str(output_dir / (name + ending))
    last = sorted(file for ending in ENDINGS for file in output_dir.glob(f"model_*{ending}"))
    return str(last[-1]) if last else f"{output_dir}: no checkpoint"


def _path(file: Path) -> str:
    return str(file) if file.is_file() else f"{file} (not written)"


def main(argv: Sequence[str] | None = None) -> int:
    """Print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.show_results", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument("--dataset", help="only the evaluation on this data set")
    args = parser.parse_args(argv)
    return run_program(lambda: _show(args.output_dir, args.dataset))


def _show(output_dir: Path, dataset: str | None) -> None:
    blocks = [describe(f) for f in find_evaluations(output_dir, dataset)]
    print("\n\n".join(blocks))
    curves = output_dir / TrainingCurvesHook.FILE
    if curves.is_file():
        print(f"training    {curves}")
    print(f"checkpoint  {find_checkpoint(output_dir)}")


if __name__ == "__main__":
    sys.exit(main())
