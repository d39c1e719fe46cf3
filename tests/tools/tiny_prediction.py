"""A prediction that takes a second: a thin model, a small volume, and a command line."""

import csv
import json
from pathlib import Path

from lesion_d2.engine import Trainer, load_config
from lesion_d2.tools.predict.__main__ import get_parser

import numpy as np
import torch
from tiny_run import CONFIG

SPACING = (0.7, 0.7, 2.5)
# The quickstart's model, thin; an untrained one is sure of nothing.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.NORM": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.UNET_FPN.DECODER_CHANNELS": "(8, 4)",
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "INPUT.CT.IMAGE_SIZE": 64,
    "TEST.DETECTIONS_PER_IMAGE": 4,
}
FILES = ["coco_instances_results.json", "findings.csv", "findings.json", "report.html"]


def make_volume(seed):
    rng = np.random.default_rng(seed)
    volume = rng.integers(-1000, 400, (4, 40, 48)).astype(np.int16)
    volume[:, 10:20, 12:30] = 900
    return volume


def write_run(run: Path) -> None:
    """Weights of an untrained model whose segmentation is drawn, and an evaluation of it."""
    (run / "inference" / "phantom_val").mkdir(parents=True)
    pairs = [text for key, value in SMALL.items() for text in (key, str(value))]
    arguments = ["--config-file", str(CONFIG), "--input", "-", "--output", "-", *pairs]
    torch.manual_seed(0)
    model = Trainer.build_model(load_config(get_parser().parse_intermixed_args(arguments)))
    state = model.state_dict()
    state["seg_predictor.weight"].normal_(std=2.0)
    state["seg_predictor.bias"].zero_()
    torch.save({"model": state}, run / "model_best.pth")
    points = {"dataset": "phantom_val", "unit": "image", "last_rate": 9.5}
    values = [(0.5, 0.0), (1.0, 0.0), (16.0, None)]
    points["points"] = [{"rate": r, "score_threshold": t, "sensitivity": 50.0} for r, t in values]
    content = json.dumps({"operating_points": points})
    (run / "inference" / "phantom_val" / "froc.json").write_text(content)


def make_arguments(run, output, *inputs, flags=("--score-threshold", "0"), **changes):
    pairs = {**SMALL, "MODEL.WEIGHTS": run / "model_best.pth"}
    pairs.update({key.replace("__", "."): value for key, value in changes.items()})
    inputs = ("--input", *map(str, inputs)) if inputs else ()
    return [
        *("--config-file", str(CONFIG), *inputs, "--output", str(output)),
        *flags,
        *(text for key, value in pairs.items() for text in (key, str(value))),
    ]


def read_summary(output):
    with open(output / "summary.csv", newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}
