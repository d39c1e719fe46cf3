"""Trainer, hooks, checkpoints, checks of a run's inputs, and predictors."""

from .checkpoint_files.best_checkpoints import KeepBestHook
from .checkpoint_files.checkpointer import LesionCheckpointer
from .checks import check_prediction
from .defaults import (
    finish_run,
    fit_device,
    load_config,
    logged_errors,
    prepare_launch,
    prepare_processes,
    setup_run,
    share_cores,
)
from .hard_negatives import HardNegativeMiner, HardNegativeMiningHook, select_hard_negatives
from .hooks import (
    CatchUpHook,
    EarlyStopHook,
    PlateauHook,
    RecentCheckpointer,
    ResumableBestCheckpointer,
    TrainingCurvesHook,
)
from .input_errors import InputError
from .launching import launch_run
from .predictors.algorithm import describe_algorithm, weight_files
from .predictors.prediction import LesionPredictor, load_model
from .predictors.scan_prediction import detect_slices, predict_scan
from .solver.schedule import resolve_epochs
from .trainer import StoppableTrainer, Trainer
from .validation_loss import ValidationLossHook

__all__ = [
    "CatchUpHook",
    "EarlyStopHook",
    "HardNegativeMiner",
    "HardNegativeMiningHook",
    "InputError",
    "KeepBestHook",
    "LesionCheckpointer",
    "LesionPredictor",
    "PlateauHook",
    "RecentCheckpointer",
    "ResumableBestCheckpointer",
    "StoppableTrainer",
    "Trainer",
    "TrainingCurvesHook",
    "ValidationLossHook",
    "check_prediction",
    "describe_algorithm",
    "detect_slices",
    "finish_run",
    "fit_device",
    "launch_run",
    "load_config",
    "load_model",
    "logged_errors",
    "predict_scan",
    "prepare_launch",
    "prepare_processes",
    "resolve_epochs",
    "select_hard_negatives",
    "setup_run",
    "share_cores",
    "weight_files",
]
