"""Segmentations that highdicom writes, and structure sets that pydicom does."""

import pickle
import zipfile
from pathlib import Path

from lesion_d2.importers.dicom.listing import list_cases, list_dicom
from lesion_d2.importers.running import run_import
from lesion_d2.structures.rle import decode_mask
from lesion_d2.tools.import_data import get_parser

import numpy as np
import pytest
from round_trip import check_trains_and_evaluates
from skimage.measure import find_contours

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from made_up_scans import make_volume, write_series  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sr.codedict import codes  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

SHAPE, SPACING, ORIGIN = (6, 24, 32), (0.7, 0.9, 2.5), (-30.5, 12.25, 100.0)
FLIPPED = np.array([[-1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
_Z, _Y, _X = np.indices(SHAPE)
# Two that touch, in rows and columns of the stored images; the first has a hole on slice 2.
FIRST = (np.hypot(_X - 9, _Y - 10) < 5) & (np.abs(_Z - 2) < 2)
FIRST &= ~((np.abs(_X - 9) < 2) & (np.abs(_Y - 10) < 2) & (_Z == 2))
SECOND = (_X > 13) & (_X < 20) & (_Y > 6) & (_Y < 14) & (_Z > 1) & (_Z < 4)
ORGAN = (_X > 22) & (_Y > 3)
REGIONS = {"Lesion 1": FIRST, "lesion 2": SECOND, "Liver": ORGAN}


def write_segmentation(file: Path, series, regions: dict[str, np.ndarray], **options) -> Path:
    images = [pydicom.dcmread(path) for path in series]
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type="MANUAL",
        )
        for number, label in enumerate(regions, start=1)
    ]
    options = {"segmentation_type": "BINARY", **options}
    hd.seg.Segmentation(
        source_images=images,
        pixel_array=np.stack(list(regions.values()), axis=-1).astype(np.uint8),
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="a",
        manufacturer_model_name="a",
        software_versions="1",
        device_serial_number="1",
        **options,
    ).save_as(file)
    return file


def write_structure_set(file: Path, series, regions: dict[str, np.ndarray]) -> Path:
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in series]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.StudyInstanceUID = images[0].StudyInstanceUID
    dataset.Modality, dataset.PatientID = "RTSTRUCT", images[0].PatientID
    dataset.ReferencedFrameOfReferenceSequence = [
        item(
            FrameOfReferenceUID=images[0].FrameOfReferenceUID,
            RTReferencedStudySequence=[
                item(
                    RTReferencedSeriesSequence=[item(SeriesInstanceUID=images[0].SeriesInstanceUID)]
                )
            ],
        )
    ]
    dataset.StructureSetROISequence = [
        item(ROINumber=number, ROIName=name) for number, name in enumerate(regions, start=1)
    ]
    dataset.ROIContourSequence = [
        item(ReferencedROINumber=number, ContourSequence=contours(images, mask))
        for number, mask in enumerate(regions.values(), start=1)
    ]
    dataset.save_as(file, enforce_file_format=True)
    return file


def item(**values) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def contours(images, mask: np.ndarray) -> list[Dataset]:
    """Outlines halfway between pixels, of holes too."""
    found = []
    for image, on_slice in zip(images, mask, strict=True):
        for line in find_contours(np.pad(on_slice, 1).astype(float), 0.5):
            points = stored_to_patient(image, *(line[:-1] - 1).T[::-1])
            data = [f"{number:.4f}" for number in points.ravel()]
            found.append(
                item(
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=data,
                )
            )
    return found


def stored_to_patient(image, columns, rows) -> np.ndarray:
    """(N, 3) LPS of columns and rows of a stored image, by the formula of the standard."""
    along_row, along_column = np.reshape(np.array(image.ImageOrientationPatient, float), (2, 3))
    between_rows, between_columns = map(float, image.PixelSpacing)
    return (
        np.array(image.ImagePositionPatient, float)
        + np.outer(columns, along_row) * between_columns
        + np.outer(rows, along_column) * between_rows
    )


def volume_mask(volume, lesion) -> np.ndarray:
    mask = np.zeros(volume.shape, bool)
    for number, counts in lesion.masks.items():
        mask[number] = decode_mask({"size": volume.shape[1:], "counts": counts})
    return mask


def check_lesion(volume, lesion, series, mask: np.ndarray) -> None:
    """The lesion's voxels are those of the mask, place by place in the patient."""
    expected = np.concatenate(
        [
            stored_to_patient(
                pydicom.dcmread(file, stop_before_pixels=True), *np.nonzero(part)[::-1]
            )
            for file, part in zip(series, mask, strict=True)
        ]
    )
    found = volume.to_patient(np.argwhere(volume_mask(volume, lesion))[:, ::-1])
    assert len(found) == len(expected)
    distances = np.abs(found[:, None] - expected).max(axis=2)
    assert distances.min(axis=1).max() < 1e-3


def scan(folder: Path, patient: str = "one", **options):
    options = {"spacing": SPACING, "origin": ORIGIN, "direction": FLIPPED, **options}
    return write_series(folder, make_volume(SHAPE), patient=patient, **options)


