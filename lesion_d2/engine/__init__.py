from .checkpoint import LesionCheckpointer
from .defaults import (
    InputError,
    finish_run,
    fit_device,
    load_config,
    one_line_errors,
    prepare_launch,
    setup_run,
)
from .hooks import CatchUpHook, EarlyStopHook, PlateauHook, ResumableBestCheckpointer
from .schedule import resolve_epochs
from .trainer import StoppableTrainer, Trainer

__all__ = [
    "CatchUpHook",
    "EarlyStopHook",
    "InputError",
    "LesionCheckpointer",
    "PlateauHook",
    "ResumableBestCheckpointer",
    "StoppableTrainer",
    "Trainer",
    "finish_run",
    "fit_device",
    "load_config",
    "one_line_errors",
    "prepare_launch",
    "resolve_epochs",
    "setup_run",
]
