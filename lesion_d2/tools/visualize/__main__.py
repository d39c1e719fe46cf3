"""Draw a data set, the results of a run, or the attention of a model.

python -m lesion_d2.tools.visualize dataset --dataset phantom_train --output DIR
python -m lesion_d2.tools.visualize predictions --dataset phantom_test \\
    --results OUTPUT_DIR/inference/phantom_test/coco_instances_results.json
python -m lesion_d2.tools.visualize volumes \\
    --results OUTPUT_DIR/inference/phantom_volumes_test/volumes.json
python -m lesion_d2.tools.visualize negatives --dataset phantom_train \\
    --results OUTPUT_DIR/inference/phantom_train/hard_negatives.json
python -m lesion_d2.tools.visualize pseudo_labels \\
    --config-file configs/mean_teacher/add_phantom.yaml --weights OUTPUT_DIR/model_final.pth
python -m lesion_d2.tools.visualize attention --dataset phantom_test \\
    --config-file configs/improved_retinanet/attention_phantom.yaml \\
    --weights OUTPUT_DIR/model_best.pth
python -m lesion_d2.tools.visualize attention --dataset phantom_columns_test \\
    --config-file configs/3dce_attention/3dce_9_cs_phantom.yaml --weights OUTPUT_DIR/model_final.pth
python -m lesion_d2.tools.visualize froc --dataset phantom_test --output froc.png \\
    "RetinaNet=output/improved_retinanet/retinanet_[1-3]" \\
    "+ anchors=output/improved_retinanet/anchors_[1-3]"
python -m lesion_d2.tools.visualize training OUTPUT_DIR
python -m lesion_d2.tools.visualize sizes --output sizes.png \\
    "from scratch=5:output/scratch_5_*,12:output/scratch_12_*" "pretrained=0:output/pretrained,..."

The jobs that draw images write a PNG per image and a contact sheet; with --style paper the pages
are white. Colors are those of Okabe and Ito, and the styles of lines differ as the colors do:
lesions are yellow, with dashes if they were missed; hits are sky blue; false positives are
vermilion with dashes and dots. The corners have the display window in HU and a scale bar.

predictions: "best" are images of which every lesion was found, "worst" are any; both are ranked by
the highest IoU x score of a detection, averaged over the lesions, divided by 1 + the number of
false positives above the score threshold (lesion_d2.visualization.outcome_quality). The rule is
written below the contact sheet.

volumes: a PNG per volume of an evaluation in 3-D. Its rows are the lesions, then the false
positives by descending score: the center slice, then the part around the lesion on slices from its
first to its last. Boxes are cross-sections of those in 3-D, with the outcome in 3-D; masks are
those of the data set. The contact sheet has the center slices.

negatives: hard negatives are vermilion with dashes and dots, with their masks and two numbers: the
score and the highest mask IoU with a lesion (S1/S2 in Fig. 3 of Tang et al.), or box IoU of models
without masks. Lesions are yellow, those with hidden annotations orange and dashed.

pseudo_labels: detections of the weights in training images with a score of at least
MODEL.MEAN_TEACHER.SCORE_THRESH that match no annotated lesion, as a mean teacher selects them
(Fig. 3 of Bai et al.). They are sky blue with long dashes, and have a score. Annotated lesions are
yellow, those with hidden annotations (DATASETS.MISSING_ANNOTATION_RATIO) orange and dashed.

attention, of gates (Zlocha et al.): a heat map over the slice for each level with a gate, and the
segmentation. The colors of a level span its values in all images of the call.

attention, of slices (Tao et al., Figs. 2 and 3): the middle slices of the M three-channel images of
the model, K - m to K + m around the key slice K, clipped to the model's window. The colors of the
spatial maps S'' span their values in the M images of a key slice; cropped borders stay gray. The
first four lesions have a table of the slice weights C'', from 0 to 1: a row per image, a column
(y, x) per position in the feature map. The positions are the cells drawn over the slices. Maps and
weights are means over the channels, which hide differences between channels, or those of one
--channel, as in the paper's figures.

froc: curves of several experiments in one figure, as PNG and PDF. An experiment is a name and a
pattern of OUTPUT_DIRs. One run is drawn with its 95 % interval, if TEST.NUM_BOOTSTRAP was set;
several runs as their mean, with a band from the lowest to the highest.

training: losses, average precision and sensitivity over iterations, from metrics.json, as PNG and
PDF. A training writes this figure at its end.

sizes: sensitivity over the number of training images, a curve per way of training, as PNG and PDF.
The evaluations of all OUTPUT_DIRs of a pattern count together, like the folds of a
cross-validation; bars are 95 % Clopper-Pearson intervals.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.tools.common.arguments import positive, seed
from lesion_d2.tools.compare_runs import experiment
from lesion_d2.utils.errors import run_program
from lesion_d2.visualization import PAGE_STYLES

from .attention import draw_attention
from .curves import draw_froc, draw_training
from .dataset import draw_dataset
from .negatives import PICKS as NEGATIVE_PICKS
from .negatives import draw_negatives
from .predictions import PICKS, draw_predictions
from .pseudo_labels import PICKS as PSEUDO_LABEL_PICKS
from .pseudo_labels import draw_pseudo_labels
from .sizes import draw_sizes, sizes
from .volumes import draw_volumes


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    general = "\n\n".join(__doc__.split("\n\n")[:3])  # the rest is of one job each
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.visualize", description=general)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    jobs = parser.add_subparsers(required=True, metavar="JOB", title="jobs (JOB --help says more)")
    for name, (text, add_arguments) in _jobs().items():
        job = jobs.add_parser(name, help=text, description=_description(name, text))
        job.formatter_class = argparse.RawDescriptionHelpFormatter
        add_arguments(job)
    # Not listed in the help.
    _add_pseudo_labels(jobs.add_parser("mined", description="Earlier name of pseudo_labels."))
    return parser


def _jobs() -> dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]]:
    """Name -> what is drawn, and the function that adds the arguments."""
    return {
        "dataset": ("lesions, RECIST diameters and masks of a data set", _add_dataset),
        "predictions": ("hits, false positives and missed lesions on slices", _add_predictions),
        "volumes": ("the outcome of an evaluation in 3-D, per lesion", _add_volumes),
        "negatives": ("hard negatives of a training", _add_negatives),
        "pseudo_labels": ("pseudo-labels of a mean teacher in training images", _add_pseudo_labels),
        "attention": ("attention maps of a model", _add_attention),
        "froc": ("FROC curves of several experiments", _add_froc),
        "training": ("losses, AP and sensitivity of a training", _add_training),
        "sizes": ("sensitivity over the number of training images", _add_sizes),
    }


def _description(job: str, text: str) -> str:
    """What this module's docstring says of a job: its examples and its paragraphs."""
    _, examples, *paragraphs = __doc__.strip().split("\n\n")
    own = [e for e in re.split(r"\n(?=python)", examples) if f".visualize {job} " in e]
    paragraphs = [p for p in paragraphs if re.match(rf"{job}\b", p)]
    return "\n\n".join([f"Draw {text}.", "\n".join(own), *paragraphs])


