import gzip
import itertools
import tracemalloc

from lesion_d2.scans import nifti, read_scan
from lesion_d2.scans.nifti import open_nifti
from lesion_d2.scans.writing import write_nifti

import nibabel
import numpy as np
import pytest
from made_up_scans import ORIGIN, SPACING, make_volume, message

CODES = [
    "".join(c) for p in itertools.permutations(["LR", "AP", "SI"]) for c in itertools.product(*p)
]


def save(file, array, affine=None, **header):
    affine = np.diag([0.7, 0.8, 2.5, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, file)
    return file


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_gives_one_scan(tmp_path, code):
    volume = make_volume()
    write_nifti(tmp_path / "ct.nii", volume, SPACING, origin=ORIGIN)
    image = nibabel.load(tmp_path / "ct.nii")
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
    )
    turned = image.as_reoriented(turn)
    nibabel.save(turned, tmp_path / "turned.nii")
    scan = read_scan(tmp_path / "turned.nii")
    assert (scan.volume == volume).all() and scan.spacing == SPACING and scan.format == "nifti"
    np.testing.assert_allclose(scan.origin, ORIGIN, atol=1e-4)
    np.testing.assert_allclose(scan.direction, np.diag([1, 1, -1]), atol=1e-6)
    assert (scan.grid.restore(scan.volume) == np.asarray(turned.dataobj)).all()
    assert (scan.grid.ras_affine == nibabel.load(tmp_path / "turned.nii").affine).all()
    axis = scan.grid.turn.axes[0]
    for index, source in enumerate(scan.sources):
        stored = np.take(np.asarray(turned.dataobj), source.frame, axis)
        assert set(stored.ravel()) == set(volume[index].ravel())


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_types_and_scaling(tmp_path, dtype, ending):
    array = make_volume().transpose(2, 1, 0)
    scan = read_scan(save(tmp_path / f"ct{ending}", array.astype(dtype)))
    assert scan.name == "ct" and scan.volume.dtype == np.int16
    assert (scan.grid.restore(scan.volume) == array).all()


def test_scaled_values_are_rounded(tmp_path):
    stored = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(1.3, -1000)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    scan = read_scan(tmp_path / "ct.nii.gz")
    expected = np.rint(nibabel.load(tmp_path / "ct.nii.gz").get_fdata())
    assert (scan.grid.restore(scan.volume) == expected).all()
    assert "found -1000 as the lowest value" not in " ".join(scan.messages)


def test_sform_qform_or_neither(tmp_path):
    array = make_volume().transpose(2, 1, 0)
    moved = np.diag([0.7, 0.8, 2.5, 1.0])
    moved[:3, 3] = 5, 6, 7
    image = nibabel.Nifti1Image(array, moved)
    image.set_qform(moved, 1)
    image.set_sform(np.diag([-0.7, -0.8, 2.5, 1]), 1)
    nibabel.save(image, tmp_path / "s.nii")
    assert read_scan(tmp_path / "s.nii").grid.ras_affine[0, 0] == pytest.approx(-0.7)
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "q.nii")
    scan = read_scan(tmp_path / "q.nii")
    np.testing.assert_allclose(scan.grid.ras_affine, moved, atol=1e-6)
    assert scan.messages == ()
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "neither.nii")
    assert "neither.nii: the file does not say how it lies in the patient" in message(
        tmp_path / "neither.nii"
    )


def test_one_volume_in_four_dimensions(tmp_path):
    array = make_volume().transpose(2, 1, 0)[..., None]
    scan = read_scan(save(tmp_path / "ct.nii.gz", array))
    assert scan.grid.restore(scan.volume).shape == array.shape
    assert (scan.grid.restore(scan.volume) == array).all()


