"""Pictures of a data set, of what a run found or mined in it, or of what a model looks at.

python -m lesion_d2.tools.visualize dataset --dataset phantom_train --output DIR
python -m lesion_d2.tools.visualize predictions --dataset phantom_test \\
    --results OUTPUT_DIR/inference/phantom_test/coco_instances_results.json
python -m lesion_d2.tools.visualize volumes \\
    --results OUTPUT_DIR/inference/phantom_volumes_test/volumes.json
python -m lesion_d2.tools.visualize negatives --dataset phantom_train \\
    --results OUTPUT_DIR/inference/phantom_train/hard_negatives.json
python -m lesion_d2.tools.visualize mined \\
    --config-file configs/bai/add_phantom.yaml --weights OUTPUT_DIR/model_final.pth
python -m lesion_d2.tools.visualize attention --dataset phantom_test \\
    --config-file configs/zlocha/attention_phantom.yaml --weights OUTPUT_DIR/model_best.pth
python -m lesion_d2.tools.visualize attention --dataset phantom_columns_test \\
    --config-file configs/tao/3dce_9_cs_phantom.yaml --weights OUTPUT_DIR/model_final.pth

One PNG an image and one contact sheet. Lesions are yellow, dashed where they were missed; hits are
green and false positives red. ``best`` and ``worst`` images are ranked by
:func:`lesion_d2.visualization.outcome_quality`: the mean over an image's lesions of the highest
IoU x score of a detection, divided by one plus its false positives above the score threshold.

Of an evaluation in 3-D (``volumes``) there is a PNG a volume. Its rows are the lesions, then the
false positives by falling score: the slice of the center, then the surroundings on slices from the
first to the last one. Boxes are those in 3-D where a slice cuts them, colored by what was found in
3-D, and masks those of the data set. The contact sheet has the slices of the centers.

Hard negatives are red, with their masks and two numbers: the score and the highest mask IoU with a
lesion (S1/S2 in Fig. 3 of Tang et al.; of a model without masks the highest IoU of boxes). Lesions
are green there, and those that were hidden from the training yellow and dashed.

Mined lesions (Fig. 3 of Bai et al.) are blue, with their scores: detections of the weights on the
training images from MODEL.MEAN_TEACHER.SCORE_THRESH on that are none of the annotated lesions, as a
teacher mines them. Those are green, and hidden ones (DATASETS.HIDDEN_SHARE) yellow and dashed.

Attention is that of the model. Gates (Zlocha et al.) are drawn over the slice, a heat map for each
level with one, and beside it the segmentation. The colors of a level span its values in all images
of the call.

Attention to slices (Tao et al., Figs. 2 and 3) is drawn over the middle slices of the M
three-channel images that the model sees, K - m to K + m around the key slice K, clipped to its
window. The spatial maps S'' share their colors over the M images of a key slice, from their lowest
to their highest value; what borders were cut stays gray. Each of its first four lesions has a table
of the slice weights C'', 0 to 1: a row an image, a column (y, x) for each position of its region in
the feature map. The positions are the cells drawn over its surroundings. Maps and weights are means
over the channels, which look even where channels prefer different slices, or those of ``--channel``
as in the paper's figures.
"""

import argparse
import sys
from collections.abc import Sequence

import lesion_d2  # noqa: F401  (makes detectron2 importable)
from lesion_d2.errors import run_program
from lesion_d2.tools.arguments import positive, seed

from .attention import draw_attention
from .dataset import draw_dataset
from .mined import PICKS as MINED_PICKS
from .mined import draw_mined
from .negatives import PICKS as NEGATIVE_PICKS
from .negatives import draw_negatives
from .predictions import PICKS, draw_predictions
from .volumes import draw_volumes


def get_parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.visualize", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    jobs = parser.add_subparsers(
        required=True, metavar="dataset|predictions|volumes|negatives|mined|attention"
    )
    _add_dataset(jobs.add_parser("dataset", help="lesions, RECIST diameters, masks of a data set"))
    _add_predictions(jobs.add_parser("predictions", help="what a run found and what it missed"))
    _add_volumes(jobs.add_parser("volumes", help="what an evaluation in 3-D found and missed"))
    _add_negatives(jobs.add_parser("negatives", help="hard negatives that a training mined"))
    _add_mined(jobs.add_parser("mined", help="lesions that a teacher mines in training images"))
    _add_attention(jobs.add_parser("attention", help="where a model's attention lies"))
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_dataset)
    _add_common(parser, num=12, num_help="number of images")
    parser.add_argument("--output", required=True, help="folder to write to")
    _add_masks(parser)
    parser.add_argument("--pick", choices=["random", "first"], default="random")
    parser.add_argument("--zoom", action="store_true", help="show the lesions' surroundings only")


