"""Which scans are in a folder or an archive, and why others are not."""

import os
import zipfile
from pathlib import Path

from lesion_d2.scans import find_scans, read_scan

import numpy as np
import pydicom
import pytest
from made_up_scans import SPACING, change, make_volume, set_values, write_series
from pydicom import uid


def left_out(path: Path, **options) -> str:
    found = find_scans([path], **options)
    assert not found.candidates
    (line,) = found.left_out
    assert line.startswith(str(path)) and "\n" not in line
    return line


def zip_of(folder: Path, archive: Path, **options) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(folder.rglob("*")):
            opened.write(file, f"any/name/{file.relative_to(folder)}")
    return archive


def test_a_folder_of_many_series_and_other_files(tmp_path):
    top = tmp_path / "patients"
    volumes = [make_volume(seed=seed) for seed in range(3)]
    for number, volume in enumerate(volumes):
        write_series(top / "a" / f"s{number}", volume, series_number=9 + number)
    mr = write_series(top / "b" / "mr", volumes[0], patient="b")
    change(mr, set_values(Modality="MR"))
    (top / "notes.bin").write_bytes(b"nothing")
    (top / ".hidden.dcm").write_bytes(mr[0].read_bytes())
    found = find_scans([top])

    assert [c.name.rpartition("_")[0] for c in found.candidates] == [
        "patients_9",
        "patients_10",
        "patients_11",
    ]
    for candidate, volume in zip(found.candidates, volumes, strict=True):
        assert candidate.num_slices == 7 and candidate.format == "dicom"
        assert (candidate.read().volume == volume).all()
    assert len(found.left_out) == 2
    assert "0000.dcm and 6 more (series 1, " in found.left_out[0]
    assert found.left_out[0].endswith("found the modality 'MR', expected CT")
    assert found.damaged == ()
    assert "notes.bin: found other files, expected DICOM, NIfTI" in found.left_out[1]
    with pytest.raises(ValueError, match=r"patients: found 3 scans, expected one: patients_9_"):
        read_scan(top)

    chosen = found.candidates[1]
    for series in (chosen.series_uid, chosen.name):
        assert (read_scan(top, series=series).volume == volumes[1]).all()
    with pytest.raises(ValueError, match=r"found 0 scans, expected one of series '1\.2': pat"):
        read_scan(top, series="1.2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Modality": "PT"}, "found the modality 'PT', expected CT"),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, "found a secondary capture"),
        ({"SOPClassUID": uid.XRayRadiationDoseSRStorage}, "found X-Ray Radiation Dose SR Stor"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "found a localizer"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "3 samples a pixel (RGB)"),
        ({"RescaleType": "MGML"}, "found values of the unit 'MGML', expected HU"),
        ({"RescaleSlope": None}, "found no RescaleSlope"),
        ({"ImagePositionPatient": None}, "found no Image Position"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two unit vectors at a right angle"),
        ({"PixelSpacing": [0, 0.8]}, "found the Pixel Spacing (0.0, 0.8), expected two"),
        ({"PixelSpacing": None}, "found the Pixel Spacing None"),
        ({"Rows": None}, "found no pixels, expected an image"),
        ({"Rows": 0}, "found 16 x 0 pixels"),
        ({"Rows": 40_000, "Columns": 40_000}, "found 1 slices of 40000 x 40000 pixels"),
        ({"BitsAllocated": 64}, "found pixels of 16 bits below bit 15 of 64"),
        ({"PixelData": None}, "found a truncated file: 0 bytes of 384 of pixels"),
        ({"ImagePositionPatient": lambda i: [0, 0, 200 * i]}, "found slices 200 mm apart"),
    ],
)  # fmt: skip
def test_what_is_no_ct_scan(tmp_path, values, message):
    files = write_series(tmp_path / "ct", make_volume())
    change(files, set_values(**values))
    assert message in left_out(tmp_path / "ct")
    with pytest.raises(ValueError) as error:
        read_scan(tmp_path / "ct")
    assert str(error.value) == left_out(tmp_path / "ct")


def test_a_rescale_slope_of_nothing(tmp_path):
    files = write_series(tmp_path / "ct", make_volume())
    change(files[3:4], set_values(RescaleSlope=0))
    with pytest.raises(ValueError, match=r"0003\.dcm: found the rescale slope 0\.0 and"):
        read_scan(tmp_path / "ct")