def test_values_that_are_hardly_hu_are_told(tmp_path):
    array = np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 4, 5)
    [message] = read_scan(save(tmp_path / "a.nii", array)).messages
    assert message == "found -1 as the lowest value, expected HU, -1000 in air"


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.full((3, 4, 5), np.nan, np.float32), "values that are no finite numbers"),
        (np.full((3, 4), -1, np.int16), "found int16 of shape (3, 4), expected numbers in three"),
        (np.full((3, 4, 5, 2), -1, np.int16), "found int16 of shape (3, 4, 5, 2), expected"),
        (np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "of shape (3, 4, 5), exp"),
        (np.zeros((3, 4, 5), np.complex64), "found complex64 of shape"),
        (np.full((3, 4, 5), 7, np.int16), "found values from 7 to 7, expected HU"),
    ],
)
def test_what_is_no_ct_volume(tmp_path, array, text):
    assert text in message(save(tmp_path / "ct.nii.gz", array))


def test_zero_and_huge_spacing(tmp_path):
    array = make_volume().transpose(2, 1, 0)
    assert "found the spacing (" in message(
        save(tmp_path / "a.nii", array, np.diag([1, 1, 500, 1]))
    )
    file = save(tmp_path / "b.nii", array, np.eye(4))
    data = bytearray(file.read_bytes())
    data[280:328] = bytes(48)  # the rows of sform
    file.write_bytes(data)
    assert "leaves out an axis" in message(file)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_sizes_that_are_not_there(tmp_path, ending):
    file = save(tmp_path / f"ct{ending}", make_volume().transpose(2, 1, 0))
    zipped = ending == ".nii.gz"
    data = gzip.decompress(file.read_bytes()) if zipped else file.read_bytes()
    for sizes in ([30000, 30000, 30000], [512, 512, 15000], [-5, 12, 7]):
        changed = bytearray(data)
        changed[42:48] = np.array(sizes, "<i2").tobytes()
        file.write_bytes(gzip.compress(changed) if zipped else changed)
        assert "found " in message(file)
    for length in (100, 353, len(data) - 5):
        cut = data[:length]
        file.write_bytes(gzip.compress(cut) if zipped else cut)
        assert "NIfTI file (" in message(file)
    if zipped:
        packed = bytearray(gzip.compress(data))
        packed[-8] ^= 1  # of the checksum
        file.write_bytes(packed)
        assert "found a damaged NIfTI file (CRC check failed" in message(file)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_memory_stays_within_the_volume_and_some_slices(tmp_path, ending):
    array = np.full((64, 64, 200), -1000.25, np.float32)
    file = save(tmp_path / f"ct{ending}", array)
    tracemalloc.start()
    scan = read_scan(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (scan.volume == -1000).all()
    assert peak < scan.volume.nbytes + 20 * 64 * 64 * 8 + 300_000


def test_one_of_several_volumes_along_the_fourth_axis(tmp_path):
    stored = np.random.default_rng(0).integers(-1000, 900, (6, 5, 4, 3)).astype(np.int16)
    for ending in ("nii", "nii.gz"):
        file = tmp_path / f"a.{ending}"
        nibabel.save(nibabel.Nifti1Image(stored, np.diag([-1, -1, 2, 1])), file)
        for number in range(3):
            volume, _ = open_nifti(file, channel=(number, 3)).read_volume()
            assert np.array_equal(volume, stored[:, :, ::-1, number].T)
        with pytest.raises(ValueError, match="found 3 volumes along the fourth axis, expected 2"):
            open_nifti(file, channel=(0, 2))
        with pytest.raises(ValueError, match="expected numbers in three dimensions"):
            open_nifti(file)


def test_flat_images_are_slices_where_that_is_allowed(tmp_path):
    pixels = np.arange(-15, 15, dtype=np.int16).reshape(6, 5)
    file = tmp_path / "a.nii"
    for stored, thickness in ((pixels, 1.0), (pixels[..., None], 999.0)):
        nibabel.save(nibabel.Nifti1Image(stored, np.diag([-0.5, -0.25, thickness, 1])), file)
        with pytest.raises(ValueError, match="expected"):
            open_nifti(file)
        opened = open_nifti(file, allow_flat=True)
        assert opened.spacing == (0.5, 0.25, 1.0)
        assert np.array_equal(opened.read_volume()[0], pixels.T[None])


def _changed(data: bytes, place: int, value: np.ndarray) -> bytes:
    changed = bytearray(data)
    changed[place : place + value.nbytes] = value.tobytes()
    return bytes(changed)


def _read(file, data: bytes):
    """The scan, or in one line why it is none."""
    file.write_bytes(data)
    try:
        return read_scan(file)
    except ValueError as error:
        text = str(error)
        assert text.startswith(f"{file}: found ") or "does not say how it lies" in text
        assert "\n" not in text
        return text


def test_a_flipped_bit_of_a_compressed_file_is_told_wherever_it_is(tmp_path, capfd):
    file = tmp_path / "ct.nii.gz"
    write_nifti(file, make_volume(), SPACING, origin=ORIGIN)
    data, expected, rng = file.read_bytes(), read_scan(file), np.random.default_rng(0)
    told = 0
    for bit in rng.choice(8 * len(data), 20, replace=False):
        found = _read(file, _changed(data, bit // 8, np.uint8(data[bit // 8] ^ (1 << bit % 8))))
        if isinstance(found, str):
            told += 1
        else:  # a time, a name or the like
            assert (found.volume == expected.volume).all() and found.spacing == expected.spacing
    assert told > 15
    assert capfd.readouterr() == ("", "")


def test_what_follows_the_voxels_is_read_to_the_checksum(tmp_path, monkeypatch):
    file = tmp_path / "ct.nii.gz"
    write_nifti(file, make_volume(), SPACING)
    data = gzip.decompress(file.read_bytes())
    longer = gzip.compress(data + bytes(1000))
    assert (_read(file, longer).volume == make_volume()).all()
    wrong = _changed(longer, len(longer) - 8, np.uint8(longer[-8] ^ 1))
    assert "found a damaged NIfTI file (CRC check failed" in _read(file, wrong)
    smaller = gzip.compress(_changed(data, 46, np.int16(3)))  # slices: 3 of 7
    assert len(_read(file, smaller).volume) == 3  # a right checksum, and more voxels behind
    monkeypatch.setattr(nifti, "MAX_REST", 999)
    assert "found more than 999 bytes behind the voxels" in _read(file, longer)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (42, np.array([32767, 32767], "<i2"), "slices of 32767 x 32767 pixels, expected at most"),
        (42, np.array([8000, 8000, 19000], "<i2"), "expected"),
        (280, np.array([-1e-9], "<f4"), "found the spacing (0.0, 0.8, 2.5), expected for x, y"),
        (280, np.diag([1, 1, 1])[0].astype("<f4") * 1e9, "found the spacing (1000000000.0, 0."),
        (252, np.zeros(2, "<i2"), "the file does not say how it lies in the patient"),
        (108, np.float32(2e9), "found no readable NIfTI file (its voxels begin at byte 2e+09)"),
        (108, np.float32(np.nan), "found no readable NIfTI file (its voxels begin at byte nan)"),
    ],
)
def test_what_no_scan_has_is_refused_before_memory_is_taken(tmp_path, ending, place, value, text):
    file = tmp_path / "ct.nii"
    write_nifti(file, make_volume(), SPACING)
    data = _changed(file.read_bytes(), place, value)
    file = tmp_path / f"ct{ending}"
    tracemalloc.start()
    found = _read(file, gzip.compress(data, 1) if ending == ".nii.gz" else data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text in found and peak < 2_000_000


@pytest.mark.parametrize("degrees", [0, 20, 39, 41, 45, 49, 51, 90])
@pytest.mark.parametrize("plane", [(0, 1), (1, 2)])
def test_an_axis_between_two_of_the_patients_is_refused(tmp_path, degrees, plane):
    turn, (i, j), angle = np.eye(3), plane, np.radians(degrees)
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    file, volume = tmp_path / "ct.nii", make_volume()
    write_nifti(file, volume, SPACING, direction=turn @ np.diag([1.0, 1.0, -1.0]))
    if 40 < degrees < 50:
        nearest = min(degrees, 90 - degrees)
        text = f"ct.nii: found an axis {nearest} degrees from the patient's nearest one, expected"
        assert text in message(file)
    else:
        assert np.array_equal(
            np.sort(read_scan(file).volume, axis=None), np.sort(volume, axis=None)
        )
