import gzip
import re
from pathlib import Path

from lesion_d2.scans import read_scan

import numpy as np
import pytest
from made_up_scans import make_volume, message

sitk = pytest.importorskip("SimpleITK")
ENDINGS = [".mha", ".mhd", ".nrrd", ".nhdr"]
# Rows lead to Anterior, columns to Superior, slices to Right, by some degrees.
TURNED = np.array([[0, 0.1, -1], [-1, 0, 0], [0, 1, 0.1]]) / np.array([1, 1.01**0.5, 1.01**0.5])


def save(file: Path, volume: np.ndarray, compress=False, direction=TURNED, spacing=(2.5, 0.7, 0.8)):
    image = sitk.GetImageFromArray(volume)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetOrigin((-100.5, -80.25, 40))
        image.SetDirection(direction.ravel())
    sitk.WriteImage(image, str(file), useCompression=compress)
    return image


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_voxels_are_where_itk_has_them(tmp_path, ending, compress, dtype):
    array = make_volume((19, 6, 5)).astype(dtype)
    image = save(tmp_path / f"ct{ending}", array, compress)
    scan = read_scan(tmp_path / f"ct{ending}")
    assert scan.format == ("nrrd" if ending in (".nrrd", ".nhdr") else "metaimage")
    assert scan.name == "ct" and scan.volume.dtype == np.int16
    np.testing.assert_array_equal(np.sign(np.diag(scan.direction)), [1, 1, -1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        i, j, k = (int(rng.integers(n)) for n in image.GetSize())
        place = image.TransformIndexToPhysicalPoint((i, j, k))
        x, y, z = np.rint(scan.from_patient([place])[0]).astype(int)
        assert scan.volume[z, y, x] == array[k, j, i]
        np.testing.assert_allclose(scan.to_patient([[x, y, z]])[0], place, atol=1e-4)
    assert (scan.grid.restore(scan.volume) == array.T).all()


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_ct_volume(tmp_path, ending):
    file = tmp_path / f"ct{ending}"
    save(file, np.full((4, 3, 5, 3), -1, np.int16))  # ITK makes three numbers a voxel of it
    color = sitk.Compose(*[sitk.Image(3, 4, 5, sitk.sitkUInt8)] * 3)
    sitk.WriteImage(color, str(file))
    assert "found 3 numbers a voxel" in message(file)
    save(file, np.full((4, 3), -1, np.int16))
    assert "of shape (3, 4), expected numbers in three dimensions" in message(file)
    save(file, np.full((4, 3, 2), np.nan))
    assert "values that are no finite numbers" in message(file)
    save(file, np.full((4, 3, 2), 5, np.int16))
    assert "found values from 5 to 5, expected HU" in message(file)
    save(file, make_volume(), spacing=(1, 1, 500))
    assert "found the spacing (" in message(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, ending):
    file = tmp_path / f"ct{ending}"
    file.write_bytes(b"nothing of this kind")
    message(file)
    save(file, make_volume((20, 30, 40)))
    data = file.read_bytes()
    for voxels in tmp_path.glob("*.raw*"):
        voxels.write_bytes(voxels.read_bytes()[:1000])
    if ending in (".mha", ".nrrd"):
        file.write_bytes(data[:1000])
    assert "found" in message(file)
    file.write_bytes(data.replace(b"40 30 20", b"16000 16000 16000"))
    assert "expected at most" in message(file)
    file.write_bytes(data.replace(b"40 30 20", b"4000 3000 250"))
    assert "the file is truncated or damaged" in message(file)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("kind", ["absolute", "above", "list", "absent"])
def test_voxels_of_other_folders_are_not_read(tmp_path, ending, kind):
    folder = tmp_path / "scan"
    folder.mkdir()
    save(folder / f"ct{ending}", make_volume())
    secret = tmp_path / "secret.raw"
    next(folder.glob("*.raw*")).rename(secret)
    if kind == "list":
        name = f"LIST\n{secret}" if ending == ".nhdr" else f"LIST 3\n{secret}"
    else:
        name = {"absolute": str(secret), "above": "../secret.raw", "absent": "ct.raw"}[kind]
    lines = (folder / f"ct{ending}").read_text().splitlines()
    lines = [
        line.replace("ct.raw.gz", name)
        .replace("ct.raw", name)
        .replace("encoding: gzip", "encoding: raw")
        for line in lines
    ]
    (folder / f"ct{ending}").write_text("\n".join(lines) + "\n")
    assert "expected the name of a file in its folder" in message(folder / f"ct{ending}")


def test_a_bomb_is_not_unpacked(tmp_path):
    file = tmp_path / "ct.nrrd"
    header = (
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2000 2000 1000\nencoding: gzip\n"
        b"endian: little\nspace: left-posterior-superior\n"
        b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    )
    file.write_bytes(header + gzip.compress(bytes(100_000)))
    assert "expected pixels of 8000000000" in message(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_flipped_bit_of_compressed_voxels_is_told(tmp_path, ending):
    file, volume = tmp_path / f"ct{ending}", make_volume()
    save(file, volume, compress=True)
    packed = next((f for f in tmp_path.glob("*.*raw*")), file)
    data, rng = packed.read_bytes(), np.random.default_rng(0)
    start = 600 if packed == file else 0  # behind the header, which has no checksum
    told = 0
    for bit in rng.integers(8 * start, 8 * len(data), 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        packed.write_bytes(flipped)
        try:
            scan = read_scan(file)
        except ValueError as error:
            assert str(error).startswith(f"{file}: found ") and "\n" not in str(error)
            told += 1
        else:  # of gzip's header, such as the time
            assert (scan.grid.restore(scan.volume) == volume.T).all()
    assert told > 4


@pytest.mark.parametrize("ending", ENDINGS)
def test_compressed_voxels_are_as_many_as_the_header_says(tmp_path, ending):
    file, volume = tmp_path / f"ct{ending}", make_volume()
    save(file, volume, compress=True)
    data = file.read_bytes()
    for size, text in (
        (b"16 12 6", "found damaged voxels (there are more than the header says)"),
        (b"16 12 8", "found voxels of 2688 bytes, expected 3072"),
    ):
        file.write_bytes(data.replace(b"16 12 7", size))
        assert text in message(file)
    if ending in (".mha", ".mhd"):
        file.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", b"", data))
        if ending == ".mha":
            assert "found compressed voxels, expected a CompressedDataSize" in message(file)
        else:  # the size is that of the file beside it
            scan = read_scan(file)
            assert (scan.grid.restore(scan.volume) == volume.T).all()
