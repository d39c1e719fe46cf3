"""DICOM SEG: read back by highdicom, checked by dicom3tools."""

from dataclasses import replace

from lesion_d2.findings import decode_mask, encode_mask
from lesion_d2.scans import read_scan

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from lesion_d2.findings.dicom import segmentation as segmentation_module  # noqa: E402
from lesion_d2.findings.dicom import write_segmentation  # noqa: E402

from dicom_results import check_with_dciodvfy, findings_of, stored_frames  # noqa: E402
from dicom_series import CENTER, inside, write_multi_frame, write_series  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402


def frames_of(segmentation):
    """(pixels, functional groups) of each frame."""
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    return list(zip(pixels > 0, segmentation.PerFrameFunctionalGroupsSequence, strict=True))


def places_of(segmentation, pixels, group) -> np.ndarray:
    """LPS of the frame's pixels that are set, N x 3."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    transformer = hd.spatial.PixelToReferenceTransformer(
        group.PlanePositionSequence[0].ImagePositionPatient,
        shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        shared.PixelMeasuresSequence[0].PixelSpacing,
    )
    return transformer(np.argwhere(pixels)[:, ::-1])


def test_frames_are_what_is_bright_in_the_stored_ones(layout, segmentation):
    name, folder, scan, findings = layout
    frames = stored_frames(folder)
    expected = {key: pixels for key, (pixels, _) in frames.items() if pixels.any()}
    places, num_stored = [], 0

    for pixels, group in frames_of(segmentation[0]):
        places.append(places_of(segmentation[0], pixels, group))
        if not group.DerivationImageSequence:
            assert name == "resampled"
            continue
        num_stored += 1
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber", 1)
        assert source.SpatialLocationsPreserved == "YES"
        assert np.array_equal(pixels, expected.pop(key))
    assert inside(np.concatenate(places), 1.02).all()

    (finding,) = findings.findings
    count = sum(map(len, places))
    assert count * scan.voxel_volume == pytest.approx(finding.volume_mm3)

    if name == "resampled":
        heights = [scan.to_patient([[0, 0, s.slice_index]])[0, 2] for s in finding.slices]
        found = sorted(points[0, 2] for points in places)
        np.testing.assert_allclose(found, sorted(heights), atol=1e-3)
        assert 0 < num_stored < len(frames_of(segmentation[0])) == len(finding.slices)
    else:
        assert not expected


@pytest.mark.parametrize("parts", ["multi-frame, multi-frame", "single, multi-frame"])
def test_scans_of_several_multi_frame_images(tmp_path, parts):
    heights = np.split(CENTER[2] + 2.5 * np.arange(-4, 5), [5])
    axial, uids = (1, 0, 0, 0, 1, 0), tuple(generate_uid() for _ in range(3))
    for number, part in enumerate(parts.split(", ")):
        if part == "single":
            write_series(tmp_path / "ct", axial, heights=heights[number], uids=uids)
        else:
            write_multi_frame(tmp_path / "ct" / f"part_{number}.dcm", axial, heights[number], uids)
    scan = read_scan(tmp_path / "ct")
    assert len(scan.volume) == 9

    write_segmentation(tmp_path / "seg.dcm", scan, findings_of(scan))
    check_with_dciodvfy(tmp_path / "seg.dcm")
    frames = stored_frames(tmp_path / "ct")
    expected = {key: pixels for key, (pixels, _) in frames.items() if pixels.any()}
    segmentation = hd.seg.segread(tmp_path / "seg.dcm")
    for pixels, group in frames_of(segmentation):
        assert inside(places_of(segmentation, pixels, group), 1.02).all()
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber", 1)
        assert np.array_equal(pixels, expected.pop(key))
    assert not expected

    references = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {one.ReferencedSOPInstanceUID for one in references} == {uid for uid, _ in frames}


def test_it_is_valid_and_tracked(layout, segmentation, report):
    _, folder, *_ = layout
    dataset, file = segmentation
    check_with_dciodvfy(file)

    source = pydicom.dcmread(next(folder.iterdir()))
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert dataset[keyword].value == source[keyword].value
    assert str(dataset.PatientName.ideographic) == "山田^太郎"
    assert dataset.SegmentationType == "BINARY" and dataset.Modality == "SEG"

    (number,) = dataset.segment_numbers
    segment = dataset.get_segment_description(number)
    assert segment.SegmentLabel == "Finding 1: liver"
    assert segment.algorithm_type.value == "AUTOMATIC"
    assert segment.algorithm_identification.name == "lesion_d2"
    assert segment.algorithm_identification.version == "0.1.0"

    (group,) = report[0].content.get_volumetric_roi_measurement_groups()
    assert (segment.tracking_id, segment.tracking_uid) == (
        group.tracking_identifier,
        group.tracking_uid,
    )


@pytest.mark.parametrize("layout", ["turned", "multi-frame"], indirect=True)
def test_findings_that_overlap_keep_their_masks(layout, tmp_path, monkeypatch):
    _, _, scan, findings = layout
    (finding,) = findings.findings
    moved = tuple(
        replace(entry, mask=encode_mask(np.roll(decode_mask(entry.mask), 3, axis=1)))
        for entry in finding.slices[1:4]
    )
    boxed = replace(finding, number=2, measured_on="box")
    third = replace(finding, number=3, slices=moved, category="lung")
    findings = replace(findings, findings=(finding, boxed, third))
    write_segmentation(tmp_path / "seg.dcm", scan, findings)
    check_with_dciodvfy(tmp_path / "seg.dcm")

    dataset = hd.seg.segread(tmp_path / "seg.dcm")
    assert dataset.SegmentsOverlap == "YES"
    labels = [segment.SegmentLabel for segment in dataset.SegmentSequence]

    assert labels == ["Finding 1: liver", "Finding 3: lung"]
    for number, entries in ((1, finding.slices), (2, moved)):
        found = {}
        for pixels, group in frames_of(dataset):
            identification = group.SegmentIdentificationSequence[0]
            if identification.ReferencedSegmentNumber == number:
                height = group.PlanePositionSequence[0].ImagePositionPatient[2]
                found[round(float(height), 2)] = pixels
        assert len(found) == len(entries)
        for entry in entries:
            height = scan.to_patient([[0, 0, entry.slice_index]])[0, 2]
            expected = scan.to_source_slice(decode_mask(entry.mask))
            assert np.array_equal(found[round(float(height), 2)], expected)

    monkeypatch.setattr(segmentation_module, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"found 2 findings on \d+ slices that overlap"):
        write_segmentation(tmp_path / "seg.dcm", scan, findings)


@pytest.mark.parametrize("layout", ["axial"], indirect=True)
def test_without_masks_there_is_none(layout, tmp_path):
    *_, scan, findings = layout
    boxed = tuple(replace(finding, measured_on="box") for finding in findings.findings)
    with pytest.raises(ValueError, match="found no finding with a mask"):
        write_segmentation(tmp_path / "seg.dcm", scan, replace(findings, findings=boxed))
    assert not list(tmp_path.iterdir())


def test_numbers_with_too_many_digits(tmp_path):
    """As some archives write them: more than DICOM's 16, and not the same on all slices."""
    third, axis = "0.33333333333333333333", "0.99999999999999987654"
    for number, file in enumerate(write_series(tmp_path / "ct")):
        dataset = pydicom.dcmread(file)
        height = dataset.ImagePositionPatient[2]
        for keyword, values in (
            ("ImagePositionPatient", (third, third, f"{height:.20f}")),
            ("ImageOrientationPatient", (axis, "0", "0", "0", axis, f"0.{number:018d}")),
            ("PixelSpacing", ("0.90000000000000000123", "0.7")),
        ):
            tag = pydicom.tag.Tag(keyword)
            written = "\\".join(values).encode()
            written += b" " * (len(written) % 2)
            dataset[tag] = pydicom.dataelem.RawDataElement(
                tag, "DS", len(written), written, 0, False, True
            )
        dataset.save_as(file)
    scan = read_scan(tmp_path / "ct")
    assert len(scan.headers[0].get_item("PixelSpacing").value) > 17

    findings = findings_of(scan)
    write_segmentation(tmp_path / "seg.dcm", scan, findings)
    check_with_dciodvfy(tmp_path / "seg.dcm")

    dataset = hd.seg.segread(tmp_path / "seg.dcm")
    assert len(frames_of(dataset)) == len(findings.findings[0].slices)
    source = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    assert source[0].SourceImageSequence[0].SpatialLocationsPreserved == "YES"
