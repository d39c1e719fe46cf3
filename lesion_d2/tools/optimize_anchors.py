"""Optimize anchors for the boxes of a data set (Zlocha et al., section 2.1).

python -m lesion_d2.tools.optimize_anchors --dataset deeplesion_val --output anchors.yaml \\
    --config-file configs/improved_retinanet/retinanet.yaml
python -m lesion_d2.tools.optimize_anchors --boxes boxes.csv --objective mean

With --config-file, anchors are also placed on the grids of all levels like in the detector, and the
shares of boxes without a positive anchor and with only negative anchors are printed. The latter are
learned as background without low-quality matches (MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES False).

Boxes are resized like images at inference, by the given or the default config, whose anchors are
those "before". Prints how well the boxes are covered before and after, and the optimized anchors as
KEY VALUE pairs for train_net.py. With --output, also writes them as a YAML file to list in
_BASE_: ["config.yaml", "anchors.yaml"], and draws both sets of anchors.

A CSV of boxes has the columns x1, y1, x2, y2, in pixels of images of --image-size, or of the image
sizes in its columns height and width.

Boxes are resized with whole slices. A config that crops borders is refused if sizes then depend on
the crop (INPUT.CT.MAX_SIZE, or IMAGE_SIZE without PIXEL_SPACING); INPUT.CT.CROP_TO_BODY False as
KEY VALUE gives the sizes on whole slices.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.engine import load_config
from lesion_d2.modeling.anchors import (
    MATCH_IOU,
    OBJECTIVES,
    AnchorSearch,
    anchor_shapes,
    best_anchor_iou,
    best_grid_iou,
    optimize_anchors,
    unmatched_share,
)
from lesion_d2.tools.common.arguments import config_options, seed
from lesion_d2.tools.common.box_shapes import ResizedBoxes, csv_boxes, dataset_boxes
from lesion_d2.utils.errors import run_program
from lesion_d2.utils.figures import OKABE_ITO, figure_written
from lesion_d2.utils.files import atomic_write

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from tabulate import tabulate
from tqdm import tqdm

_COLORS = (OKABE_ITO["vermilion"], OKABE_ITO["blue"])  # before and after
# Detectron2's configs/Base-RetinaNet.yaml.
RETINANET_ANCHORS = anchor_shapes(
    (32, 64, 128, 256, 512), (1, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1, 2)
)
SIZES_KEY = "MODEL.ANCHOR_GENERATOR.SIZES"
RATIOS_KEY = "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
FRAGMENT_NOTES = (
    "Anchors found by lesion_d2.tools.optimize_anchors (Zlocha et al., section 2.1); for a config",
    'that begins with _BASE_: ["another_config.yaml", "this_file.yaml"]: the last file counts.',
)


class Fit(NamedTuple):
    """A set of anchors, (A, 2) widths and heights, and the best IoU of each box, (N,)."""

    name: str
    anchors: np.ndarray
    best_iou: np.ndarray


def current_anchors(cfg: CfgNode, config_file: str) -> tuple[str, np.ndarray]:
    """The anchors of a config, and their name in the tables.

    Without a config file and options that set anchors, these are the anchors of Detectron2's
    RetinaNet configs, because the defaults of its config are not used by any detector.

    Args:
        cfg: the config.
        config_file: its file, or "".

    Returns:
        the name, and (A, 2) widths and heights in pixels.

    Raises:
        ValueError: sizes and ratios of the config have different numbers of levels.
    """
    generator = cfg.MODEL.ANCHOR_GENERATOR
    if not config_file and generator == get_cfg().MODEL.ANCHOR_GENERATOR:
        return "Detectron2's RetinaNet", RETINANET_ANCHORS
    anchors = built_anchors(generator.SIZES, generator.ASPECT_RATIOS)
    return os.path.basename(config_file) or "KEY VALUE", anchors


def built_anchors(sizes: Sequence, aspect_ratios: Sequence) -> np.ndarray:
    """Widths and heights (A, 2) of all anchors, see :func:`built_levels`."""
    return np.concatenate(built_levels(sizes, aspect_ratios))


def built_levels(sizes: Sequence, aspect_ratios: Sequence, number: int = 1) -> list[np.ndarray]:
    """Widths and heights (A, 2) per level, as Detectron2 builds them from two config values.

    Args:
        sizes: MODEL.ANCHOR_GENERATOR.SIZES: one list per level, or one for all.
        aspect_ratios: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS, likewise.
        number: of levels, if both are for all.

    Raises:
        ValueError: their numbers of levels differ.
    """
    levels = {"strides": [1] * max(len(sizes), len(aspect_ratios), number)}
    try:
        generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=aspect_ratios, **levels)
    except AssertionError as error:
        raise ValueError(f"MODEL.ANCHOR_GENERATOR: {error}") from None
    cells = [cell.double().numpy() for cell in generator.cell_anchors]
    return [cell[:, 2:] - cell[:, :2] for cell in cells]


def _detector_options(cfg: CfgNode) -> tuple[str, CfgNode]:
    """The config node of the head that uses anchors, and its name."""
    name = "RETINANET" if "Retina" in cfg.MODEL.META_ARCHITECTURE else "RPN"
    return name, cfg.MODEL[name]


def grid_table(
    cfg: CfgNode, boxes: ResizedBoxes, fits: dict[str, tuple[Sequence, Sequence]]
) -> str:
    """How well anchors on the detector's grids cover the boxes, one line per set.

    Args:
        cfg: of the detector.
        boxes: in pixels of its input.
        fits: name to SIZES and ASPECT_RATIOS of each set.

    Returns:
        The table, or "" if the levels are not those of a pyramid (p2, p3, ...), with known strides.
    """
    _, options = _detector_options(cfg)
    levels = [re.fullmatch(r"p(\d+)", level) for level in options.IN_FEATURES]
    if not all(levels):
        return ""
    strides = [2 ** int(level[1]) for level in levels]
    negative, *_, positive = options.IOU_THRESHOLDS
    offset = cfg.MODEL.ANCHOR_GENERATOR.OFFSET
    rows = []
    for fit, values in fits.items():
        anchors = built_levels(*values, number=len(strides))
        iou = best_grid_iou(boxes.boxes, boxes.image_sizes, anchors, strides, offset=offset)
        rows.append((fit, iou.mean(), *(100 * (iou < x).mean() for x in (positive, negative))))
    title = f"on {' '.join(options.IN_FEATURES)}, OFFSET {offset:g}"
    headers = [title, "mean best IoU", f"no positive: IoU < {positive:g} (%)"]
    headers.append(f"only negatives: IoU < {negative:g} (%)")
    return tabulate(rows, headers, tablefmt="simple", floatfmt=("", ".4f", ".2f", ".2f"))


def check_levels(cfg: CfgNode, sizes: Sequence[float]) -> None:
    """Raise a ValueError if the numbers of levels and of sizes differ."""
    name, options = _detector_options(cfg)
    levels = options.IN_FEATURES
    if len(levels) != len(sizes):
        raise ValueError(
            f"--sizes: found {len(sizes)}, expected {len(levels)}, one for each level of the "
            f"config's MODEL.{name}.IN_FEATURES ({', '.join(levels)})"
        )


def search(args: argparse.Namespace, wh: np.ndarray) -> AnchorSearch:
    """Run :func:`optimize_anchors` under a progress bar."""
    with tqdm(desc="search", unit=" generations", disable=None) as bar:

        def on_generation(loss: float) -> None:
            """Move the bar."""
            bar.set_postfix(loss=f"{loss:.6f}", refresh=False)
            bar.update()

        return optimize_anchors(
            wh,
            sizes=args.sizes,
            num_scales=args.num_scales,
            num_ratio_pairs=args.num_ratio_pairs,
            objective=args.objective,
            scale_bounds=args.scale_bounds,
            ratio_bounds=args.ratio_bounds,
            seed=args.seed,
            on_generation=on_generation,
        )


def config_values(found: AnchorSearch) -> dict[str, list[list[float]]]:
    """The config keys of the optimized anchors: one list of sizes per level, one list of ratios.

    Six digits, the precision of Detectron2's float32 anchors.
    """
    sizes = [[float(f"{size:.6g}") for size in level] for level in found.level_sizes]
    return {SIZES_KEY: sizes, RATIOS_KEY: [[float(f"{ratio:.6g}") for ratio in found.ratios]]}


def fragment(values: dict[str, list[list[float]]], notes: Sequence[str]) -> str:
    """The YAML text that sets the anchors, after the notes as comments."""
    lines = [f"# {note}" for note in notes]
    lines += ["MODEL:", "  ANCHOR_GENERATOR:", "    SIZES:"]
    lines += [f"      - {level}" for level in values[SIZES_KEY]]
    return "\n".join([*lines, f"    ASPECT_RATIOS: {values[RATIOS_KEY]}\n"])


def describe_search(args: argparse.Namespace, cfg: CfgNode, found: AnchorSearch) -> list[str]:
    """Options and results of the search, in lines."""
    ct = cfg.INPUT.CT
    key = "PIXEL_SPACING" if ct.PIXEL_SPACING else "IMAGE_SIZE"
    resize = f"INPUT.CT.{key} {ct[key]:g}" + (f", MAX_SIZE {ct.MAX_SIZE}" if ct.MAX_SIZE else "")
    ratio_bounds = " ".join(_listed(pair, "..") for pair in args.ratio_bounds)
    return [
        f"{len(found.best_iou)} boxes of {args.dataset or args.boxes}, at {resize}",
        f"objective {args.objective}, seed {args.seed}, {found.generations} generations",
        f"sizes {_listed(found.sizes)}, scales in {_listed(args.scale_bounds, '..')}, "
        f"{args.num_ratio_pairs} ratio pairs in {ratio_bounds}",
        f"found: scales {_listed(found.scales)}, ratios {_listed(found.ratios)}",
    ]


def fit_table(fits: Sequence[Fit]) -> str:
    """How well each set of anchors covers the boxes, one line per set."""
    rows = [
        (fit.name, len(fit.anchors), fit.best_iou.mean(), 100 * unmatched_share(fit.best_iou))
        for fit in fits
    ]
    headers = ["", "anchors", "mean best IoU", f"IoU < {MATCH_IOU} (%)"]
    return tabulate(rows, headers, tablefmt="simple", floatfmt=("", "", ".4f", ".2f"))


def _listed(values: Sequence[float], separator: str = " ") -> str:
    return separator.join(f"{value:.4g}" for value in values)


def draw_fits(wh: np.ndarray, fits: Sequence[Fit], file: str | os.PathLike) -> None:
    """Draw the boxes' sizes with the anchors, and the histogram of the best IoU, of each fit.

    Args:
        wh: (N, 2) widths and heights of the boxes, pixels.
        fits: before and after.
        file: PNG to write, and a PDF beside it: see :func:`lesion_d2.utils.figures.figure_written`.
    """
    with figure_written(file, (9, 5)) as figure:
        scatter, histogram = figure.subplots(1, 2)
        _draw_shapes(scatter, wh, fits)
        bins = np.linspace(0, 1, 51)
        for fit, color in zip(fits, _COLORS, strict=True):
            share = 100 * np.histogram(fit.best_iou, bins)[0] / len(wh)
            label = f"{fit.name}: mean {fit.best_iou.mean():.3f}"
            histogram.stairs(share, bins, fill=True, alpha=0.5, color=color, label=label)
        histogram.axvline(MATCH_IOU, color="black", lw=1, ls="--", label=f"IoU {MATCH_IOU}")
        histogram.set(xlim=(0, 1), xlabel="IoU with the best centered anchor", ylabel="Boxes (%)")
        for axes in (scatter, histogram):
            axes.set_box_aspect(1)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _draw_shapes(axes, wh: np.ndarray, fits: Sequence[Fit]) -> None:
    label = f"{len(wh)} boxes"
    axes.scatter(*wh.T, s=6, color="0.6", alpha=0.5, lw=0, rasterized=True, label=label)
    for fit, marker, color in zip(fits, "x+", _COLORS, strict=True):
        anchors = np.unique(fit.anchors, axis=0)
        label = f"{fit.name}: {len(anchors)} anchors"
        axes.scatter(*anchors.T, s=40, marker=marker, color=color, lw=1.5, label=label)
    values = np.concatenate([wh, *(fit.anchors for fit in fits)])
    limits = values.min() / 1.2, values.max() * 1.2
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    ticks = [tick for tick in 2.0 ** np.arange(-4, 16) if limits[0] <= tick <= limits[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set(xlabel="Width (px)", ylabel="Height (px)")


def run(args: argparse.Namespace) -> None:
    """Search, print, and write the requested files."""
    output, picture = _output_files(args)
    cfg = load_config(args)
    if args.config_file:
        check_levels(cfg, args.sizes)
    name, anchors = current_anchors(cfg, args.config_file)
    if args.dataset:
        allow_missing = args.allow_missing or cfg.DATASETS.ALLOW_MISSING
        boxes = dataset_boxes(args.dataset, cfg, allow_missing=allow_missing)
    else:
        boxes = csv_boxes(args.boxes, cfg, image_size=args.image_size)
    wh = boxes.wh
    found = search(args, wh)
    values = config_values(found)
    before = Fit(f"before ({name})", anchors, best_anchor_iou(wh, anchors))
    anchors = built_anchors(*values.values())  # rounded, as they are written
    after = Fit("after", anchors, best_anchor_iou(wh, anchors))
    lines, table = describe_search(args, cfg, found), fit_table([before, after])
    pairs = " ".join(f"{key} {shlex.quote(str(value))}" for key, value in values.items())
    parts = ["\n".join(lines), table]
    if args.config_file:
        generator = cfg.MODEL.ANCHOR_GENERATOR
        sets = {before.name: (generator.SIZES, generator.ASPECT_RATIOS)}
        parts.append(grid_table(cfg, boxes, {**sets, after.name: tuple(values.values())}))
    parts.append(f"For train_net.py's command line:\n{pairs}")
    print("\n\n".join(filter(None, parts)))
    if output:
        with atomic_write(output) as partial:
            partial.write_text(fragment(values, [*FRAGMENT_NOTES, *lines, *table.splitlines()]))
        print(f"\nfragment  {output}")
    if picture:
        draw_fits(wh, [before, after], picture)
        print(f"picture   {picture}")


def _output_files(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """The paths of the YAML file and of the picture; creates their folders."""
    output = Path(args.output) if args.output else None
    if output and output.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--output: found {args.output}, expected the name of a .yaml file")
    if output and args.config_file and output.resolve() == Path(args.config_file).resolve():
        raise ValueError(f"--output: found {args.output}, expected a file other than --config-file")
    picture = Path(args.picture) if args.picture else output and output.with_suffix(".png")
    if picture and picture.suffix != ".png":
        raise ValueError(f"--picture: found {picture}, expected the name of a .png file")
    for file in (output, picture):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    return output, picture


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.optimize_anchors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    boxes = parser.add_mutually_exclusive_group(required=True)
    boxes.add_argument("--dataset", help="name of a registered data set, such as deeplesion_val")
    boxes.add_argument("--boxes", metavar="FILE", help="a CSV with the columns x1, y1, x2, y2")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out images whose file is missing"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="image size for --boxes without columns height and width (default: 512 512)",
    )
    parser.add_argument(
        "--config-file", default="", help="config with the image size and the current anchors"
    )
    _add_search_options(parser)
    parser.add_argument("--output", help="YAML file to write (default: none)")
    parser.add_argument("--picture", help="PNG to draw (default: beside the YAML file)")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config options at the end of the line (after --, if they follow --sizes)",
    )
    return parser


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        type=float,
        nargs="+",
        default=[32.0, 64.0, 128.0, 256.0, 512.0],
        metavar="PIXELS",
        help="anchor size of each pyramid level (default: 32 64 128 256 512)",
    )
    parser.add_argument(
        "--num-scales", type=int, default=3, help="anchor scales per level (default: 3)"
    )
    parser.add_argument(
        "--num-ratio-pairs",
        type=int,
        default=2,
        help="pairs r and 1 / r in addition to the ratio 1 (default: 2)",
    )
    parser.add_argument(
        "--objective",
        choices=list(OBJECTIVES),
        default="focal",
        help="mean: maximize the mean IoU; focal (default): minimize the mean -(1 - IoU)^2 log IoU",
    )
    bounds = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
    parser.add_argument(
        "--scale-bounds", **bounds, default=[0.4, 2.0], help="bounds of the scales (default: 0.4 2)"
    )
    help_text = (
        "bounds of all pairs, or one --ratio-bounds for each (default: 1 4; paper: 1 2, 2 4)"
    )
    parser.add_argument("--ratio-bounds", **bounds, action="append", help=help_text)
    parser.add_argument("--seed", type=seed, default=0, help="seed of the search (default: 0)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool, and return the exit code."""
    args = get_parser().parse_args(argv)
    args.opts = config_options(args.opts)
    args.ratio_bounds = args.ratio_bounds or [[1.0, 4.0]]
    return run_program(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
