"""Statistics and faults of registered data sets."""

from .check import JSON_FILE, PAGE_FILE, SHEET_FILE, check_data_set
from .faults import KINDS, Fault
from .report import DataReport

__all__ = [
    "JSON_FILE",
    "KINDS",
    "PAGE_FILE",
    "SHEET_FILE",
    "DataReport",
    "Fault",
    "check_data_set",
]
