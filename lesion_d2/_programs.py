"""Setup at the start of this project's programs."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).parent


def end_shortly_while_importing() -> None:
    """Let Ctrl-C end a program of this project without a traceback while it imports its packages.

    Imports take seconds, before :func:`~lesion_d2.utils.errors.run_program` handles signals. Other
    programs that import the package keep their handlers.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and _is_own() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def uncollected() -> Iterator[None]:
    """Turn off garbage collection within the block, for instance imports: a fifth of their time.

    Otherwise, Python would scan all existing objects each time many have been created.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        count_as_old()
        if collects:
            gc.enable()


def count_as_old() -> None:
    """Move all existing objects to the oldest generation, which is collected least often.

    They can still be collected, unlike frozen objects: a trainer that is part of reference cycles
    would never be deleted.
    """
    if not gc.get_freeze_count():  # other code's frozen objects must stay frozen
        gc.freeze()
        gc.unfreeze()


def project_folder(package: Path) -> Path:
    """Where ``train_net.py``, ``configs`` and ``datasets`` are: in a checkout, or as installed.

    Args:
        package: the folder of ``lesion_d2``. An installation that is not editable has them below.
    """
    installed = package / "project"
    return installed if installed.is_dir() else package.parent


def _is_own() -> bool:
    if sys.argv[:1] == ["-m"]:  # python -m lesion_d2.tools.x, before x is found
        return True
    script = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "")
    root = project_folder(_PACKAGE)
    return script == str(root / "train_net.py") or Path(script).parent == root / "datasets"
