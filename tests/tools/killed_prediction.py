"""The command in a process that dies like by ``kill -9`` while it writes its NUMBERth scan.

Usage: killed_prediction.py NUMBER [arguments of the command].
"""

import os
import signal
import sys

from lesion_d2.tools.predict import __main__ as command
from lesion_d2.tools.predict import outputs

_write, _calls = outputs.write_csv, iter(range(1, 100))


def _dying_write(file, scans):
    if next(_calls) == int(sys.argv[1]):
        file.write_text("half a")
        os.kill(os.getpid(), signal.SIGKILL)
    _write(file, scans)


if __name__ == "__main__":
    outputs.write_csv = _dying_write
    sys.exit(command.main(sys.argv[2:]))
