"""Findings that tests write, read and measure."""

from lesion_d2.findings import (
    Algorithm,
    Diameter,
    Finding,
    Findings,
    OperatingPoint,
    SliceFinding,
    encode_mask,
)

import numpy as np
import pytest


@pytest.fixture
def made_up_findings() -> Findings:
    """One finding with masks on two slices of a scan of 5 x 20 x 30 voxels."""
    mask = np.zeros((20, 30), bool)
    mask[4:9, 10:20] = True
    slices = tuple(
        SliceFinding(
            slice_index=z,
            box=(9.5, 3.5, 19.5, 8.5),
            score=score,
            mask=encode_mask(mask),
            file=f"series/{z}.dcm",
            sop_instance_uid=f"1.2.{z}",
        )
        for z, score in ((2, 0.75), (3, 0.5))
    )
    finding = Finding(
        number=1,
        score=0.75,
        category="lesion",
        category_id=0,
        box=(9.5, 3.5, 2.0, 19.5, 8.5, 3.0),
        box_mm=((-7.6, -27.2, -23.0), (0.4, -23.2, -13.0)),
        key_slice=2,
        slices=slices,
        volume_mm3=320.0,
        long_diameter=Diameter(8.0, 2, ((9.5, 6.0), (19.5, 6.0))),
        short_diameter=Diameter(4.0, 2, ((14.0, 3.5), (14.0, 8.5))),
        measured_on="mask",
    )
    return Findings(
        scan_name="CT_<b>ä",
        shape=(5, 20, 30),
        spacing=(0.8, 0.8, 5.0),
        origin=(-15.2, -30.0, -5.5),
        direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
        findings=(finding,),
        algorithm=Algorithm(version="0.1.0", weights="model.pth", weights_sha256="a" * 64),
        operating_point=OperatingPoint(0.4, 0.5, "image", "phantom_test"),
        messages=("2 slices missing",),
    )
