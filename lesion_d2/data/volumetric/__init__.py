"""Volumes and patches of volumes, for detectors in 3-D (Jaeger et al., 2018)."""

from .loader import build_volume_test_loader, build_volume_train_loader, load_volume_records
from .mapper import VolumePatchMapper
from .reading import ResampledVolume, array_record, read_block
from .records import volume_records

__all__ = [
    "ResampledVolume",
    "VolumePatchMapper",
    "array_record",
    "build_volume_test_loader",
    "build_volume_train_loader",
    "load_volume_records",
    "read_block",
    "volume_records",
]
