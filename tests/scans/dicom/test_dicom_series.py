"""Single-frame CT series: what is read, and where it lies."""

import random

from lesion_d2.scans import read_scan
from lesion_d2.scans.writing import write_dicom

import numpy as np
import pydicom
import pytest
from made_up_scans import ORIGIN, SPACING, change, make_volume, set_values, write_series


@pytest.fixture
def files(tmp_path):
    return write_series(tmp_path / "ct", make_volume())


def message(path, **options) -> str:
    with pytest.raises(ValueError) as error:
        read_scan(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_series_is_what_was_written(tmp_path, files):
    volume = make_volume()
    scan = read_scan(tmp_path / "ct")
    assert (scan.volume == volume).all() and scan.volume.dtype == np.int16
    assert scan.spacing == SPACING and scan.origin.tolist() == list(ORIGIN)
    np.testing.assert_array_equal(scan.direction, np.diag([1, 1, -1]))
    series = pydicom.dcmread(files[0])
    assert scan.name == f"ct_1_{series.SeriesInstanceUID[-8:]}"
    assert scan.format == "dicom" and scan.grid is None and scan.messages == ()
    for index, (source, header) in enumerate(zip(scan.sources, scan.headers, strict=True)):
        assert source.file == str(files[index]) and source.frame is None
        assert source.sop_instance_uid == header.SOPInstanceUID
        assert header.InstanceNumber == index + 1 and "PixelData" not in header
        assert header.PatientID == "phantom"


def test_order_is_of_positions_not_of_names_or_numbers(tmp_path, files):
    rng = random.Random(1)
    numbers = rng.sample(range(100), len(files))
    change(files, set_values(InstanceNumber=lambda index: numbers[index]))
    for index, file in enumerate(rng.sample(files, len(files))):
        folder = tmp_path / "ct" / "deep" / str(index % 3)
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / f"IM{rng.random()}")
    assert (read_scan(tmp_path / "ct").volume == make_volume()).all()


def test_one_file_is_one_slice(files):
    scan = read_scan(files[2])
    assert (scan.volume == make_volume()[2:3]).all() and scan.spacing == SPACING
    change([files[2]], set_values(SliceThickness=None))
    assert "found one slice and no thickness" in message(files[2])


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("upwards", [False, True])
def test_any_axial_orientation(tmp_path, turns, mirror, upwards):
    """Prone, feet first, mirrored: the patient's Left, Posterior and Inferior decide."""
    volume = make_volume()
    stored, direction = volume, np.diag([1.0, 1.0, -1.0])
    for _ in range(turns):  # counterclockwise as shown: what led to the right leads up
        stored = np.rot90(stored, axes=(1, 2))
        direction = np.stack([direction[:, 1], -direction[:, 0], direction[:, 2]], axis=1)
    if mirror:
        stored, direction = stored[:, :, ::-1], direction * [-1, 1, 1]
    if upwards:
        stored, direction = stored[::-1], direction * [1, 1, -1]
    x, y, z = SPACING
    spacing = (x, y, z) if turns % 2 == 0 else (y, x, z)
    write_dicom(tmp_path / "ct", stored, spacing, direction=direction)
    scan = read_scan(tmp_path / "ct")

    assert (scan.volume == volume).all() and scan.spacing == SPACING
    np.testing.assert_allclose(scan.direction, np.diag([1, 1, -1]), atol=1e-9)
    for index, header in enumerate(scan.headers):
        frame = pydicom.dcmread(scan.sources[index].file).pixel_array
        assert (scan.to_source_slice(scan.volume[index]) == frame).all()
        column, row = 3, 5
        cosines = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
        place = np.array(header.ImagePositionPatient, float) + (
            cosines[0] * column * header.PixelSpacing[1] + cosines[1] * row * header.PixelSpacing[0]
        )
        voxel = scan.from_patient([place])[0]
        assert voxel[2] == pytest.approx(index)
        assert scan.to_source_points([voxel[:2]])[0] == pytest.approx([column, row])


