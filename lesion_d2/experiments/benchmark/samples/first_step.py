"""A program that trains up to where the first step would begin, and prints what that took.

It has train_net.py's imports and few others.
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
    """Train as train_net.py does, up to where the first step would begin."""

    def end(trainer: engine.SimpleTrainer) -> None:
        """End this process with one line of what it took."""
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