WRITERS = pytest.mark.parametrize("write", [write_segmentation, write_structure_set])


@WRITERS
def test_regions_are_lesions_in_their_place(tmp_path, write):
    series = scan(tmp_path / "ct")
    write(tmp_path / "regions.dcm", series, REGIONS)
    listing = list_dicom(tmp_path, {"lesion": "lesion"})
    assert not listing.damaged
    (line,) = listing.left_out
    assert line == f"{tmp_path / 'regions.dcm'}: no --roi matches the regions 'Liver'"
    (case,) = pickle.loads(pickle.dumps(listing.cases))
    assert (case.name, case.patient) == ("one", "one") and len(case.sources) == SHAPE[0] + 1
    imported = case.read()
    volume = imported.volume
    for lesion, (name, mask) in zip(volume.lesions, list(REGIONS.items())[:2], strict=True):
        check_lesion(volume, lesion, series, mask)
        assert lesion.attributes == {"region": name} and lesion.category == 0


def test_it_trains_and_evaluates(tmp_path):
    write_segmentation(tmp_path / "a.dcm", scan(tmp_path / "one"), REGIONS)
    empty = scan(tmp_path / "two", patient="two")
    write_structure_set(tmp_path / "b.dcm", empty, {"Liver": ORGAN})
    listing = list_dicom(tmp_path, {"lesion": "lesion"})
    assert run_import(listing, tmp_path / "found", format="dicom", workers=1).written
    volume_set = check_trains_and_evaluates(tmp_path / "found", tmp_path)
    assert [len(volume.lesions) for volume in volume_set.volumes] == [2, 0]


def test_label_maps_and_components(tmp_path):
    series = scan(tmp_path / "ct")
    apart = (_X > 20) & (_X < 24) & (_Y < 4) & (_Z == 5)
    regions = {"lesions": FIRST | apart, "rest": SECOND}
    write_segmentation(tmp_path / "seg.dcm", series, regions, segmentation_type="LABELMAP")
    (case,) = list_dicom(tmp_path, {"rest": "rest", "lesion": "les"}, components=True).cases
    volume = case.read().volume
    assert [lesion.category for lesion in volume.lesions] == [1, 1, 0]
    found = sorted(volume.lesions, key=lambda lesion: volume_mask(volume, lesion).sum())
    for lesion, mask in zip(found, (apart, SECOND, FIRST), strict=True):
        check_lesion(volume, lesion, series, mask)


@WRITERS
def test_regions_of_organs_alone_make_an_empty_case(tmp_path, write):
    series = scan(tmp_path / "ct")
    write(tmp_path / "regions.dcm", series, {"Liver": ORGAN})
    listing = list_dicom(tmp_path, {"lesion": "lesion"})
    assert listing.cases[0].read().volume.lesions == ()


def test_links_are_followed_and_archives_are_told(tmp_path):
    series = scan(tmp_path / "source" / "ct")
    (tmp_path / "elsewhere").mkdir()
    file = write_segmentation(tmp_path / "elsewhere" / "regions.dcm", series, {"lesion": FIRST})
    (tmp_path / "source" / "regions").symlink_to(tmp_path / "elsewhere")
    listing = list_dicom(tmp_path / "source", {"lesion": "lesion"})
    assert listing.cases[0].sources[-1] == f"{tmp_path}/source/regions/regions.dcm"
    archive = tmp_path / "source" / "regions.ZIP"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.write(file, "regions.dcm")
        opened.write(series[0], "1.dcm")
    file.unlink()
    listing = list_dicom(tmp_path / "source", {"lesion": "lesion"})
    assert not listing.cases
    assert f"{archive}: found an archive, expected a folder; unpack it" in listing.left_out


def test_what_does_not_belong_together_is_told(tmp_path):
    series = scan(tmp_path / "other")
    write_structure_set(tmp_path / "regions.dcm", series, REGIONS)
    for file in series:
        file.unlink()
    scan(tmp_path / "ct", patient="two")
    listing = list_dicom(tmp_path, {"lesion": "lesion"})
    assert not listing.cases and not listing.damaged
    told = "\n".join(listing.left_out)
    assert "regions.dcm: found no CT series that it refers to" in told
    assert "found no segmentation or structure set of it" in told
    (case,) = list_dicom(tmp_path, {"lesion": "lesion"}, with_unannotated=True).cases
    assert case.patient == "two" and case.read().volume.lesions == ()


