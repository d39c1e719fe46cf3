"""One run at a time in a folder."""

import logging
import os
from io import FileIO

from detectron2.utils import comm

from ...utils.files import release_lock, take_lock
from ..input_errors import InputError

logger = logging.getLogger(__name__)

_FILE = ".lock"
# The folder that this process has, and its lock.
_held: dict[str, FileIO] = {}


def hold_output(folder: str) -> None:
    """Make the folder of a run, and hold it until the process ends or takes another one.

    The first process of a run does so for all; a process that is dead holds nothing. Where the
    file system has no locks, it is said in the log.

    Raises:
        InputError: another run is at work there; all processes raise it.
    """
    fault = _hold(folder) if comm.is_main_process() else None
    if fault := comm.all_gather(fault)[0]:
        raise InputError(fault)


def check_free(folder: str) -> None:
    """Check that no run is at work in a folder, which need not be there.

    Raises:
        InputError: one is.
    """
    file = os.path.join(folder, _FILE)
    if os.path.exists(file) and os.path.realpath(folder) not in _held:
        try:
            release_lock(take_lock(file))
        except BlockingIOError:
            raise InputError(_fault(folder)) from None
        except OSError:
            return  # told of when the run takes it


def _hold(folder: str) -> str | None:
    """What is wrong, if anything."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.realpath(folder)
    if path in _held:
        return None
    release_output()
    try:
        _held[path] = take_lock(os.path.join(path, _FILE))
    except BlockingIOError:
        return _fault(folder)
    except OSError as error:
        logger.warning(f"OUTPUT_DIR: {folder} cannot be locked ({error}): start no other run there")
    return None


def release_output() -> None:
    """Let other runs have the folder that this process has, if any."""
    while _held:
        release_lock(_held.popitem()[1])


def _fault(folder: str) -> str:
    return (
        f"OUTPUT_DIR: found another run at work in {folder}, expected a folder that no run writes "
        "to; wait for its end or choose another one"
    )
