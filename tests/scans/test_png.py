import struct
import zlib
from pathlib import Path

from lesion_d2.data.slices.ct import read_slice
from lesion_d2.data.slices.pictures import picture_path
from lesion_d2.scans import find_scans, read_scan
from lesion_d2.scans.png import numbered_pngs, read_png_slice, write_png

import cv2
import numpy as np
import pytest
from made_up_scans import make_volume
from slice_files import write_slices

HEADER = "File_name,Spacing_mm_px_\n"


def message(folder, **options) -> str:
    with pytest.raises(ValueError) as error:
        read_scan(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_of_deeplesion(tmp_path):
    volume = make_volume()
    folder = write_slices(
        tmp_path / "Images_png" / "000007_01_02", dict(enumerate(volume, start=97))
    )
    (tmp_path / "DL_info.csv").write_text(
        f'{HEADER}000007_01_01_099.png,"9, 9, 9"\n'
        '000007_01_02_099.png,"0.7, 0.8, 2.5"\n000007_01_02_100.png,"0.7, 0.8, 2.5"\n'
    )
    scan = read_scan(folder)

    assert (scan.volume == volume).all() and scan.spacing == (0.7, 0.8, 2.5)
    assert (scan.name, scan.format, scan.messages) == ("000007_01_02", "png", ())
    assert [Path(source.file).name for source in scan.sources][:3] == [
        "097.png",
        "098.png",
        "099.png",
    ]
    assert read_scan(folder, spacing=(1, 1, 5)).spacing == (1, 1, 5)

    (candidate,) = find_scans([tmp_path]).candidates
    assert candidate.num_slices == 7 and (candidate.read().volume == volume).all()


def test_a_missing_slice_is_filled_in_and_a_gap_is_refused(tmp_path):
    volume = make_volume()
    folder = write_slices(tmp_path / "s", dict(zip([1, 2, 3, 5, 6, 7, 8], volume, strict=True)))
    scan = read_scan(folder, spacing=(1, 1, 2))
    assert len(scan.volume) == 8 and (scan.volume[4:] == volume[3:]).all()
    assert "slices are missing between 003.png and 005.png" in scan.messages[1]
    for number in (5, 6):
        (folder / f"00{number}.png").unlink()
    assert "gap of 8 mm between 003.png and 007.png" in message(folder, spacing=(1, 1, 2))
    assert len(read_scan(folder, spacing=(1, 1, 2), allow_gaps=True).volume) == 8


def test_spacing_that_is_not_known(tmp_path):
    folder = write_slices(tmp_path / "s", make_volume())
    assert "s: found no DL_info.csv beside it, expected one or a spacing" in message(folder)
    csv_file = tmp_path / "DL_info.csv"
    for text, found in (
        (HEADER, "found no row as spacing of s"),
        (f'{HEADER}s_1.png,"1, 1, 1"\ns_2.png,"1, 1, 2"\n', "found 1, 1, 1 and 1, 1, 2 as"),
        (f'{HEADER}s_1.png,"1, x, 1"\n', "found the spacing '1, x, 1' of s"),
        (f'{HEADER}s_1.png,"1, 0, 1"\n', "found the spacing (1.0, 0.0, 1.0), expected for x, y"),
        ("File_name,File_name\n", "found the column 'File_name' 2 times"),
        ("a,b\n1,2\n", "found no readable CSV with columns File_name"),
    ):
        csv_file.write_text(text)
        assert found in message(folder)
    assert "found the spacing (1, 1), expected" in message(folder, spacing=(1, 1))


def test_a_damaged_slice_is_refused_with_its_file(tmp_path):
    folder = write_slices(tmp_path / "s", make_volume())
    good = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(good[:-9])
    assert "003.png: truncated PNG" in message(folder, spacing=(1, 1, 1))
    cv2.imwrite(str(folder / "003.png"), np.zeros((4, 4), np.uint16))
    assert "003.png: found 4 x 4 pixels, expected 16 x 12" in message(folder, spacing=(1, 1, 1))
    cv2.imwrite(str(folder / "000.png"), np.zeros((12, 16, 3), np.uint8))
    assert "000.png: found a 8-bit RGB PNG, expected 16-bit" in message(folder, spacing=(1, 1, 1))
    huge = bytearray(good)
    huge[16:24] = (100_000).to_bytes(4, "big") * 2
    (folder / "000.png").write_bytes(huge)
    assert "000.png: found 100000 x 100000 pixels, expected 1 x 1 to 8192" in message(
        folder, spacing=(1, 1, 1)
    )


# --- files ----------------------------------------------------------------------------------------

HU = np.random.default_rng(0).normal(0, 300, (10, 14)).astype(np.int16)
ROWS = (HU.astype(int) + 32768).astype(">u2")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height=10, width=14, *, interlaced=False, before=b"", rows=ROWS) -> bytes:
    """A PNG of :data:`ROWS`, or whose header says something else."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    passes = [*passes, (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    lines = [b"\0" + row.tobytes() for x, y, dx, dy in passes for row in rows[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, int(interlaced))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(lines)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + chunk(b"IEND", b"")


def read(file: Path, data: bytes, size=None):
    """A slice, or why it is none: in one line that names the file first."""
    file.write_bytes(data)
    try:
        return read_png_slice(file, size)
    except ValueError as error:
        text = str(error)
        assert text.startswith(f"{file}: ") and "\n" not in text
        return text.removeprefix(f"{file}: ")


def test_files_of_any_kind_give_the_right_values_or_one_line(tmp_path):
    file = tmp_path / "a.png"
    for data in (
        png(),
        png(interlaced=True),
        png() + b"after the end",
        png(before=chunk(b"tEXt", b"a\0" + bytes(1000)) + chunk(b"gAMA", bytes([0, 0, 100, 0]))),
        png(before=chunk(b"tRNS", ROWS[0, 0].tobytes())),
    ):
        assert np.array_equal(read(file, data, (10, 14)), HU)

    animation = chunk(b"acTL", struct.pack(">II", 1, 0))
    for data, text in (
        (png(60000, 60000), "found 60000 x 60000 pixels, expected 1 x 1 to 8192 x 8192"),
        (png(8193, 1), "found 1 x 8193 pixels, expected 1 x 1 to 8192 x 8192"),
        (png(height=0), "found 14 x 0 pixels, expected 1 x 1 to 8192 x 8192"),
        (png(height=11), "damaged PNG, its pixels cannot be decoded"),
        (png(before=animation), "found an animated PNG, expected one image"),
        (png(before=png()[8:33]), "damaged PNG, it has two headers"),
        (png()[:-13], "truncated PNG, its end chunk (IEND) is missing"),
    ):
        assert read(file, data) == text


def test_no_more_is_decoded_than_the_data_set_says(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("decoded"))
    found = read(tmp_path / "a.png", png(8192, 8192), (10, 14))
    assert found == "found 8192 x 8192 pixels, expected 14 x 10"
    found = read(tmp_path / "a.png", png(interlaced=True), (20, 14))
    assert found == "found 14 x 10 pixels, expected 14 x 20"
    with pytest.raises(ValueError, match="found 14 x 10 pixels, expected 10 x 14"):
        read_slice(tmp_path / "a.png", (14, 10))


def test_a_flipped_bit_is_told_by_whatever_reads_the_file(tmp_path):
    data, file, rng = png(), tmp_path / "a.png", np.random.default_rng(1)
    for bit in rng.choice(8 * len(data), 50, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert isinstance(read(file, flipped), str)
        with pytest.raises(ValueError, match=r"found|damaged|truncated") as error:
            read_slice(picture_path(file, hu_offset=32768))
        assert "\n" not in str(error.value)


def test_pictures_are_written_as_opencv_writes_them(tmp_path):
    for name, image, options in (
        ("a", ROWS.astype(np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 1]),
        ("b", ROWS.astype(np.uint8), []),
    ):
        write_png(tmp_path / f"{name}.png", image, options)
        cv2.imwrite(str(tmp_path / "opencv.png"), image, options)
        written, expected = ((tmp_path / f"{n}.png").read_bytes() for n in (name, "opencv"))
        assert written == expected
    color = np.random.default_rng(2).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", color)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], color)


def test_file_names_are_slice_numbers():
    names = ["10.png", "9.png", "a.png", "3.txt", "²1.png", ".png", "011.png"]
    assert numbered_pngs(names) == ["9.png", "10.png", "011.png"]
