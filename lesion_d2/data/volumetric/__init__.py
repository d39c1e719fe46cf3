"""Volumes and patches of volumes, for detectors in 3-D (Jaeger et al., 2018)."""

from .reading import ResampledVolume, array_record, read_block
from .records import volume_records

__all__ = [
    "ResampledVolume",
    "array_record",
    "read_block",
    "volume_records",
]
