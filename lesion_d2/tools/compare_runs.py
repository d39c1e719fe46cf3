"""Print a table of several experiments, with mean and standard deviation over their runs (seeds).

python -m lesion_d2.tools.compare_runs --dataset phantom_test \\
    "RetinaNet=output/improved_retinanet/retinanet_[1-3]" \\
    "+ anchors=output/improved_retinanet/anchors_[1-3]"

An experiment is a name and a glob pattern of OUTPUT_DIRs. The numbers are those of each run's last
evaluation on the data set (froc.json), for all lesions or for one stratum. --ends adds the
end of the curves of all lesions: the largest sensitivity, and the false positives per image there.
--strata 4 has the strata as columns instead, at 4 false positives per image: types, diameters
and slice intervals in the order of Tao et al. (Table 2), if they have lesions.

With --volumes the numbers are those of an evaluation in 3-D (volumes.json): sensitivity at
false positives per volume, and AP. If it has several criteria (TEST.VOLUME_CRITERIA),
--criterion p3d@0.5 selects one; the first is the default.
"""

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from lesion_d2.evaluation.result_files import read_froc_file, read_volumes_file
from lesion_d2.tools.show_results import find_evaluations, metric_names
from lesion_d2.utils.errors import run_program

import numpy as np
from tabulate import tabulate

ALL_LESIONS = "all lesions"
ENDS = ("largest", "at")
# Columns after the sensitivities; a table has one of the last two.
MEANS = ("mean_sens", "AP", "AP10")
# Groups of strata, and types, in the order of Tao et al., Table 2.
GROUPS = ("froc_type", "froc_size", "froc_interval")
TYPES = ("lung", "mediastinum", "liver", "soft tissue", "pelvis", "abdomen", "kidney", "bone")


def read_runs(
    pattern: str, dataset: str, stratum: str = ALL_LESIONS, *, ends: bool = False
) -> list[dict]:
    """Read one line of the FROC table of every run that matches a pattern.

    Args:
        pattern: glob pattern of OUTPUT_DIRs.
        dataset: that the runs were evaluated on.
        stratum: label of the line.
        ends: add the end of the curve of all lesions as "largest" (percent) and "at" (false
            positives per image).

    Returns:
        ``rows`` entries of ``froc.json``, in the order of the folders' names.

    Raises:
        FileNotFoundError: no folder, or one without an evaluation on the data set.
        ValueError: a file is not an FROC table, or has no such line.
    """
    return [_read_run(file, stratum, ends) for file in find_tables(pattern, dataset)]


def read_volumes(pattern: str, dataset: str, criterion: str | None = None) -> list[dict]:
    """Read the numbers of the evaluation in 3-D of every run that matches a pattern.

    Args:
        pattern: glob pattern of OUTPUT_DIRs.
        dataset: of volumes, that the runs were evaluated on.
        criterion: such as "p3d@0.5"; None for the first of each run.

    Returns:
        For each run, in the order of the folders' names: "criterion", "rule" (how boxes and AP were
        computed), "lesions", "volumes", and sensitivities and "AP" (or "AP10") in percent; NaN for
        undefined values.

    Raises:
        FileNotFoundError: no folder, or one without an evaluation in 3-D on the data set.
        ValueError: a file is not from an evaluation in 3-D, or does not have the criterion.
    """
    files = [folder / "inference" / dataset / "volumes.json" for folder in _find_folders(pattern)]
    return [_read_volume_run(file, criterion) for file in files]


def _read_volume_run(file: Path, criterion: str | None) -> dict:
    content = read_volumes_file(file)
    criteria = {text: task for task, text in content["settings"]["criteria"].items()}
    results = {"volume": content["results"], **content["other_results"]}
    counts = {name: content[name] for name in ("lesions", "volumes")}
    criterion = criterion or next(iter(criteria))
    if criterion not in criteria:
        raise ValueError(f"{file}: found no {criterion}, expected one of {', '.join(criteria)}")
    numbers = results[criteria[criterion]]
    kept = [name for name in numbers if name.startswith("sens@") or name in MEANS]
    numbers = {name: np.nan if numbers[name] is None else numbers[name] for name in kept}
    return {"criterion": criterion, "rule": _rule_of(content["settings"]), **counts, **numbers}


def _rule_of(settings: dict) -> str:
    """How an evaluation measured boxes and, for volumes, its average precision."""
    sides = "sides of x2 - x1 + 1" if settings.get("inclusive") else "sides of x2 - x1"
    precision = settings.get("average_precision")
    return f"{sides}, AP {precision}" if precision else sides


