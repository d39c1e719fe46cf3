"""Synthetic lesions in real slices: training data without annotation effort."""

from .hosts import HOSTS, find_hosts
from .painting import InsertedLesion, insert_lesions

__all__ = ["HOSTS", "InsertedLesion", "find_hosts", "insert_lesions"]
