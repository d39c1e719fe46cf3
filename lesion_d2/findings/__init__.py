from .finding import Algorithm, Diameter, Finding, Findings, OperatingPoint, SliceFinding
from .json_file import read_findings, write_findings
from .masks import decode_mask, encode_mask

__all__ = [
    "Algorithm",
    "Diameter",
    "Finding",
    "Findings",
    "OperatingPoint",
    "SliceFinding",
    "decode_mask",
    "encode_mask",
    "read_findings",
    "write_findings",
]
