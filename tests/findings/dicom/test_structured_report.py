"""DICOM SR: read back by highdicom, checked by dicom3tools, printed by dcmtk."""

import re
import warnings
from dataclasses import replace

from lesion_d2.scans import read_scan

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from lesion_d2.findings.dicom import write_structured_report  # noqa: E402
from lesion_d2.findings.dicom.source import DicomSource  # noqa: E402

from dicom_results import (  # noqa: E402
    SCORE,
    check_with_dciodvfy,
    dump_with_dcmtk,
    findings_of,
    stored_frames,
)
from dicom_series import AXES, CENTER, SHAPE, inside, write_series  # noqa: E402
from pydicom.sr.codedict import codes  # noqa: E402


def values_of(group) -> dict[str, tuple[float, str, str | None]]:
    """Name -> value, unit and method of a group's measurements."""
    found = {}
    for measurement in group.get_measurements():
        method = measurement.method
        found[measurement.name.meaning] = (
            measurement.value,
            measurement.unit.value,
            None if method is None else method.value,
        )
    return found


def answers_of(group) -> dict:
    """Name -> value of a group's qualitative evaluations."""
    return {e[0].name.meaning: e[0].value for e in group.get_qualitative_evaluations()}


def test_numbers_are_read_back(layout, report):
    *_, findings = layout
    (finding,) = findings.findings
    (group,) = report[0].content.get_volumetric_roi_measurement_groups()
    assert values_of(group) == {
        "Long axis": (finding.long_diameter.length_mm, "mm", "MASK"),
        "Short axis": (finding.short_diameter.length_mm, "mm", "MASK"),
        "Volume": (finding.volume_mm3, "mm3", "MASK"),
        "Certainty of Finding": (100 * SCORE, "%", None),
    }
    assert group.finding_type == codes.SCT.Lesion
    assert group.finding_category == codes.SCT.MorphologicallyAbnormalStructure
    assert [site.topographical_modifier for site in group.finding_sites] == [None]
    assert group.finding_sites[0].value == codes.SCT.Liver
    assert answers_of(group)["Class of the detector"].meaning == "liver"
    assert group.tracking_identifier == "Finding 1"


def test_the_region_is_what_is_bright_in_the_stored_frames(layout, report):
    name, folder, scan, findings = layout
    (group,) = report[0].content.get_volumetric_roi_measurement_groups()
    if name == "resampled":
        assert "interpolated" in " ".join(scan.messages)
        _check_polygons(group.roi, scan, findings)
        return
    frames = stored_frames(folder)
    expected = {key: pixels for key, (pixels, _) in frames.items() if pixels.any()}
    y, x = np.indices(SHAPE) + 0.5  # centers of pixels, as reports count
    centers = np.column_stack([x.ravel(), y.ravel()])

    for region in group.roi:
        source = region.ContentSequence[0]
        numbers = source.referenced_frame_numbers
        assert (numbers is not None) == (name == "multi-frame")
        key = source.referenced_sop_instance_uid, (numbers or [1])[0]
        found = Polygon(region.value).contains_points(centers).reshape(SHAPE)
        assert np.array_equal(found, expected.pop(key))
        # And in the patient, by highdicom's own geometry.
        position, orientation, spacing = frames[key][1]
        to_patient = hd.spatial.ImageToReferenceTransformer(position, orientation, spacing)
        places = to_patient(region.value)
        assert inside(places, 1.15).all() and not inside(places, 0.8).any()
    assert not expected


def _check_polygons(surface, scan, findings) -> None:
    """Polygons in the patient: on the ellipsoid's surface, at the heights of the scan's slices."""
    heights = []
    for item in surface.graphic_data:
        heights.append(item[0, 2])
        assert (item[:, 2] == item[0, 2]).all()
        assert inside(item, 1.12).all()
        radius = np.sqrt(1 - ((item[0, 2] - CENTER[2]) / AXES[2]) ** 2)
        if radius > 0.6:  # not a tip, which is small
            in_plane = np.hypot(*((item - CENTER) / AXES)[:, :2].T) / radius
            assert (in_plane > 0.75).all()
            assert np.abs(item[:-1, :2].mean(axis=0) - CENTER[:2]).max() < 0.7
    (finding,) = findings.findings
    expected = [scan.to_patient([[0, 0, s.slice_index]])[0, 2] for s in finding.slices]
    np.testing.assert_allclose(heights, expected, atol=1e-3)
    assert surface.frame_of_reference_uid == scan.headers[0].FrameOfReferenceUID
    sources = {
        image.referenced_sop_instance_uid for image in surface.source_images_for_segmentation
    }
    assert sources == {s.sop_instance_uid for s in finding.slices}


