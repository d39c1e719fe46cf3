"""Findings as a page to look at: one HTML file a scan, no network, and an index."""

from .index import IndexRow, write_index
from .page import write_report

__all__ = ["IndexRow", "write_index", "write_report"]
