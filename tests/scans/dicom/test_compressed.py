"""Transfer syntaxes, and packages that decode them."""

import struct

from lesion_d2.scans import find_scans, read_scan
from lesion_d2.scans.dicom import pixels

import numpy as np
import pydicom
import pytest
from made_up_scans import change, set_values, write_series
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders import JPEGLSLosslessDecoder


def smooth() -> np.ndarray:
    """Values as compression meets them, with some below 0."""
    y, x = np.mgrid[:80, :64]
    return (200 * np.sin(x / 5) * np.cos(y / 7) + np.reshape([0, -800, 30], (3, 1, 1))).astype(
        np.int16
    )


@pytest.fixture
def files(tmp_path):
    return write_series(tmp_path / "ct", smooth())


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_lossless_syntaxes_give_the_same_values(tmp_path, files, syntax, signed):
    def edit(dataset, index):
        if not signed:
            stored = (smooth()[index] + 1024).astype(np.uint16)
            dataset.PixelData, dataset.PixelRepresentation = stored.tobytes(), 0
            dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 12, 11, -1024
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            if syntax == uid.ExplicitVRBigEndian:
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
                dataset["PixelData"].VR = "OW"
            dataset.file_meta.TransferSyntaxUID = syntax

    for file in files:
        dataset = pydicom.dcmread(file)
        edit(dataset, files.index(file))
        implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
        pydicom.dcmwrite(file, dataset, implicit_vr=implicit, little_endian=little)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID == syntax
    scan = read_scan(tmp_path / "ct")
    assert (scan.volume == smooth()).all() and scan.messages == ()


@pytest.mark.skipif("not __import__('shutil').which('dcmcjpeg')", reason="dcmtk is not installed")
@pytest.mark.parametrize("option", ["+e1", "+el"])  # lossless of selection value 1, and of any
def test_lossless_jpeg_of_dcmtk(tmp_path, files, option):
    import subprocess

    for file in files:
        subprocess.run(["dcmcjpeg", option, file, file], check=True, capture_output=True)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID in uid.JPEGTransferSyntaxes
    assert (read_scan(tmp_path / "ct").volume == smooth()).all()


def test_lossy_compression_is_told(tmp_path, files):
    def edit(dataset, index):
        dataset.compress(uid.JPEGLSNearLossless, jls_error=2, generate_instance_uid=False)
        dataset.LossyImageCompression = "01"

    change(files, edit)
    scan = read_scan(tmp_path / "ct")
    assert 0 < np.abs(scan.volume - smooth()).max() <= 2
    assert scan.messages == ("the slices went through lossy compression",)


def test_without_file_meta_or_preamble(tmp_path, files):
    """As files were written before DICOM's file format."""
    for file in files:
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert files[0].read_bytes()[:2] == b"\x08\x00"
    assert (read_scan(tmp_path / "ct").volume == smooth()).all()


def test_a_missing_decoder_names_its_package(tmp_path, files, monkeypatch):
    change(files, lambda dataset, _: dataset.compress(uid.JPEGLSLossless))
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    monkeypatch.setattr(
        JPEGLSLosslessDecoder,
        "_unavailable",
        {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-libjpeg>=2.1")},
    )
    found = find_scans([tmp_path / "ct"])
    (line,) = found.left_out
    assert not found.candidates and "0000.dcm and 2 more (series 1, " in line
    assert "found pixels in JPEG-LS Lossless Image Compression, expected a package" in line
    assert "pylibjpeg-libjpeg>=2.1" in line and line.endswith('(pip install -e ".[scans]")')


def test_a_syntax_that_nothing_decodes(tmp_path, files):
    def edit(dataset, index):
        dataset.PixelData = encapsulate([bytes(100)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = uid.MPEG2MPML

    change(files, edit)
    assert "which nothing here decodes" in find_scans([tmp_path / "ct"]).left_out[0]


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_a_size_that_would_fill_the_memory_reaches_no_decoder(tmp_path, files, syntax, monkeypatch):
    change(files, lambda dataset, _: dataset.compress(syntax, generate_instance_uid=False))
    assert (read_scan(tmp_path / "ct").volume == smooth()).all()

    def forge(dataset, index):
        data = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
        if syntax == uid.JPEGLSLossless:
            struct.pack_into(">HH", data, data.find(b"\xff\xf7") + 5, 60000, 60000)
        else:
            struct.pack_into(">II", data, data.find(b"\xff\x51") + 6, 60000, 60000)
        dataset.PixelData = encapsulate([bytes(data)])

    change(files[1:2], forge)
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *_: pytest.fail("it was decoded"))
    change(files[:1], forge)
    with pytest.raises(
        ValueError, match=r"0000\.dcm: found pixels .*declare the size \(60000, 600"
    ):
        read_scan(tmp_path / "ct")


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_damaged_codestreams_are_one_line(tmp_path, files, syntax):
    change(files, lambda dataset, _: dataset.compress(syntax, generate_instance_uid=False))

    def cut(dataset, index):
        data = get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encapsulate([data[: len(data) // 8]])

    change(files[1:2], cut)
    with pytest.raises(
        ValueError, match=r"0001\.dcm: found pixels that cannot be decoded"
    ) as error:
        read_scan(tmp_path / "ct")
    assert "\n" not in str(error.value)


def test_a_segment_that_is_too_long_is_one_line(tmp_path, files):
    """A decoder that is written in Rust panics, which is no Exception of Python's."""
    change(files, lambda dataset, _: dataset.compress(uid.RLELossless, generate_instance_uid=False))

    def lengthen(dataset, index):
        data = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
        second = struct.unpack_from("<I", data, 8)[0]
        data[second:second] = b"\x81\x00" * 100  # the first segment goes on
        struct.pack_into("<I", data, 8, second + 200)
        dataset.PixelData = encapsulate([bytes(data)])

    change(files[1:2], lengthen)
    with pytest.raises(
        ValueError, match=r"0001\.dcm: found pixels that cannot be decoded"
    ) as error:
        read_scan(tmp_path / "ct")
    assert "\n" not in str(error.value)


def test_a_deflated_bomb_is_not_inflated(tmp_path, files, monkeypatch):
    change(
        files,
        lambda dataset, _: setattr(
            dataset.file_meta, "TransferSyntaxUID", uid.DeflatedExplicitVRLittleEndian
        ),
    )
    monkeypatch.setattr("lesion_d2.scans.dicom.files.MAX_INFLATED", 1000)
    found = find_scans([tmp_path / "ct"])
    assert (
        not found.candidates and "deflated DICOM file of more than 1000 bytes" in found.left_out[0]
    )
    assert pixels.missing_decoder(uid.DeflatedExplicitVRLittleEndian) is None


def test_bits_that_no_ct_has(tmp_path, files):
    change(files, set_values(HighBit=12, BitsStored=10))
    assert "found pixels of 10 bits below bit 12 of 16" in find_scans([tmp_path / "ct"]).left_out[0]
