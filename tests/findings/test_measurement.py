"""Findings of linked boxes, against volumes and diameters that are known or counted slowly."""

from dataclasses import replace

from lesion_d2.findings import encode_mask, measure_findings
from lesion_d2.inference import Linker
from lesion_d2.scans import Scan, SliceSource

import numpy as np
import pytest

SPACING = (0.5, 0.8, 3.0)
LINK = Linker("track", {"iou_threshold": 0.1, "max_gap": 0})


@pytest.fixture
def scan() -> Scan:
    angle = np.deg2rad(20)
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    return Scan(
        name="scan",
        volume=np.zeros((9, 50, 60), np.int16),
        spacing=SPACING,
        origin=np.array([-20.0, -10.0, 100.0]),
        direction=np.vstack([turned, [0, 0, -1.0]]),
        sources=tuple(SliceSource("many.dcm", z, f"1.2.{z}") for z in range(9)),
        format="dicom",
    )


def ellipsoid(scan: Scan, center, axes_mm) -> np.ndarray:
    z, y, x = np.indices(scan.volume.shape)
    offsets = (np.stack([x, y, z], axis=-1) - center) * scan.spacing / axes_mm
    return (offsets**2).sum(axis=-1) <= 1


def boxes_of(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes 5 pixels around the voxels of each slice that has some, and the slices."""
    found, slices = [], np.flatnonzero(volume.any(axis=(1, 2)))
    for z in slices:
        rows, columns = np.nonzero(volume[z])
        found.append([columns.min() - 5.5, rows.min() - 5.5, columns.max() + 5.5, rows.max() + 5.5])
    return np.array(found), slices


def test_masks_have_the_volume_and_diameters_of_their_ellipsoid(scan):
    axes = np.array([6.0, 12.0, 9.0])  # mm, half
    volume = ellipsoid(scan, (30, 25, 4), axes)
    boxes, slices = boxes_of(volume)
    scores = np.linspace(0.4, 0.9, len(slices))
    linked = LINK(boxes, scores, slices, np.zeros(len(slices), int))
    (finding,) = measure_findings(
        scan,
        boxes,
        scores,
        slices,
        linked,
        class_names=["lesion"],
        masks=[encode_mask(volume[z]) for z in slices],
    )

    assert (finding.number, finding.category, finding.measured_on) == (1, "lesion", "mask")
    assert finding.score == 0.9 and finding.key_slice == slices[-1]
    assert finding.volume_mm3 == pytest.approx(volume.sum() * 0.5 * 0.8 * 3.0)
    assert finding.volume_mm3 == pytest.approx(4 / 3 * np.pi * axes.prod(), rel=0.03)
    # The longest one is along rows in pixels (48 of 0.5 mm against 30 of 0.8) only on z = 4.
    assert finding.long_diameter.slice_index == finding.short_diameter.slice_index == 4
    assert finding.long_diameter.length_mm == pytest.approx(24, abs=1)
    assert finding.short_diameter.length_mm == pytest.approx(12, abs=0.5)
    for diameter in (finding.long_diameter, finding.short_diameter):
        ends = scan.to_patient(np.array([[*point, 4] for point in diameter.points]))
        assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(diameter.length_mm)
    assert [entry.slice_index for entry in finding.slices] == slices.tolist()
    assert finding.slices[1].sop_instance_uid == f"1.2.{slices[1]}"
    assert (finding.slices[0].file, finding.slices[0].frame) == ("many.dcm", slices[0])
    # The box is the linking's, and lies between its corners in the patient.
    assert finding.box == (*boxes[-1, :2], slices[0], *boxes[-1, 2:], slices[-1])

    x1, y1, z1, x2, y2, z2 = finding.box
    corners = [[x, y, z] for x in (x1, x2) for y in (y1, y2) for z in (z1 - 0.5, z2 + 0.5)]
    places = scan.to_patient(np.array(corners))
    np.testing.assert_allclose(finding.box_mm, [places.min(axis=0), places.max(axis=0)])


def test_boxes_are_measured_as_ellipses_without_their_margin(scan):
    volume = ellipsoid(scan, (30, 25, 4), (6.0, 12.0, 9.0))
    boxes, slices = boxes_of(volume)
    scores = np.full(len(slices), 0.5)
    linked = LINK(boxes, scores, slices, np.zeros(len(slices), int))
    measured = {
        margin: measure_findings(
            scan, boxes, scores, slices, linked, class_names=["lesion"], box_margin=margin
        )[0]
        for margin in (0.0, 5.0, 100.0)
    }
    finding = measured[5.0]

    assert finding.measured_on == "box" and finding.slices[0].mask is None
    assert finding.volume_mm3 == pytest.approx(4 / 3 * np.pi * 6 * 12 * 9, rel=0.1)
    assert finding.long_diameter.length_mm == pytest.approx(24, abs=1)
    assert finding.short_diameter.length_mm == pytest.approx(12, abs=0.5)

    (left, up), (right, down) = finding.long_diameter.points  # along y, through the center
    assert left == right == pytest.approx(30) and down - up == pytest.approx(24.8 / 0.8)
    assert finding.short_diameter.points[0][1] == pytest.approx(25)

    wide = measured[0.0]  # 10 pixels more each way
    assert wide.long_diameter.length_mm == pytest.approx(finding.long_diameter.length_mm + 8)
    # A box within its margin is a pixel, not less than nothing.
    assert measured[100.0].volume_mm3 == pytest.approx(np.pi / 4 * 1.2 * len(slices))
    assert measured[100.0].long_diameter.length_mm == pytest.approx(0.8)

    # Empty masks are none.
    empty = [encode_mask(np.zeros((50, 60), bool))] * len(slices)
    (same,) = measure_findings(
        scan, boxes, scores, slices, linked, class_names=["lesion"], masks=empty
    )
    assert same.measured_on == "box" and same.volume_mm3 == finding.volume_mm3


def test_a_box_of_a_model_of_volumes_is_measured_as_an_ellipsoid_around_its_middle_slice(scan):
    volume = ellipsoid(scan, (30, 25, 4), (6.0, 12.0, 9.0))
    slices = np.flatnonzero(volume.any(axis=(1, 2)))
    z, y, x = (np.flatnonzero(volume.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    box = np.array([x[0] - 0.5, y[0] - 0.5, x[-1] + 0.5, y[-1] + 0.5])
    boxes, scores = np.tile(box, (len(slices), 1)), np.full(len(slices), 0.5)
    whole = np.array([[*box[:2], z[0], *box[2:], z[-1]]])
    linked = whole, np.array([0.5]), np.array([0]), np.zeros(len(slices), int)
    options = {"class_names": ["lesion"], "box_margin": 0.0, "of_volumes": True}
    (finding,) = measure_findings(scan, boxes, scores, slices, linked, **options)
    assert finding.measured_on == "box"

    sides = (box[2:] - box[:2]) * SPACING[:2]
    assert finding.volume_mm3 == pytest.approx(np.pi / 6 * sides.prod() * 3 * len(slices))
    # Slices of 3 mm count as a whole, 7 of them for 18 mm; the cylinder has twice the volume.
    assert finding.volume_mm3 == pytest.approx(volume.sum() * np.prod(SPACING), rel=0.3)
    assert slices[0] < 4 < slices[-1]
    assert finding.key_slice == finding.long_diameter.slice_index == 4

    # With masks the key slice is that of the largest, and the volume theirs.
    masks = [encode_mask(volume[z] if z != 4 else volume[4] & False) for z in slices]
    (finding,) = measure_findings(scan, boxes, scores, slices, linked, masks=masks, **options)
    areas = {z: volume[z].sum() for z in slices if z != 4}
    assert areas[finding.key_slice] == max(areas.values()) and finding.key_slice != 4
    assert finding.volume_mm3 == pytest.approx(sum(areas.values()) * np.prod(SPACING))


def test_boxes_of_slanted_diameters_are_estimates_that_are_too_small(scan):
    scan = replace(scan, spacing=(1.0, 1.0, 3.0))
    ratios = []
    for angle in np.linspace(0, np.pi, 60, endpoint=False):
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        ends = 30 + np.array([20 * along, -20 * along, 15 * across, -15 * across])
        boxes = np.array([[*(ends.min(axis=0) - 5), *(ends.max(axis=0) + 5)]])
        linked = LINK(boxes, np.ones(1), [4], [0])
        (finding,) = measure_findings(scan, boxes, [1.0], [4], linked, class_names=["lesion"])
        area = finding.volume_mm3 / 3
        ratios.append((finding.long_diameter.length_mm / 40, area / (np.pi * 20 * 15)))
    long, areas = np.array(ratios).T
    assert long.max() == pytest.approx(1) and long.min() == pytest.approx(1 / np.sqrt(2))
    assert long.mean() == pytest.approx(0.9, abs=0.005)  # 2 sqrt(2) / pi
    assert areas.mean() == pytest.approx(5 / 6, abs=0.01)


def test_a_tilted_gantry_shears_the_voxels(scan):
    tilt = np.deg2rad(25)
    direction = np.column_stack(
        [[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0.0, 0.0, -1.0]]
    )  # slices are stacked along the table
    tilted = replace(scan, direction=direction)
    mask = np.zeros((50, 60), bool)
    mask[10:20, 10:30] = True
    boxes, slices, classes = np.array([[9.5, 9.5, 29.5, 19.5]] * 3), [2, 3, 4], [0, 0, 0]
    scores = np.array([0.5, 0.6, 0.4])
    (finding,) = measure_findings(
        tilted,
        boxes,
        scores,
        slices,
        LINK(boxes, scores, slices, classes),
        class_names=["lesion"],
        masks=[encode_mask(mask)] * 3,
    )
    assert finding.volume_mm3 == pytest.approx(3 * 200 * np.prod(SPACING) * np.cos(tilt))


def test_classes_order_and_gaps(scan):
    boxes = np.array(
        [[10, 10, 30, 30], [40, 10, 58, 30], [11, 10, 31, 30], [10, 11, 30, 31]], float
    )
    scores, slices, classes = np.array([0.3, 0.8, 0.5, 0.4]), [1, 1, 2, 4], [1, 0, 1, 1]
    link = Linker("track", {"iou_threshold": 0.3, "max_gap": 1})
    findings = measure_findings(
        scan,
        boxes,
        scores,
        slices,
        link(boxes, scores, slices, classes),
        class_names=["lung", "liver"],
    )

    assert [(f.number, f.score, f.category, f.category_id) for f in findings] == [
        (1, 0.8, "lung", 0),
        (2, 0.5, "liver", 1),
    ]
    assert findings[1].key_slice == 2 and findings[1].box[2::3] == (1, 4)
    assert [s.slice_index for s in findings[1].slices] == [1, 2, 4]

    areas = 3 * 10 * 10  # two sides of 10 pixels within the margin, on three slices
    assert findings[1].volume_mm3 == pytest.approx(np.pi / 4 * areas * np.prod(SPACING))


def test_no_detections_are_no_findings(scan):
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    linked = LINK(*nothing, np.zeros(0, int))
    assert measure_findings(scan, *nothing, linked, class_names=["lesion"]) == ()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"slice_ids": [9]}, "scan: found a box on slice 9, expected 0 to 8"),
        ({"scores": [0.5, 0.4]}, "expected as many of each"),
        ({"class_names": []}, "found class 0"),
        ({"masks": [{"size": [60, 50], "counts": ""}]}, r"a mask of \[60, 50\] pixels"),
    ],
)
def test_what_does_not_fit_is_refused(scan, change, message):
    boxes, scores = np.array([[10.0, 10, 30, 30]]), np.array([0.5])
    arguments = {
        "boxes": boxes,
        "scores": scores,
        "slice_ids": [1],
        "linked": LINK(boxes, scores, [1], [0]),
        "class_names": ["lesion"],
    }
    with pytest.raises(ValueError, match=message):
        measure_findings(scan, **{**arguments, **change})
