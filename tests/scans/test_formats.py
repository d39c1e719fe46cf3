"""One volume in all formats is one scan; and what other programs say of what is written."""

import shutil
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

from lesion_d2.scans import find_scans, read_scan
from lesion_d2.scans.writing import write_dicom, write_nifti

import nibabel
import numpy as np
import pytest
from made_up_scans import ORIGIN, SPACING, change, make_volume, write_series
from slice_files import write_slices

sitk = pytest.importorskip("SimpleITK")
SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "deeplesion_sample"
LPS = np.diag([1.0, 1.0, -1.0])


def write_itk(file: Path, volume: np.ndarray, spacing, origin) -> Path:
    """Slices from feet to head, as ITK writes what it read of DICOM."""
    image = sitk.GetImageFromArray(volume[::-1])
    image.SetSpacing(spacing)
    image.SetOrigin((*origin[:2], origin[2] - spacing[2] * (len(volume) - 1)))
    sitk.WriteImage(image, str(file))
    return file


def check_all_formats(folder: Path, volume: np.ndarray, spacing, origin) -> None:
    png = read_scan(write_slices(folder / "png", volume), spacing=spacing)
    assert (png.volume == volume).all() and png.spacing == spacing
    write_dicom(folder / "dcm", volume, spacing, origin=origin)
    # As scanners store it: unsigned, and moved by 1024 or more.
    unsigned = write_dicom(folder / "unsigned", volume, spacing, origin=origin)

    def edit(dataset, index):
        dataset.PixelData = (volume[index].astype(int) + 8192).astype(np.uint16).tobytes()
        dataset.PixelRepresentation, dataset.RescaleIntercept = 0, -8192

    change(unsigned, edit)
    write_nifti(folder / "ct.nii.gz", volume, spacing, origin=origin)
    image = nibabel.load(folder / "ct.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(image), folder / "ras.nii")
    floats = nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
    nibabel.save(floats, folder / "float.nii.gz")
    for ending in (".mha", ".mhd", ".nrrd"):
        write_itk(folder / f"ct{ending}", volume, spacing, origin)
    names = (
        "dcm",
        "unsigned",
        "ct.nii.gz",
        "ras.nii",
        "float.nii.gz",
        "ct.mha",
        "ct.mhd",
        "ct.nrrd",
    )
    for name in names:
        scan = read_scan(folder / name)
        assert (scan.volume == volume).all() and scan.volume.flags.c_contiguous, name
        assert scan.spacing == spacing, name
        np.testing.assert_allclose(scan.origin, origin, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(scan.direction, LPS, atol=1e-7, err_msg=name)
        assert scan.messages == ()


def test_all_formats_give_one_scan(tmp_path):
    check_all_formats(tmp_path, make_volume(), SPACING, ORIGIN)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of DeepLesion is not there")
@pytest.mark.parametrize("series", ["000001_01_01", "000001_02_01"])
def test_all_formats_give_one_scan_of_real_slices(tmp_path, series):
    """A quarter of them, with spacings of six digits, which float32 of NIfTI does not hold."""
    scan = read_scan(SAMPLE / "Images_png" / series)
    assert scan.spacing == (
        (0.488281, 0.488281, 5.0) if "_01_01" in series else (0.314453, 0.314453, 5.0)
    )
    check_all_formats(
        tmp_path,
        np.ascontiguousarray(scan.volume[:4, :256, :256]),
        scan.spacing,
        (-125.0, -131.75, 212.5),
    )


def test_itk_reads_the_same_from_dicom(tmp_path):
    """ITK sorts the files by itself, and reads them with another library."""
    c, s = np.cos(0.2), np.sin(0.2)
    direction = np.array([[c, -s, 0], [s, c, 0], [0, 0, -1.0]])
    volume = make_volume()
    write_dicom(tmp_path / "ct", volume, SPACING, origin=ORIGIN, direction=direction)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    image = reader.Execute()
    scan = read_scan(tmp_path / "ct")
    array = sitk.GetArrayFromImage(image)
    for index in ((0, 0, 0), (3, 5, 2), (15, 11, 6)):
        place = image.TransformIndexToPhysicalPoint(index)
        x, y, z = np.rint(scan.from_patient([place])[0]).astype(int)
        assert scan.volume[z, y, x] == array[index[::-1]]
        np.testing.assert_allclose(scan.to_patient([[x, y, z]])[0], place, atol=1e-4)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_written_dicom_is_valid(tmp_path):
    files = write_dicom(tmp_path / "ct", make_volume(), SPACING, origin=ORIGIN)
    told = subprocess.run(["dciodvfy", files[3]], capture_output=True, text=True)
    assert told.returncode == 0 and "CTImage" in told.stderr and "Error" not in told.stderr


def test_the_same_call_writes_the_same_files(tmp_path):
    for folder in ("a", "b"):
        write_dicom(tmp_path / folder, make_volume(), SPACING)
        write_nifti(tmp_path / folder / "ct.nii.gz", make_volume(), SPACING)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    other = write_dicom(tmp_path / "c", make_volume(), SPACING, series_number=2)
    assert len(other) == 7
    formats = [candidate.format for candidate in find_scans([tmp_path]).candidates]
    assert formats == ["nifti", "nifti", "dicom", "dicom"]


@pytest.mark.parametrize("zipped", [False, True])
def test_memory_of_many_slices(tmp_path, zipped):
    volume = np.full((40, 256, 256), -1000, np.int16)
    path = tmp_path / "ct"
    files = write_series(path, volume)
    if zipped:
        path = tmp_path / "ct.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in files:
                archive.write(file, file.name)
    (candidate,) = find_scans([path]).candidates
    tracemalloc.start()
    scan = candidate.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (scan.volume == -1000).all()
    assert peak < 1.5 * volume.nbytes  # all headers stay


@pytest.mark.parametrize(("module", "name"), [("pydicom", "dcm/0000.dcm"), ("SimpleITK", "ct.mha")])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, module, name):
    write_dicom(tmp_path / "dcm", make_volume(), SPACING)
    write_nifti(tmp_path / "ct.nii", make_volume(), SPACING)
    write_itk(tmp_path / "ct.mha", make_volume(), SPACING, ORIGIN)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    (line,) = find_scans([tmp_path / name]).left_out
    assert line.startswith(f"{tmp_path / name}: {module} is needed for this")
    assert line.endswith('pip install -e ".[scans]"')
    assert any(c.format == "nifti" for c in find_scans([tmp_path]).candidates)
