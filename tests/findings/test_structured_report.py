"""DICOM SR: read back by highdicom, checked by dicom3tools, printed by dcmtk."""

import re
from dataclasses import replace

from lesion_d2.scans import read_scan

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

hd = pytest.importorskip("highdicom")

from lesion_d2.findings.dicom import write_structured_report  # noqa: E402

from .dicom_results import (  # noqa: E402
    SCORE,
    check_with_dciodvfy,
    dump_with_dcmtk,
    findings_of,
    stored_frames,
)
from .dicom_series import AXES, CENTER, SHAPE, write_multi_frame, write_series  # noqa: E402

EVEN = CENTER[2] + 2.5 * np.arange(-6, 7)
UNEVEN = np.delete(CENTER[2] + 1.25 * np.arange(-12, 13), [3, 8, 9, 14])
AXIAL, FEET, TURNED = (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (0, -1, 0, -1, 0, 0)
OBLIQUE = (*hd.spatial.np.cross([0, -1, 0.05], [0, 0.05, 1]), 0, -1, 0)
