"""Multi-frame files: Enhanced CT."""

import tracemalloc
import zipfile
from pathlib import Path

from lesion_d2.scans import find_scans, read_scan

import numpy as np
import pydicom
import pytest
from made_up_scans import ORIGIN, SPACING, make_volume, write_series
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate


def group(**sequences) -> Dataset:
    """A functional group: sequences of one item each."""
    item = Dataset()
    for name, values in sequences.items():
        inner = Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        setattr(item, f"{name}Sequence", [inner])
    return item


def write_enhanced(
    file: Path, volume: np.ndarray, order=None, syntax=uid.ExplicitVRLittleEndian, **changes
) -> Path:
    """Frames in any order, each with its place and slope."""
    order = list(range(len(volume))) if order is None else order
    source = write_series(file.parent / "single", volume[:1])[0]
    dataset = pydicom.dcmread(source)
    source.unlink()
    source.parent.rmdir()
    dataset.SOPClassUID = uid.EnhancedCTImageStorage
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.NumberOfFrames = len(order)
    position = dataset.ImagePositionPatient
    dataset.SharedFunctionalGroupsSequence = [
        group(
            PixelMeasures={"PixelSpacing": [SPACING[1], SPACING[0]], "SliceThickness": SPACING[2]},
            PlaneOrientation={"ImageOrientationPatient": dataset.ImageOrientationPatient},
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePosition={
                "ImagePositionPatient": [*position[:2], float(ORIGIN[2] - SPACING[2] * index)]
            },
            PixelValueTransformation={
                "RescaleIntercept": -index,
                "RescaleSlope": 1,
                "RescaleType": "HU",
            },
            FrameContent={"FrameAcquisitionNumber": 1, "StackID": "1"},
        )
        for index in order
    ]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del dataset[keyword]
    for keyword in ("RescaleIntercept", "RescaleSlope", "RescaleType", "SliceThickness"):
        del dataset[keyword]
    frames = [(volume[index] + index).astype(np.int16) for index in order]
    if syntax.is_encapsulated:
        dataset.PixelData = encapsulate([_compressed(dataset, frame, syntax) for frame in frames])
        dataset["PixelData"].is_undefined_length = True
    else:
        dataset.PixelData = np.stack(frames).tobytes()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file, enforce_file_format=True)
    return file


def _compressed(dataset: Dataset, frame: np.ndarray, syntax) -> bytes:
    single = Dataset()
    single.file_meta = pydicom.dataset.FileMetaDataset()
    single.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    for element in dataset.group_dataset(0x0028):
        single[element.tag] = element
    del single.NumberOfFrames
    single.SOPClassUID, single.SOPInstanceUID = uid.CTImageStorage, "1.2"
    single.PixelData = frame.tobytes()
    single.compress(syntax)
    return pydicom.encaps.get_frame(single.PixelData, 0, number_of_frames=1)


SYNTAXES = [
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("zipped", [False, True])
def test_frames_are_sorted_by_their_places(tmp_path, syntax, zipped):
    volume = make_volume()
    order = [3, 0, 6, 2, 5, 1, 4]
    file = write_enhanced(tmp_path / "ct.dcm", volume, order, syntax)
    path = file
    if zipped:
        path = tmp_path / "ct.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(file, "some/ct.dcm")
    scan = read_scan(path)
    assert (scan.volume == volume).all() and scan.spacing == SPACING
    assert scan.origin.tolist() == list(ORIGIN)
    assert [source.frame for source in scan.sources] == [order.index(n) for n in range(7)]
    assert {source.file for source in scan.sources} == {
        f"{path}/some/ct.dcm" if zipped else str(file)
    }
    assert len(scan.headers) == 7 and len(set(map(id, scan.headers))) == 1
    assert "PixelData" not in scan.headers[0]


def test_stacks_and_phases_of_one_file_are_scans_of_their_own(tmp_path):
    volume = make_volume()
    file = write_enhanced(tmp_path / "ct.dcm", volume, [0, 1, 2, 0, 1, 2])
    dataset = pydicom.dcmread(file)
    for index, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item.FrameContentSequence[0].StackID = str(index // 3 + 1)
    dataset.save_as(file)
    found = find_scans([file]).candidates
    assert [candidate.num_slices for candidate in found] == [3, 3]
    assert [[s.frame for s in c.read().sources] for c in found] == [[0, 1, 2], [3, 4, 5]]
    assert found[1].name == f"{found[0].name}_2"


def test_frames_that_are_no_slices_are_told(tmp_path):
    file = write_enhanced(tmp_path / "ct.dcm", make_volume())
    dataset = pydicom.dcmread(file)
    for index in (0, 6):
        dataset.PerFrameFunctionalGroupsSequence[index].CTImageFrameTypeSequence = group(
            CTImageFrameType={"FrameType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]}
        ).CTImageFrameTypeSequence
    dataset.save_as(file)
    found = find_scans(file)
    scan = found.candidates[0].read()
    assert (scan.volume == make_volume()[1:6]).all()
    assert [source.frame for source in scan.sources] == [1, 2, 3, 4, 5]
    (line,) = found.left_out
    assert line.endswith("2 of its 7 frames: found a localizer, expected axial slices")


def test_memory_stays_within_the_volume_and_some_frames(tmp_path):
    volume = np.full((30, 256, 256), -1000, np.int16)
    for syntax in (uid.ExplicitVRLittleEndian, uid.RLELossless):
        read_scan(write_enhanced(tmp_path / "small.dcm", make_volume(), syntax=syntax))  # imports
        file = write_enhanced(tmp_path / "ct.dcm", volume, syntax=syntax)
        tracemalloc.start()
        scan = read_scan(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (scan.volume == -1000).all()
        assert peak < 1.5 * volume.nbytes  # raw frames beside it would be 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NumberOfFrames": 6}, "found the groups of 7 frames, expected 6"),
        ({"NumberOfFrames": 60_000}, "found the groups of 7 frames, expected 60000"),
        ({"PerFrameFunctionalGroupsSequence": []}, "found 7 frames without functional groups"),
        ({"SharedFunctionalGroupsSequence": []}, "found the Pixel Spacing None"),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]}, "found a perfusion map"),
        ({"Rows": 10_000}, "found 7 slices of 16 x 10000 pixels"),
        ({"Rows": 13}, "found a truncated file: 2688 bytes of 2912 of pixels"),
    ],
)
def test_an_invalid_header_is_refused_in_one_line(tmp_path, changes, message):
    file = write_enhanced(tmp_path / "ct.dcm", make_volume(), **changes)
    with pytest.raises(ValueError) as error:
        read_scan(file)
    assert str(error.value).startswith(str(file)) and message in str(error.value)
    assert "\n" not in str(error.value)
