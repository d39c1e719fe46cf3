from .checkpoint import LesionCheckpointer
from .defaults import (
    InputError,
    finish_run,
    load_config,
    one_line_errors,
    prepare_launch,
    setup_run,
)
from .hooks import ResumableBestCheckpointer
from .schedule import resolve_epochs
from .trainer import Trainer

__all__ = [
    "InputError",
    "LesionCheckpointer",
    "ResumableBestCheckpointer",
    "Trainer",
    "finish_run",
    "load_config",
    "one_line_errors",
    "prepare_launch",
    "resolve_epochs",
    "setup_run",
]
