"""Findings of a scan, and the files that hold them."""

from ..structures.rle import decode_mask, encode_mask
from .finding import Algorithm, Diameter, Finding, Findings, OperatingPoint, SliceFinding
from .json_file import read_findings, write_findings
from .label_map import write_label_map
from .measurement import measure_findings
from .tables import write_coco, write_csv

__all__ = [
    "Algorithm",
    "Diameter",
    "Finding",
    "Findings",
    "OperatingPoint",
    "SliceFinding",
    "decode_mask",
    "encode_mask",
    "measure_findings",
    "read_findings",
    "write_coco",
    "write_csv",
    "write_findings",
    "write_label_map",
]