def _add_predictions(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_predictions)
    _add_common(parser, num=4, num_help="number of images per pick")
    parser.add_argument("--results", required=True, help="coco_instances_results.json")
    parser.add_argument("--output", help="folder to write to (pictures/ beside the results)")
    parser.add_argument("--pick", nargs="+", choices=PICKS, default=PICKS)
    _add_threshold(parser, "image")


def _add_volumes(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_volumes)
    _add_picking(parser, num=2, num_help="number of volumes per pick")
    parser.add_argument("--results", required=True, help="volumes.json")
    parser.add_argument("--output", help="folder to write to (pictures/ beside the results)")
    parser.add_argument("--pick", nargs="+", choices=PICKS, default=PICKS)
    parser.add_argument("--slices", type=positive, default=5, help="slices of a strip (5)")
    parser.add_argument(
        "--findings", type=positive, default=6, help="most lesions and false positives a volume (6)"
    )
    _add_threshold(parser, "volume")


def _add_threshold(parser: argparse.ArgumentParser, unit: str) -> None:
    threshold = parser.add_mutually_exclusive_group()
    threshold.add_argument("--score-threshold", type=float, help="leave out lower scores")
    threshold.add_argument(
        f"--fps-per-{unit}",
        type=float,
        default=1.0,
        help=f"take the score threshold at which the run has so many false positives per {unit} "
        "(1)",
    )


def _add_negatives(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_negatives)
    _add_common(parser, num=12, num_help="number of images")
    parser.add_argument("--results", required=True, help="hard_negatives.json")
    parser.add_argument("--output", help="folder to write to (hard_negatives/ beside the results)")
    _add_masks(parser)
    parser.add_argument(
        "--pick",
        choices=NEGATIVE_PICKS,
        default=NEGATIVE_PICKS[0],
        help="images with the most negatives first, or any that have some (most)",
    )
    parser.add_argument(
        "--hidden-share", type=float, default=0.0, help="the training's DATASETS.HIDDEN_SHARE (0)"
    )
    parser.add_argument(
        "--hidden-seed", type=seed, default=0, help="the training's DATASETS.HIDDEN_SEED (0)"
    )


def _add_mined(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_mined)
    _add_common(parser, num=12, num_help="number of images", dataset="the first of DATASETS.TRAIN")
    parser.add_argument("--config-file", required=True, help="of the training")
    parser.add_argument("--weights", help="a checkpoint of its model (MODEL.WEIGHTS)")
    parser.add_argument("--output", help="folder to write to (OUTPUT_DIR/mined/<data set>)")
    parser.add_argument(
        "--pick",
        choices=MINED_PICKS,
        default=MINED_PICKS[0],
        help="any images with mined lesions, or those with the most of all images (random)",
    )
    parser.add_argument(
        "--score-threshold", type=float, help="tau (MODEL.MEAN_TEACHER.SCORE_THRESH)"
    )
    _add_opts(parser)


def _add_attention(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(job=draw_attention)
    _add_common(parser, num=4, num_help="number of images")
    parser.add_argument("--config-file", required=True, help="of the model, with attention")
    parser.add_argument("--weights", required=True, help="a checkpoint of that model")
    parser.add_argument("--output", help="folder to write to (OUTPUT_DIR/attention/<data set>)")
    parser.add_argument("--pick", choices=["random", "first"], default="random")
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="draw detections from this score on, over the segmentation or the key slice (only the "
        "lesions)",
    )
    parser.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="show attention to slices of this channel, from 0 (the mean over all)",
    )
    _add_opts(parser)


def _add_opts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config"
    )


def _add_common(
    parser: argparse.ArgumentParser, *, num: int, num_help: str, dataset: str = ""
) -> None:
    """Add what all jobs have; ``dataset`` says in words which one is drawn where none is given."""
    known = "a registered data set: phantom_test"
    text = f"{known} ({dataset})" if dataset else known
    parser.add_argument("--dataset", required=not dataset, help=text)
    _add_picking(parser, num=num, num_help=num_help)


def _add_picking(parser: argparse.ArgumentParser, *, num: int, num_help: str) -> None:
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out images whose file is missing"
    )
    parser.add_argument("--num", type=positive, default=num, help=f"{num_help} ({num})")
    parser.add_argument("--seed", type=seed, default=0, help="of the random pick (0)")
    parser.add_argument(
        "--window",
        nargs="+",
        default=["dicom"],
        metavar="WINDOW",
        help="dicom (each image's own), a name such as lung or abdomen, or LOW HIGH in HU (dicom)",
    )


def _add_masks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--masks", default="ellipse", help="none, ellipse, grabcut, or a mask file (ellipse)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, print the paths written, and return the exit code."""
    args = get_parser().parse_args(argv)
    return run_program(lambda: print("\n".join(args.job(args))))


if __name__ == "__main__":
    sys.exit(main())
