from .finding import Algorithm, Diameter, Finding, Findings, OperatingPoint, SliceFinding
from .json_file import read_findings, write_findings
from .masks import decode_mask, encode_mask
from .measurement import measure_findings

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
    "write_findings",
]