def read_strata(pattern: str, dataset: str, rate: float) -> list[dict[str, tuple[int, float]]]:
    """Read the strata with lesions of every run that matches a pattern.

    Args:
        pattern: glob pattern of OUTPUT_DIRs.
        dataset: that the runs were evaluated on.
        rate: of false positives per image.

    Returns:
        For each run, in the order of the folders' names: label -> number of lesions, and
        sensitivity in percent at that rate. Types come first, then diameters, then intervals.

    Raises:
        FileNotFoundError: no folder, or one without an evaluation on the data set.
        ValueError: a file is not an FROC table, or has no such rate or no strata.
    """
    return [_read_strata(file, f"sens@{rate:g}") for file in find_tables(pattern, dataset)]


def find_tables(pattern: str, dataset: str) -> list[Path]:
    """The ``froc.json`` of every run that matches a pattern, in the order of the folders' names.

    Args:
        pattern: glob pattern of OUTPUT_DIRs.
        dataset: that the runs were evaluated on.

    Raises:
        FileNotFoundError: no folder, or one without an evaluation on the data set.
    """
    folders = _find_folders(pattern)
    return [find_evaluations(folder, dataset)[0] / "froc.json" for folder in folders]


def _find_folders(pattern: str) -> list[Path]:
    folders = [folder for folder in map(Path, sorted(glob.glob(pattern))) if folder.is_dir()]
    if not folders:
        raise FileNotFoundError(f"{pattern}: found no folder, expected the OUTPUT_DIRs of runs")
    return folders


def _read_strata(file: Path, metric: str) -> dict[str, tuple[int, float]]:
    rows = read_froc_file(file)["rows"]
    if metric not in rows[0]:
        names = ", ".join(name for name in metric_names(rows[0]) if name.startswith("sens@"))
        raise ValueError(f"{file}: found no {metric}, expected one of {names}")
    strata = [row for row in rows if row.get("group") in GROUPS and row["lesions"]]
    if not strata:
        raise ValueError(
            f"{file}: found no strata with lesions, expected types, sizes or intervals"
        )
    strata.sort(key=_place)  # stable: sizes and intervals are ascending already
    return {row["stratum"]: (row["lesions"], row.get(metric)) for row in strata}


def _place(row: dict) -> tuple[int, int]:
    types = TYPES.index(row["stratum"]) if row["stratum"] in TYPES else len(TYPES)
    return GROUPS.index(row["group"]), types


def _read_run(file: Path, stratum: str, ends: bool) -> dict:
    content = read_froc_file(file)
    rows = {row["stratum"]: row for row in content["rows"]}
    if stratum not in rows:
        raise ValueError(f"{file}: found no {stratum!r}, expected one of {', '.join(rows)}")
    row = rows[stratum] | {"rule": _rule_of(content.get("settings", {}))}
    if not ends:
        return row
    if "curve" not in content:
        raise ValueError(f"{file}: found no curve, expected one for --ends")
    sensitivity, rates = (content["curve"][name] for name in ("sensitivity", "fps_per_image"))
    end = (sensitivity[-1], rates[-1]) if rates else (0.0, 0.0)
    end = (np.nan if end[0] is None else 100 * end[0], end[1])
    return row | dict(zip(ENDS, end, strict=True))


def compare(experiments: dict[str, list[dict]]) -> str:
    """The table: one line per experiment, one column per rate of false positives, in percent.

    The standard deviation over runs (with n - 1) is left out for a single run.

    Args:
        experiments: name -> the runs' lines, see :func:`read_runs` and :func:`read_volumes`.

    Raises:
        ValueError: the runs were not evaluated on the same number of lesions, by the same
            criterion and rule, or at the same rates.
    """
    rules = {row.get("rule", "") for rows in experiments.values() for row in rows}
    if len(rules) > 1:
        found = " and ".join(sorted(rules))
        raise ValueError(f"found evaluations with {found}, expected the same in all")
    criteria = {row.get("criterion", "") for rows in experiments.values() for row in rows}
    if len(criteria) > 1:
        found = " and ".join(sorted(criteria))
        raise ValueError(f"found criteria {found}, expected the same in all (--criterion)")
    counts = {name: {row["lesions"] for row in rows} for name, rows in experiments.items()}
    if len(set.union(*counts.values())) > 1:
        found = ", ".join(f"{name}: {sorted(n)}" for name, n in counts.items())
        raise ValueError(f"found different numbers of lesions ({found}), expected one data set")
    columns = {_columns(row) for rows in experiments.values() for row in rows}
    if len(columns) > 1:
        found = " and ".join(", ".join(names) for names in sorted(columns))
        raise ValueError(f"found tables with {found}, expected the same rates in all")
    [metrics] = columns
    lines = []
    for name, rows in experiments.items():
        values = np.array([[row[metric] for metric in metrics] for row in rows], dtype=float)
        lines.append([name, len(rows), *map(mean_and_spread, values.T)])
    headers = ["", "runs", *(name.removeprefix("sens@") for name in metrics)]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def compare_strata(experiments: dict[str, list[dict[str, tuple[int, float]]]]) -> str:
    """The table: one line per experiment, one column per stratum, in percent; see :func:`compare`.

    Args:
        experiments: name -> the runs' strata, see :func:`read_strata`.

    Raises:
        ValueError: the runs were not evaluated on the same numbers of lesions.
    """
    counts = [
        (name, {label: number for label, (number, _) in run.items()})
        for name, runs in experiments.items()
        for run in runs
    ]
    first, expected = counts[0]
    for name, found in counts:
        if found != expected:
            raise ValueError(
                f"found different numbers of lesions ({first}: {_listed(expected)}; {name}: "
                f"{_listed(found)}), expected one data set"
            )
    lines = [["lesions", "", *expected.values()]]
    for name, runs in experiments.items():
        values = np.array([[value for _, value in run.values()] for run in runs], dtype=float)
        lines.append([name, len(runs), *map(mean_and_spread, values.T)])
    return tabulate(lines, ["", "runs", *expected], tablefmt="pipe", disable_numparse=True)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {label}" for label, number in counts.items())


