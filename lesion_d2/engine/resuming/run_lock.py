"""Lock of an output folder: only one run at a time."""

import logging
import os
from io import FileIO

from detectron2.utils import comm

from ...utils.files import release_lock, take_lock
from ..input_errors import InputError

logger = logging.getLogger(__name__)

_FILE = ".lock"
# The folder that this process has locked, and the lock.
_held: dict[str, FileIO] = {}


def hold_output(folder: str) -> None:
    """Create and lock the folder of a run, until the process ends or locks another one.

    The first process of a run does so for all. The lock is released if the process dies. A warning
    is logged if the file system does not support locks.

    Raises:
        InputError: another run is using the folder; raised in all processes.
    """
    fault = _hold(folder) if comm.is_main_process() else None
    if fault := comm.all_gather(fault)[0]:
        raise InputError(fault)


def check_free(folder: str) -> None:
    """Check that no run is using a folder, which need not exist.

    Raises:
        InputError: a run is using it.
    """
    file = os.path.join(folder, _FILE)
    if os.path.exists(file) and os.path.realpath(folder) not in _held:
        try:
            release_lock(take_lock(file))
        except BlockingIOError:
            raise InputError(_fault(folder)) from None
        except OSError:
            return  # reported when the run locks it


def _hold(folder: str) -> str | None:
    """Lock the folder; returns the error message, if any."""
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
        logger.warning(
            f"OUTPUT_DIR: {folder} cannot be locked ({error}): do not start another run in it"
        )
    return None


def release_output() -> None:
    """Release the folder that this process has locked, if any."""
    while _held:
        release_lock(_held.popitem()[1])


def _fault(folder: str) -> str:
    return (
        f"OUTPUT_DIR: found another run in {folder}, expected a folder that no run writes "
        "to; wait for its end or choose another one"
    )