def rescaled(stored: np.ndarray, **values):
    """An edit that stores these values and says how."""

    def edit(dataset, index):
        dataset.PixelData = stored[index].tobytes()
        set_values(**values)(dataset, index)

    return edit


def test_each_slice_has_its_own_slope_and_intercept(tmp_path, files):
    volume = make_volume()
    stored = np.random.default_rng(3).integers(0, 4096, volume.shape).astype(np.int16)
    slopes, intercepts = [1, 1.5, 0.5, 2, 0.3, -1, 1], [-1024, -1000.5, 0, -3000, 7, 10, 0]
    edit = rescaled(
        stored, RescaleSlope=lambda i: slopes[i], RescaleIntercept=lambda i: intercepts[i]
    )
    change(files, edit)
    expected = stored * np.reshape(slopes, (7, 1, 1)) + np.reshape(intercepts, (7, 1, 1))
    assert (read_scan(tmp_path / "ct").volume == np.rint(expected)).all()


@pytest.mark.parametrize("bits", [16, 12])
@pytest.mark.parametrize("signed", [False, True])
def test_signed_and_unsigned_of_fewer_bits(tmp_path, files, bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.random.default_rng(0).integers(low, low + 2**bits, (7, 12, 16))
    mask = 2**bits - 1
    overlay = np.random.default_rng(1).integers(0, 2 ** (16 - bits), values.shape) << bits
    stored = ((values & mask) | overlay).astype(np.uint16)  # old scanners kept overlays there
    edit = rescaled(
        stored,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=int(signed),
        RescaleIntercept=-1024,
    )
    change(files, edit)
    expected = np.clip(values - 1024, -32768, 32767)
    assert (read_scan(tmp_path / "ct").volume == expected).all()


@pytest.mark.parametrize(
    ("padding", "limit", "expected"),
    [(-2000, None, [-3024, 96, -1024, 77]), (1120, None, [-3024, -1024, -1024, 77]),
     (1100, 1120, [-3024, -1024, -1024, -1024]), (0xF830, None, [-3024, 96, -1024, 77])],
)  # fmt: skip
def test_padding_becomes_air_unless_it_is_less(tmp_path, files, padding, limit, expected):
    stored = np.zeros((7, 12, 16), np.int16)
    stored[:, 0, :4] = -2000, 1120, 0, 1101
    edit = rescaled(stored, RescaleIntercept=-1024)

    def pad(dataset, index):
        edit(dataset, index)
        # Some scanners write the value unsigned though the pixels are signed.
        dataset.add_new("PixelPaddingValue", "US" if padding > 32767 else "SS", padding)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", "SS", limit)

    change(files, pad)
    assert read_scan(tmp_path / "ct").volume[0, 0, :4].tolist() == expected


def test_monochrome1_is_how_slices_are_shown(tmp_path, files):
    change(files, set_values(PhotometricInterpretation="MONOCHROME1"))
    assert (read_scan(tmp_path / "ct").volume == make_volume()).all()


def test_a_missing_slice_is_interpolated_and_told(tmp_path, files):
    files[3].unlink()
    scan = read_scan(tmp_path / "ct")
    volume = make_volume().astype(float)
    assert np.abs(scan.volume[3] - (volume[2] + volume[4]) / 2).max() <= 0.5
    assert (np.delete(scan.volume, 3, 0) == np.delete(volume, 3, 0)).all()
    assert "slices are missing between 0002.dcm and 0004.dcm" in scan.messages[1]
    assert len(scan.headers) == len(scan.sources) == 7
    assert scan.sources[3].sop_instance_uid == scan.headers[2].SOPInstanceUID
    np.testing.assert_allclose(scan.to_patient([[0, 0, 6]])[0], np.add(ORIGIN, [0, 0, -15]))


def test_a_series_with_a_gap_is_read_only_if_that_is_allowed(tmp_path, files):
    for file in files[2:5]:
        file.unlink()
    assert "found a gap of 10 mm between 0001.dcm and 0005.dcm" in message(tmp_path / "ct")
    scan = read_scan(tmp_path / "ct", allow_gaps=True)
    assert len(scan.volume) == 7 and (scan.volume[5:] == make_volume()[5:]).all()


@pytest.mark.parametrize("upwards", [False, True])
def test_a_tilted_gantry(tmp_path, upwards):
    """Slices lean by 15 degrees while the table moves along the body."""
    c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
    row, column = np.array([1.0, 0, 0]), np.array([0, c, -s])
    direction = np.stack([row, column, [0, 0, -1.0]], axis=1)
    volume = make_volume()
    if upwards:
        direction[:, 2] *= -1
    write_series(tmp_path / "ct", volume, direction=direction)
    scan = read_scan(tmp_path / "ct")
    assert (scan.volume == (volume[::-1] if upwards else volume)).all()
    assert scan.messages[0].startswith("the gantry is tilted by 15.0 degrees")
    assert scan.spacing == SPACING  # along the table
    assert scan.voxel_volume == pytest.approx(np.prod(SPACING) * c)
    for index, header in enumerate(scan.headers):
        np.testing.assert_allclose(
            scan.to_patient([[0, 0, index]])[0], header.ImagePositionPatient, atol=1e-4
        )


def test_oblique_slices_are_told_and_others_refused(tmp_path):
    def direction(degrees):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return np.stack([[1.0, 0, 0], [0, c, -s], [0, -s, -c]], axis=1)

    write_series(tmp_path / "a", make_volume(), direction=direction(20))
    scan = read_scan(tmp_path / "a")
    assert scan.messages == ("the slices are 20.0 degrees off the axial plane",)
    np.testing.assert_allclose(scan.direction, direction(20), atol=1e-9)
    write_series(tmp_path / "b", make_volume(), direction=direction(90))
    assert "found coronal slices, expected axial ones" in message(tmp_path / "b")
    sagittal = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float)
    write_series(tmp_path / "c", make_volume(), direction=sagittal)
    assert "found sagittal slices" in message(tmp_path / "c")