def _add_froc(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_froc)
    parser.add_argument(
        "experiments",
        nargs="+",
        type=experiment,
        metavar="NAME=PATTERN",
        help="name of a curve, and glob pattern of the OUTPUT_DIRs of its runs",
    )
    parser.add_argument("--dataset", required=True, help="data set of the evaluations")
    parser.add_argument("--output", required=True, help="PNG to write, with a PDF beside it")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_training)
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument("--output", help="PNG to write (default: OUTPUT_DIR/training.png)")


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_sizes)
    parser.add_argument(
        "series",
        nargs="+",
        type=sizes,
        metavar="NAME=IMAGES:PATTERN,...",
        help="name of a curve, and its points: number of training images and OUTPUT_DIRs",
    )
    parser.add_argument(
        "--fps", type=float, default=4.0, help="false positives per image (default: 4)"
    )
    parser.add_argument("--output", required=True, help="PNG to write, with a PDF beside it")


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_dataset)
    _add_common(parser, num=12, num_help="number of images")
    parser.add_argument("--output", required=True, help="folder to write to")
    _add_masks(parser)
    _add_pick(parser)
    parser.add_argument("--zoom", action="store_true", help="show only the part around the lesions")


def _add_predictions(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_predictions)
    _add_common(parser, num=4, num_help="number of images per pick")
    parser.add_argument("--results", required=True, help="coco_instances_results.json")
    parser.add_argument(
        "--output", help="folder to write to (default: pictures/ beside the results)"
    )
    parser.add_argument(
        "--pick", nargs="+", choices=PICKS, default=PICKS, help="which ones (default: all three)"
    )
    _add_threshold(parser, "image")