def refusal(root: Path) -> str:
    """What the one case is refused with."""
    (case,) = list_dicom(root, {"lesion": "lesion"}).cases
    with pytest.raises(ValueError) as error:
        case.read()
    text = str(error.value)
    assert text.startswith(f"{root / 'regions.dcm'}: ") and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1.0", "2.0", "3.0", "4.0"], "found a contour of 4 numbers, expected x, y, z"),
        (
            ["0", "0", "98.7", "1", "0", "98.7", "1", "1", "98.7"],
            "from slice 0.52 to 0.52, expected",
        ),
        (
            ["0", "0", "9", "1", "0", "9", "1", "1", "9"],
            "expected it on one of the scan's 6 slices",
        ),
    ],
)
def test_contours_off_the_slices_are_told_in_one_line(tmp_path, values, message):
    file = write_structure_set(tmp_path / "regions.dcm", scan(tmp_path / "ct"), REGIONS)
    dataset = pydicom.dcmread(file)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData = values
    dataset.save_as(file)
    text = refusal(tmp_path)
    assert "region 'Lesion 1'" in text and message in text


def test_segmentations_on_another_grid_are_told_in_one_line(tmp_path):
    series = scan(tmp_path / "ct")
    file = write_segmentation(tmp_path / "regions.dcm", series, REGIONS)
    dataset = pydicom.dcmread(file)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = ["1.8", "1.4"]
    dataset.save_as(file)
    assert "with voxels of 1.4 x 1.8 x 2.5 mm on another grid" in refusal(tmp_path)


def test_segmentations_that_would_fill_the_memory_are_told_in_one_line(tmp_path):
    file = write_segmentation(tmp_path / "regions.dcm", scan(tmp_path / "ct"), REGIONS)
    dataset = pydicom.dcmread(file)
    plane = dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    plane.ImagePositionPatient[2] += 2.5 * 100_000
    dataset.save_as(file)
    found = refusal(tmp_path).partition(": ")[2]
    assert found.startswith("found a segmentation of 10000") and "expected 6 x 24 x 32" in found


def test_fractional_and_truncated_segmentations_are_told_in_one_line(tmp_path):
    series = scan(tmp_path / "ct")
    file = tmp_path / "regions.dcm"
    write_segmentation(file, series, {"lesion": FIRST}, segmentation_type="FRACTIONAL")
    assert "found a FRACTIONAL segmentation, expected BINARY or LABELMAP" in refusal(tmp_path)
    write_segmentation(file, series, REGIONS)
    file.write_bytes(file.read_bytes()[:-1000])
    refusal(tmp_path)


def test_damaged_files_of_regions_are_told_in_one_line(tmp_path):
    file = write_structure_set(tmp_path / "regions.dcm", scan(tmp_path / "ct"), REGIONS)
    dataset = pydicom.dcmread(file)
    del dataset.StructureSetROISequence[0].ROINumber
    dataset.save_as(file)
    (line,) = list_dicom(tmp_path, {"lesion": "lesion"}).damaged
    assert line.startswith(f"{file}: found a damaged file of regions (") and "\n" not in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\x06\x30\x20\x00SQ", b"\x06\x30\x20\x00UJ", "Unknown Value Representation"),
        (
            b"5.1.4.1.1.481.3",
            b"5.1.4.1.1.481.4",
            "RTSTRUCT with the unsupported SOP class 1.2.840.",
        ),
    ],
)
def test_bytes_that_are_none_of_dicom_are_told_in_one_line(tmp_path, old, new, message):
    file = write_structure_set(tmp_path / "regions.dcm", scan(tmp_path / "ct"), REGIONS)
    file.write_bytes(file.read_bytes().replace(old, new))
    (line,) = list_dicom(tmp_path, {"lesion": "lesion"}).damaged
    assert line.startswith(f"{file}: found a damaged file of regions (") and message in line


def test_contours_that_are_none_of_dicom_are_told_in_one_line(tmp_path):
    file = write_structure_set(tmp_path / "regions.dcm", scan(tmp_path / "ct"), REGIONS)
    file.write_bytes(file.read_bytes().replace(b"\x06\x30\x50\x00DS", b"\x06\x30\x50\x00UJ"))
    assert "Unknown Value Representation" in refusal(tmp_path)


def test_a_series_without_a_patient_that_can_be_read_is_one_of_its_own(tmp_path):
    series = scan(tmp_path)
    file = series[0]
    file.write_bytes(file.read_bytes().replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00LJ"))
    (case,) = list_dicom(tmp_path, {"lesion": "lesion"}, with_unannotated=True).cases
    assert case.patient == pydicom.dcmread(series[1]).SeriesInstanceUID


def test_classes_and_patterns_of_the_command(tmp_path):
    write_structure_set(tmp_path / "regions.dcm", scan(tmp_path / "ct"), REGIONS)
    command = ["dicom", str(tmp_path), "--output", str(tmp_path / "out")]
    args = get_parser().parse_args(
        [*command, "--roi", "small one=2$", "--roi", "lesion", "--roi", "^liv"]
    )
    listing = list_cases(args)
    assert listing.classes == ("small one", "lesion")
    lesions = listing.cases[0].read().volume.lesions
    assert [lesion.category for lesion in lesions] == [1, 0, 1]
    for wrong, message in (("(", "expected a regular expression"), ("", "found '', expected")):
        with pytest.raises(ValueError) as error:
            list_cases(get_parser().parse_args([*command, "--roi", wrong]))
        assert message in str(error.value)
