"""A program that starts a training, stops before the first step, and prints time and memory.

It has the imports of train_net.py and few others.
"""

import json
import os
import sys
import time

from detectron2 import engine

import train_net

from ..memory import high_water

_CONFIG = os.path.join(
    os.path.dirname(train_net.__file__), "configs", "quickstart", "retina_unet_phantom.yaml"
)


def _begin(output: str) -> None:
    """Start a training like train_net.py, up to the first step."""

    def end(trainer: engine.SimpleTrainer) -> None:
        """Print time and memory in one line, and end this process."""
        found = {"seconds": time.process_time(), "mebibytes": high_water()}
        print(json.dumps(found), flush=True)
        os._exit(0)

    engine.SimpleTrainer.run_step = end
    options = ["OUTPUT_DIR", output, "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0"]
    options += ["DATASETS.TRAIN", "('deeplesion_train',)", "DATASETS.TEST", "('deeplesion_val',)"]
    arguments = ["--config-file", _CONFIG, *options]
    train_net.start(engine.default_argument_parser().parse_args(arguments))


if __name__ == "__main__":
    _begin(sys.argv[1])