def test_a_gap_is_damage_and_another_orientation_is_not(tmp_path):
    files = write_series(tmp_path / "ct" / "a", make_volume())
    for file in files[2:5]:
        file.unlink()
    coronal = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    write_series(tmp_path / "ct" / "b", make_volume(), direction=coronal, series_number=2)
    found = find_scans(tmp_path / "ct")
    assert len(found.left_out) == 2 and found.damaged == found.left_out[:1]
    assert "found a gap of 10 mm" in found.damaged[0]


def test_scans_of_too_few_slices_are_left_out(tmp_path):
    write_series(tmp_path / "ct", make_volume())
    assert "found 7 slices, expected at least 9" in left_out(tmp_path / "ct", min_slices=9)
    assert len(find_scans([tmp_path / "ct"], min_slices=7).candidates) == 1


def test_nothing_and_paths_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("text")
    assert "empty: found no scan in it, expected DICOM" in left_out(tmp_path / "empty")
    assert "a.txt: found another file, expected DICOM" in left_out(tmp_path / "a.txt")
    assert "none: no such file or folder" in left_out(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        read_scan(tmp_path / "none")


def test_a_truncated_file_is_left_out_and_the_rest_goes_on(tmp_path):
    files = write_series(tmp_path / "ct", make_volume())
    files[3].write_bytes(files[3].read_bytes()[:-100])
    files[6].write_bytes(files[6].read_bytes()[:300])
    found = find_scans([tmp_path / "ct"])
    assert found.left_out[0] == f"{files[3]} (series 1, {_end(files[0])}): " + (
        "found a truncated file: 284 bytes of 384 of pixels"
    )
    assert found.left_out[1].startswith(f"{files[6]}: found")
    assert found.damaged == found.left_out
    scan = found.candidates[0].read()
    assert len(scan.volume) == 6 and "missing between 0002.dcm and 0004.dcm" in scan.messages[1]


def _end(file: Path) -> str:
    return pydicom.dcmread(file).SeriesInstanceUID[-12:]


def test_two_sizes_and_orientations_under_one_uid(tmp_path):
    volume, wide = make_volume(), make_volume((7, 12, 20))
    files = write_series(tmp_path / "ct" / "a", volume)
    series = pydicom.dcmread(files[0]).SeriesInstanceUID
    others = write_series(tmp_path / "ct" / "b", wide, patient="other")
    change(others, set_values(SeriesInstanceUID=series))
    coronal = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    others = write_series(tmp_path / "ct" / "c", volume, patient="third", direction=coronal)
    change(others, set_values(SeriesInstanceUID=series))
    found = find_scans([tmp_path / "ct"])
    names = [candidate.name for candidate in found.candidates]
    assert names == [f"ct_1_{series[-8:]}", f"ct_1_{series[-8:]}_2"]
    assert [c.read().volume.shape for c in found.candidates] == [volume.shape, wide.shape]
    assert "found coronal slices, expected axial ones" in found.left_out[0]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("AcquisitionNumber", (1, 2)), ("TemporalPositionIdentifier", (1, 2)),
     ("ConvolutionKernel", ("B30f", "B70f")), ("AcquisitionTime", ("100000", "100030"))],
)  # fmt: skip
def test_phases_of_one_series(tmp_path, keyword, values):
    volumes = [make_volume(seed=1), make_volume(seed=2)]
    series = None
    for index, (volume, value) in enumerate(zip(volumes, values, strict=True)):
        files = write_series(tmp_path / "ct" / str(index), volume, patient=str(index))
        series = series or pydicom.dcmread(files[0]).SeriesInstanceUID
        change(files, set_values(SeriesInstanceUID=series, **{keyword: value}))
    found = find_scans([tmp_path / "ct"]).candidates
    assert len(found) == 2
    for candidate, volume in zip(found, volumes, strict=True):
        assert (candidate.read().volume == volume).all()


def test_acquisitions_one_after_the_other_are_one_scan(tmp_path):
    """Old scanners counted an acquisition a slice."""
    files = write_series(tmp_path / "ct", make_volume())
    change(files, set_values(AcquisitionNumber=lambda index: index))
    assert (read_scan(tmp_path / "ct").volume == make_volume()).all()