def test_other_programs_take_it(report):
    check_with_dciodvfy(report[1])
    printed = dump_with_dcmtk(report[1])
    assert "Comprehensive 3D SR Document" in printed and "UNVERIFIED" in printed
    assert 'NUM:(,,"Volume")' in printed and '"81.25" (%,UCUM,"Percent")' in printed
    # What an algorithm found is no diagnosis, and folders are nobody's business.
    assert not re.search("cancer|malign|neoplasm|tumou?r|metasta|secret", printed, re.IGNORECASE)


def test_who_made_it_and_of_whom(layout, report):
    _, folder, scan, _ = layout
    dataset, file = report
    source = pydicom.dcmread(next(folder.iterdir()))

    for keyword in (
        *("PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID"),
        *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription"),
        "ReferringPhysicianName",
    ):
        assert dataset[keyword].value == source[keyword].value, keyword
    assert str(dataset.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    assert str(pydicom.dcmread(file).PatientName.ideographic) == "山田^太郎"
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    assert (dataset.VerificationFlag, dataset.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert "VerifyingObserverSequence" not in dataset
    assert dataset.SeriesDescription == "lesion_d2 findings, not a diagnosis"

    (context,) = dataset.content.get_observer_contexts()
    assert context.observer_type == codes.DCM.Device
    assert context.observer_identifying_attributes.name == "lesion_d2"

    said = dataset.to_json()
    assert "0.1.0" in said and "weights=model_best.pth" in said and "score_threshold=0.4" in said
    # The evidence is all images that were looked at, and nothing else.
    evidence = {instance for _, _, instance, _ in dataset.get_evidence()}
    assert evidence == {header.SOPInstanceUID for header in scan.headers}


def test_boxes_are_marked_as_an_estimate(tmp_path):
    write_series(tmp_path / "ct", (-1, 0, 0, 0, 1, 0))
    scan = read_scan(tmp_path / "ct")
    findings = findings_of(scan, with_masks=False, category="lesion " * 20 + "\\")
    write_structured_report(tmp_path / "sr.dcm", scan, findings)
    check_with_dciodvfy(tmp_path / "sr.dcm")

    dataset = hd.sr.srread(tmp_path / "sr.dcm")
    (group,) = dataset.content.get_volumetric_roi_measurement_groups()
    values = values_of(group)
    assert values["Volume"] == (findings.findings[0].volume_mm3, "mm3", "BOX")
    assert values["Long axis"][2] == "BOX" and group.finding_sites == []

    frames = stored_frames(tmp_path / "ct")
    for region in group.roi:
        pixels, _ = frames[region.ContentSequence[0].referenced_sop_instance_uid, 1]
        rows, columns = np.nonzero(pixels)
        # The box is 5 pixels wider than the pixels' edges.
        low = np.array([columns.min(), rows.min()]) - 5
        high = np.array([columns.max(), rows.max()]) + 6
        np.testing.assert_allclose(
            [region.value.min(axis=0), region.value.max(axis=0)], [low, high]
        )


@pytest.mark.parametrize("layout", ["multi-frame"], indirect=True)
def test_nothing_found_is_said(layout, tmp_path):
    _, _, scan, findings = layout
    write_structured_report(tmp_path / "sr.dcm", scan, replace(findings, findings=()))
    check_with_dciodvfy(tmp_path / "sr.dcm")
    content = hd.sr.srread(tmp_path / "sr.dcm").content
    assert content.get_volumetric_roi_measurement_groups() == []
    (group,) = content.get_image_measurement_groups()
    answer = answers_of(group)["CAD Processing and Findings Summary"]
    assert answer == codes.DCM.AllAlgorithmsSucceededWithoutFindings


@pytest.mark.parametrize("layout", ["resampled"], indirect=True)
def test_a_single_slice_between_two_images(layout, tmp_path):
    _, _, scan, findings = layout
    source = DicomSource(scan)
    (finding,) = findings.findings
    between = [s for s in finding.slices if not source.is_stored(s.slice_index)]
    assert between and len(between) < len(finding.slices)
    finding = replace(finding, slices=(between[len(between) // 2],))
    write_structured_report(tmp_path / "sr.dcm", scan, replace(findings, findings=(finding,)))
    check_with_dciodvfy(tmp_path / "sr.dcm")
    content = hd.sr.srread(tmp_path / "sr.dcm").content
    (group,) = content.get_planar_roi_measurement_groups()
    assert inside(group.roi.value, 1.05).all()


@pytest.mark.parametrize("layout", ["axial"], indirect=True)
def test_findings_that_are_alike_are_tracked_apart(layout, tmp_path):
    *_, scan, findings = layout
    (finding,) = findings.findings
    findings = replace(findings, findings=(finding, replace(finding, number=2)))
    write_structured_report(tmp_path / "sr.dcm", scan, findings)
    groups = hd.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["Finding 1", "Finding 2"]
    assert len({group.tracking_uid for group in groups}) == 2


def test_missing_and_invalid_attributes(tmp_path):
    write_series(
        tmp_path / "ct",
        PatientID="",
        PatientName=None,
        PatientBirthDate=None,
        PatientSex=None,
        PatientAge=None,
        StudyID=None,
        StudyDate=None,
        StudyTime=None,
        AccessionNumber=None,
        ReferringPhysicianName=None,
        FrameOfReferenceUID=None,
        PositionReferenceIndicator=None,
        SpecificCharacterSet=None,
    )
    scan = read_scan(tmp_path / "ct")
    findings = findings_of(scan)
    write_structured_report(tmp_path / "sr.dcm", scan, findings)
    check_with_dciodvfy(tmp_path / "sr.dcm")

    dataset = pydicom.dcmread(tmp_path / "sr.dcm")
    assert dataset.PatientID == "" and dataset.StudyInstanceUID == scan.headers[0].StudyInstanceUID
    for header in scan.headers:  # what scanners and archives write that DICOM does not allow
        header[pydicom.tag.Tag("PatientAge")] = _raw("PatientAge", "AS", b"61")
        header[pydicom.tag.Tag("StudyDate")] = _raw("StudyDate", "DA", b"2 Jan 24")
        header[pydicom.tag.Tag("PatientSex")] = _raw("PatientSex", "CS", b"X ")
        header[pydicom.tag.Tag("StudyTime")] = _raw("StudyTime", "TM", b"noon")
        header[pydicom.tag.Tag("PatientID")] = _raw("PatientID", "LO", b"7" * 80)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nobody needs pydicom's on each value
        write_structured_report(tmp_path / "sr.dcm", scan, findings)
    dataset = pydicom.dcmread(tmp_path / "sr.dcm")

    with pytest.warns(UserWarning, match="exceeds the maximum length of 64"):
        assert dataset.PatientID == "7" * 80  # archives go by it
    assert dataset.StudyDate == "" and dataset.PatientSex == "" and "PatientAge" not in dataset


def _raw(keyword: str, vr: str, value: bytes) -> pydicom.dataelem.RawDataElement:
    tag = pydicom.tag.Tag(keyword)
    return pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)


@pytest.mark.parametrize("layout", ["axial"], indirect=True)
def test_what_no_report_can_be_made_of(layout, tmp_path):
    _, _, scan, findings = layout
    with pytest.raises(ValueError, match="found a scan of nifti, expected DICOM"):
        write_structured_report(
            tmp_path / "sr.dcm", replace(scan, headers=None, format="nifti"), findings
        )

    header = pydicom.Dataset()
    header.update(scan.headers[0])
    del header.StudyInstanceUID
    with pytest.raises(ValueError, match="found an image without StudyInstanceUID"):
        write_structured_report(
            tmp_path / "sr.dcm", replace(scan, headers=(header, *scan.headers[1:])), findings
        )

    uid = scan.headers[1].SOPInstanceUID
    header.update(scan.headers[0])
    header.SOPInstanceUID = uid
    with pytest.raises(ValueError, match=rf"found the SOP Instance UID {uid} in .*\.dcm and in"):
        write_structured_report(
            tmp_path / "sr.dcm", replace(scan, headers=(header, *scan.headers[1:])), findings
        )
    assert not list(tmp_path.iterdir())
