"""Resuming a run as if it had not been interrupted, and locking its folder."""

from .metrics import EvaluationWriter, rewind_metrics
from .process_state import ProcessStateHook
from .run_lock import check_free, hold_output, release_output

__all__ = [
    "EvaluationWriter",
    "ProcessStateHook",
    "check_free",
    "hold_output",
    "release_output",
    "rewind_metrics",
]