def _add_volumes(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_volumes)
    _add_picking(parser, num=2, num_help="number of volumes per pick")
    parser.add_argument("--results", required=True, help="volumes.json")
    parser.add_argument(
        "--output", help="folder to write to (default: pictures/ beside the results)"
    )
    parser.add_argument(
        "--pick", nargs="+", choices=PICKS, default=PICKS, help="which ones (default: all three)"
    )
    parser.add_argument("--slices", type=positive, default=5, help="slices per row (default: 5)")
    parser.add_argument(
        "--findings",
        type=positive,
        default=6,
        help="maximum number of lesions and false positives per volume (default: 6)",
    )
    _add_threshold(parser, "volume")


def _add_threshold(parser: argparse.ArgumentParser, unit: str) -> None:
    threshold = parser.add_mutually_exclusive_group()
    threshold.add_argument("--score-threshold", type=float, help="minimum score of detections")
    threshold.add_argument(
        f"--fps-per-{unit}",
        type=float,
        default=1.0,
        help=f"use the score threshold at which the run has this many false positives per {unit} "
        "(default: 1)",
    )


def _add_negatives(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_negatives)
    _add_common(parser, num=12, num_help="number of images")
    parser.add_argument("--results", required=True, help="hard_negatives.json")
    parser.add_argument(
        "--output", help="folder to write to (default: hard_negatives/ beside the results)"
    )
    _add_masks(parser)
    parser.add_argument(
        "--pick",
        choices=NEGATIVE_PICKS,
        default=NEGATIVE_PICKS[0],
        help="images with the most negatives, or random ones with negatives (default: most)",
    )
    parser.add_argument(
        "--hidden-share",
        type=float,
        default=0.0,
        help="the training's DATASETS.MISSING_ANNOTATION_RATIO (default: 0)",
    )
    parser.add_argument(
        "--hidden-seed",
        type=seed,
        default=0,
        help="the training's DATASETS.MISSING_ANNOTATION_SEED (default: 0)",
    )


def _add_pseudo_labels(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_pseudo_labels)
    _add_common(parser, num=12, num_help="number of images", dataset="the first of DATASETS.TRAIN")
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("--weights", help="a checkpoint of its model (default: MODEL.WEIGHTS)")
    parser.add_argument(
        "--output", help="folder to write to (default: OUTPUT_DIR/pseudo_labels/<data set>)"
    )
    parser.add_argument(
        "--pick",
        choices=PSEUDO_LABEL_PICKS,
        default=PSEUDO_LABEL_PICKS[0],
        help="random images with pseudo-labels, or those with the most (default: random)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="minimum score, tau (default: MODEL.MEAN_TEACHER.SCORE_THRESH)",
    )
    _add_opts(parser)


def _add_attention(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_attention)
    _add_common(parser, num=4, num_help="number of images")
    parser.add_argument("--config-file", required=True, help="config of a model with attention")
    parser.add_argument("--weights", required=True, help="a checkpoint of that model")
    parser.add_argument(
        "--output", help="folder to write to (default: OUTPUT_DIR/attention/<data set>)"
    )
    _add_pick(parser)
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="draw detections with at least this score, over the segmentation or the key slice "
        "(default: none are drawn)",
    )
    parser.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="attention of this channel, from 0 (default: the mean over all channels)",
    )
    _add_opts(parser)


def _add_opts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options to change"
    )


def _add_common(
    parser: argparse.ArgumentParser, *, num: int, num_help: str, dataset: str = ""
) -> None:
    """Add the arguments of all jobs; ``dataset`` describes the default data set, if any."""
    known = "a registered data set, such as phantom_test"
    text = f"{known} (default: {dataset})" if dataset else known
    parser.add_argument("--dataset", required=not dataset, help=text)
    _add_picking(parser, num=num, num_help=num_help)


def _add_picking(parser: argparse.ArgumentParser, *, num: int, num_help: str) -> None:
    parser.add_argument(
        "--allow-missing", action="store_true", help="skip images whose file is missing"
    )
    parser.add_argument("--num", type=positive, default=num, help=f"{num_help} (default: {num})")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random pick (default: 0)")
    parser.add_argument(
        "--window",
        nargs="+",
        default=["dicom"],
        metavar="WINDOW",
        help="dicom (each image's own), a name such as lung or abdomen, or LOW HIGH in HU "
        "(default: dicom)",
    )
    parser.add_argument(
        "--style",
        choices=list(PAGE_STYLES),
        default="screen",
        help="black or white pages (default: screen)",
    )


def _add_pick(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pick", choices=["random", "first"], default="random", help="images (default: random)"
    )


def _add_masks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--masks",
        default="ellipse",
        help="none, ellipse, grabcut, or a mask file (default: ellipse)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, print the paths written, and return the exit code."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: print("\n".join(args.job(args))))


if __name__ == "__main__":
    sys.exit(main())
