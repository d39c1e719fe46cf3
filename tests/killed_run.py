"""``train_net.py`` in a process that dies like by ``kill -9`` in the middle of a write.

Usage: killed_run.py WHAT NUMBER [arguments of train_net.py]: dies while the NUMBERth file of
torch.save ("model") or the NUMBERth last_checkpoint ("tag") is written.
"""

import os
import signal
import sys

import tiny_run
import torch
from detectron2.engine import default_argument_parser

import train_net


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying_save(number: int, save=torch.save):
    calls = iter(range(1, number + 1))

    def dying_save(data, file):
        if next(calls) < number:
            return save(data, file)
        file.write(b"PK\x03\x04" + b"half a checkpoint" * 1000)
        return _die()

    return dying_save


def _dying_replace(number: int, replace=os.replace):
    calls = iter(range(1, number + 1))

    def dying_replace(source, target):
        if str(target).endswith("last_checkpoint") and next(calls) == number:
            _die()
        return replace(source, target)

    return dying_replace


if __name__ == "__main__":
    assert tiny_run.CONFIG.is_file()
    what, number, *rest = sys.argv[1:]
    if what == "model":
        torch.save = _dying_save(int(number))
    else:
        os.replace = _dying_replace(int(number))
    train_net.main(default_argument_parser().parse_args(rest))