def _columns(row: dict) -> tuple[str, ...]:
    return (*metric_names(row), *(name for name in (*MEANS[1:], *ENDS) if name in row))


def mean_and_spread(values: np.ndarray) -> str:
    """Mean and standard deviation (with n - 1) of the runs' values (n,); the value if n is 1."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def seeds_cell(values: Sequence[float], sign: str = "") -> str:
    """:func:`mean_and_spread` of a metric of several seeds, or "-" without values.

    Args:
        values: of each seed.
        sign: prefix of values that are not negative.
    """
    if not values:
        return "-"
    text = mean_and_spread(np.array(values))
    return text if text.startswith("-") else sign + text


def experiment(text: str) -> tuple[str, str]:
    """Read NAME=PATTERN from a command line."""
    name, sign, pattern = text.partition("=")
    if not (name and sign and pattern):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=PATTERN")
    return name, pattern


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.compare_runs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "experiments",
        nargs="+",
        type=experiment,
        metavar="NAME=PATTERN",
        help="name of an experiment, and glob pattern of the OUTPUT_DIRs of its runs",
    )
    parser.add_argument("--dataset", required=True, help="data set of the evaluations")
    parser.add_argument(
        "--stratum", default=ALL_LESIONS, help=f"line of the tables (default: {ALL_LESIONS})"
    )
    parser.add_argument("--ends", action="store_true", help="add the end of the curves")
    parser.add_argument(
        "--strata", type=float, metavar="RATE", help="strata as columns, at this rate"
    )
    parser.add_argument("--volumes", action="store_true", help="compare evaluations in 3-D")
    parser.add_argument(
        "--criterion", help="criterion of a hit in 3-D, such as p3d@0.5 (default: the first)"
    )
    args = parser.parse_args(argv)
    _check_options(parser, args)
    names = [name for name, _ in args.experiments]
    if len(set(names)) < len(names):
        parser.error(f"found experiments {', '.join(names)}, expected different names")
    report = _report_volumes if args.volumes else _report
    if args.strata is not None:
        report = _report_strata
    return run_program(lambda: print(report(args)))


def _check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.ends and args.stratum != ALL_LESIONS:
        parser.error("found --ends with --stratum, expected one: --ends is only for all lesions")
    if args.strata is not None and (args.ends or args.stratum != ALL_LESIONS):
        parser.error("found --strata with --stratum or --ends, expected --strata without them")
    if args.volumes and (args.ends or args.strata is not None or args.stratum != ALL_LESIONS):
        parser.error(
            "found --volumes with --stratum, --strata or --ends, expected --volumes without them"
        )
    if args.criterion and not args.volumes:
        parser.error("found --criterion without --volumes, expected both")


def _report(args: argparse.Namespace) -> str:
    runs = {
        name: read_runs(pattern, args.dataset, args.stratum, ends=args.ends)
        for name, pattern in args.experiments
    }
    table, lesions = compare(runs), next(iter(runs.values()))[0]["lesions"]
    title = f"Sensitivity in % at false positives per image, {args.dataset}"
    return f"{title}: {lesions} {args.stratum}\n\n{table}"


def _report_volumes(args: argparse.Namespace) -> str:
    runs = {
        name: read_volumes(pattern, args.dataset, args.criterion)
        for name, pattern in args.experiments
    }
    table, row = compare(runs), next(iter(runs.values()))[0]
    title = f"Sensitivity in % at false positives per volume and AP, {args.dataset}"
    counts = f"{row['lesions']} lesions in {row['volumes']} volumes"
    return f"{title}: {counts}, {row['criterion']}, {row['rule']}\n\n{table}"


def _report_strata(args: argparse.Namespace) -> str:
    runs = {
        name: read_strata(pattern, args.dataset, args.strata) for name, pattern in args.experiments
    }
    title = f"Sensitivity in % at {args.strata:g} false positives per image, {args.dataset}"
    return f"{title}\n\n{compare_strata(runs)}"


if __name__ == "__main__":
    sys.exit(main())
