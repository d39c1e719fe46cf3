"""A scan and its findings, stored in many ways."""

from lesion_d2.scans import read_scan

import numpy as np
import pytest


@pytest.fixture(
    scope="session",
    params=["axial", "feet first", "turned", "oblique", "tilted", "multi-frame", "resampled"],
)
def layout(request, tmp_path_factory):
    """A name, a folder of DICOM files, their scan and its findings, for many ways to store one."""
    pytest.importorskip("highdicom")
    from dicom_results import findings_of
    from dicom_series import CENTER, write_multi_frame, write_series

    folder = tmp_path_factory.mktemp("series") / "ct"
    turned = (0, -1, 0, -1, 0, 0)  # rows lead to anterior, columns to the right
    match request.param:
        case "axial":
            write_series(folder)
        case "feet first":
            write_series(folder, (-1, 0, 0, 0, 1, 0))
        case "turned":
            write_series(folder, turned)
        case "oblique":
            write_series(folder, (0.96, 0.28, 0, -0.28, 0.96, 0))
        case "tilted":
            write_series(folder, tilt=0.2)
        case "multi-frame":
            write_multi_frame(folder / "all.dcm", turned, CENTER[2] + 2.5 * np.arange(5, -6, -1))
        case "resampled":
            heights = CENTER[2] + 1.25 * np.arange(-7, 8)
            write_series(folder, turned, heights=np.delete(heights, [2, 5, 9]))
    scan = read_scan(folder)
    return request.param, folder, scan, findings_of(scan)


@pytest.fixture(scope="session")
def report(layout, tmp_path_factory):
    """The report of a layout's findings, as highdicom reads it, and its file."""
    from lesion_d2.findings.dicom import write_structured_report

    import highdicom

    _, _, scan, findings = layout
    file = tmp_path_factory.mktemp("sr") / "report.dcm"
    write_structured_report(file, scan, findings)
    return highdicom.sr.srread(file), file


@pytest.fixture(scope="session")
def segmentation(layout, tmp_path_factory):
    """The segmentation of a layout's findings, as highdicom reads it, and its file."""
    from lesion_d2.findings.dicom import write_segmentation

    import highdicom

    _, _, scan, findings = layout
    file = tmp_path_factory.mktemp("seg") / "seg.dcm"
    write_segmentation(file, scan, findings)
    return highdicom.seg.segread(file), file
