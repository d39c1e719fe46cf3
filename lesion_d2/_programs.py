"""How programs of this project begin."""

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

    That takes seconds, before :func:`~lesion_d2.utils.errors.run_program` handles signals. Whoever
    uses the package in a program of their own keeps their handlers.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and _is_own() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage within the block, such as in imports: it takes a fifth of their time.

    Each time that many objects were made, Python would look through all that there are.
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
    """Let Python look for garbage among the objects that there are now as seldom as it does.

    They can still be collected, unlike those that stay frozen: a trainer that is part of reference
    cycles would never end.
    """
    if not gc.get_freeze_count():  # else they are somebody's, who would find them unfrozen
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
    if sys.argv[:1] == ["-m"]:  # python -m lesion_d2.tools.x, where x is still looked for
        return True
    script = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "")
    root = project_folder(_PACKAGE)
    return script == str(root / "train_net.py") or Path(script).parent == root / "datasets"