def test_digits_of_the_orientation_do_not_split_a_series(tmp_path, files):
    def lean(dataset, index):
        dataset.ImageOrientationPatient = [1, 0.00005 * (1 + index % 3 / 100), 0, 0, 1, 0]

    change(files, lean)
    assert (read_scan(tmp_path / "ct").volume == make_volume()).all()


def test_slices_that_are_shifted_sideways_are_told(tmp_path, files):
    def shift(dataset, index):
        dataset.ImagePositionPatient = [
            ORIGIN[0] + (index == 3) * 4,
            *dataset.ImagePositionPatient[1:],
        ]

    change(files, shift)
    assert "shifted sideways by up to 3.4 mm" in read_scan(tmp_path / "ct").messages[-1]


def test_a_second_slice_at_a_place_is_told(tmp_path, files):
    dataset = pydicom.dcmread(files[2])
    dataset.SOPInstanceUID = "1.2.3"
    dataset.InstanceNumber = 99
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(tmp_path / "ct" / "0.dcm")
    scan = read_scan(tmp_path / "ct")
    assert (scan.volume == make_volume()).all()
    assert scan.messages == (
        "1 slices lie where another one does and are left out: 0.dcm, for one",
    )
    # The same file a second time is no second slice.
    (tmp_path / "ct" / "0.dcm").write_bytes(files[2].read_bytes())
    assert read_scan(tmp_path / "ct").messages == ()


def test_files_that_change_or_vanish_after_the_list(tmp_path, files):
    from lesion_d2.scans import find_scans

    (candidate,) = find_scans([tmp_path / "ct"]).candidates
    change([files[1]], set_values(SOPInstanceUID="1.2.3"))
    with pytest.raises(ValueError, match=r"0001\.dcm: found another file than when it was listed"):
        candidate.read()
    files[1].unlink()
    with pytest.raises(ValueError, match=r"0001\.dcm: .*No such file"):
        candidate.read()