def test_copies_of_a_file_are_one_slice(tmp_path):
    files = write_series(tmp_path / "ct", make_volume())
    for file in files[:3]:
        file.with_name(f"copy of {file.name}").write_bytes(file.read_bytes())
    found = find_scans([tmp_path / "ct"])
    assert (found.candidates[0].read().volume == make_volume()).all()
    assert "and 2 more: found a copy of another file" in found.left_out[0]


def test_a_zip_archive(tmp_path):
    write_series(tmp_path / "ct", make_volume())
    archive = zip_of(tmp_path / "ct", tmp_path / "my scan.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("__MACOSX/._0000.dcm", b"x" * 200)
        opened.writestr("readme.txt", "text")
    scan = read_scan(archive)
    assert (scan.volume == make_volume()).all() and scan.spacing == SPACING
    assert scan.name.startswith("my_scan_1_")
    assert scan.sources[2].file == f"{archive}/any/name/0002.dcm"
    (tmp_path / "ct" / "0000.dcm").unlink()
    names = [c.name.partition("_1_")[0] for c in find_scans([tmp_path]).candidates]
    assert sorted(names) == ["my_scan", tmp_path.name]


def test_damaged_and_oversized_archives_are_left_out(tmp_path, monkeypatch):
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK nothing")
    assert "found a damaged zip archive" in left_out(archive)

    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.txt", "text")
    assert "found no DICOM file in it" in left_out(archive)

    files = write_series(tmp_path / "ct", make_volume())
    zip_of(tmp_path / "ct", archive)
    data = bytearray(archive.read_bytes())
    at = data.find(files[4].name.encode()) + len(files[4].name) + 300
    data[at : at + 40] = os.urandom(40)
    archive.write_bytes(data)
    found = find_scans([archive])
    lines = list(found.left_out)
    if not lines:  # damage behind the header shows when pixels are read
        with pytest.raises(ValueError) as error:
            found.candidates[0].read()
        lines.append(str(error.value))
    assert f"{archive}/any/name/0004.dcm" in lines[0] and "\n" not in lines[0]

    monkeypatch.setattr("lesion_d2.scans.stored.MAX_MEMBER_BYTES", 500)
    assert "bytes, expected at most 500" in left_out(archive)
    monkeypatch.setattr("lesion_d2.scans.stored.MAX_MEMBERS", 5)
    assert "found 7 members, expected at most 5" in left_out(archive)


def test_names_in_an_archive_lead_nowhere(tmp_path):
    files = write_series(tmp_path / "ct", make_volume())
    archive = tmp_path / "in" / "a.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as opened:
        for number, file in enumerate(files):
            prefix = ("../../", "/", "C:\\", "x/../")[number % 4]
            opened.writestr(zipfile.ZipInfo(f"{prefix}{file.name}"), file.read_bytes())
        opened.writestr(zipfile.ZipInfo("two\nlines"), b"\x08\x00" + bytes(200))
        opened.writestr(zipfile.ZipInfo(""), b"no name")
    before = sorted(tmp_path.rglob("*"))
    found = find_scans([archive])
    for candidate in found.candidates:
        candidate.read()
    assert sorted(tmp_path.rglob("*")) == before
    assert not any("\n" in line for line in found.left_out)


def test_links_in_a_circle(tmp_path):
    write_series(tmp_path / "ct", make_volume())
    (tmp_path / "ct" / "again").symlink_to(tmp_path / "ct")
    found = find_scans(tmp_path / "ct")
    assert len(found.candidates) == 1 and not found.left_out
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "linked").symlink_to(tmp_path / "ct")
    assert (read_scan(outer).volume == make_volume()).all()


def test_names_are_unique_and_safe(tmp_path):
    for folder in ("x y", "x_y"):
        write_series(tmp_path / folder, make_volume())
    found = find_scans([tmp_path / "x y", tmp_path / "x_y"])
    first, second = (candidate.name for candidate in found.candidates)
    assert first.startswith("x_y_1_") and second == f"{first}_2"
    assert found.candidates[1].read().name == second


def test_slices_of_one_uid_are_slices(tmp_path):
    """As some programs leave them that take names away: they lie at other places."""
    files = write_series(tmp_path / "ct", make_volume())
    change(files, set_values(SOPInstanceUID="1.2.3"))
    found = find_scans([tmp_path / "ct"])
    assert (found.candidates[0].read().volume == make_volume()).all() and not found.left_out
