"""HTML reports of findings: one self-contained file per scan, and an index."""

from .index import IndexRow, write_index
from .page import write_report

__all__ = ["IndexRow", "write_index", "write_report"]
