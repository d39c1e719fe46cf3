"""A small scan with findings, its report, and a browser that opens it."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from lesion_d2.findings import (
    Algorithm,
    Diameter,
    Finding,
    Findings,
    OperatingPoint,
    SliceFinding,
    encode_mask,
)
from lesion_d2.findings.report import write_report
from lesion_d2.scans import Scan, SliceSource

import numpy as np
import pytest

DEPTH, HEIGHT, WIDTH = 12, 48, 64
SPACING = (0.8, 1.2, 5.0)  # anisotropic: the image is 51.2 mm wide and 57.6 mm high
DIRECTION = np.diag([1.0, 1.0, -1.0])


@pytest.fixture(scope="session")
def small_scan() -> Scan:
    """12 slices of 48 x 64 pixels, of HU over and beyond the range that a report holds."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(-1100, 3200, WIDTH) + 40 * np.arange(DEPTH)[:, None, None]
    volume = (ramp + rng.normal(0, 30, (DEPTH, HEIGHT, WIDTH))).astype(np.int16)
    return Scan(
        name="phantom_1",
        volume=volume,
        spacing=SPACING,
        origin=np.array([-20.0, -30.0, 100.0]),
        direction=DIRECTION,
        sources=tuple(SliceSource(f"{z}.dcm") for z in range(DEPTH)),
        format="nifti",
    )


def make_finding(number: int, score: float, key_slice: int, box: tuple, reach: int = 1) -> Finding:
    """A finding with an ellipse for a mask, on its key slice and ``reach`` to each side."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    center = ((x1 + x2) / 2, (y1 + y2) / 2)
    radii = ((x2 - x1) / 2 - 2, (y2 - y1) / 2 - 2)
    mask = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 <= 1
    slices = range(key_slice - reach, key_slice + reach + 1)
    return Finding(
        number=number,
        score=score,
        category="lesion",
        category_id=0,
        box=(x1, y1, slices[0], x2, y2, slices[-1]),
        box_mm=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        key_slice=key_slice,
        slices=tuple(SliceFinding(z, box, score, encode_mask(mask)) for z in slices),
        volume_mm3=1234.5,
        long_diameter=Diameter(12.0, key_slice, ((center[0], y1 + 3), (center[0], y2 - 3))),
        short_diameter=Diameter(8.0, key_slice, ((x1 + 3, center[1]), (x2 - 3, center[1]))),
        measured_on="mask",
    )


@pytest.fixture(scope="session")
def small_findings() -> Findings:
    """Three findings of ``small_scan``."""
    return Findings(
        scan_name="phantom_1",
        shape=(DEPTH, HEIGHT, WIDTH),
        spacing=SPACING,
        origin=(-20.0, -30.0, 100.0),
        direction=tuple(map(tuple, DIRECTION.tolist())),
        findings=(
            make_finding(1, 0.9, 8, (10.0, 8.0, 29.0, 27.0)),
            make_finding(2, 0.6, 3, (30.0, 20.0, 50.0, 40.0)),
            make_finding(3, 0.345, 9, (40.0, 10.0, 54.0, 22.0)),
        ),
        algorithm=Algorithm(
            version="0.1.0",
            config_file="/home/somebody/configs/retina_unet.yaml",
            meta_architecture="RetinaUNet",
            weights="/home/somebody/model_best.pth",
            weights_sha256="ab" * 32,
        ),
        operating_point=OperatingPoint(0.3, 0.5, "image", "phantom_test"),
    )


@pytest.fixture(scope="session")
def report_file(
    small_scan: Scan, small_findings: Findings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The report of ``small_scan``, under a name that has to be quoted in a URL."""
    file = tmp_path_factory.mktemp("report") / "a report #1.html"
    name = "<script>document.title = 'run'</script>"
    write_report(file, dataclasses.replace(small_scan, name=name), small_findings)
    return file


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """One headless Chromium for all tests, with nothing to reach but files."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs):
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--window-size=1280,800",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs[1])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def viewer(chromium, report_file: Path) -> Iterator:
    """The report of ``small_scan``, open; the browser must not have complained at the end."""
    from open_report import Viewer  # needs selenium

    yield Viewer(chromium, report_file)
    assert chromium.get_log("browser") == []
