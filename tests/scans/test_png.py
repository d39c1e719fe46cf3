from pathlib import Path

from lesion_d2.scans import find_scans, read_scan
from lesion_d2.scans.png import numbered_pngs

import cv2
import numpy as np
import pytest
from made_up_scans import make_volume

HEADER = "File_name,Spacing_mm_px_\n"


def save(folder: Path, volume: np.ndarray, numbers) -> Path:
    folder.mkdir(parents=True)
    for number, hu in zip(numbers, volume, strict=True):
        cv2.imwrite(str(folder / f"{number:03d}.png"), (hu.astype(int) + 32768).astype(np.uint16))
    return folder


def message(folder, **options) -> str:
    with pytest.raises(ValueError) as error:
        read_scan(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_of_deeplesion(tmp_path):
    volume = make_volume()
    folder = save(tmp_path / "Images_png" / "000007_01_02", volume, range(97, 104))
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


def test_missing_slices(tmp_path):
    volume = make_volume()
    folder = save(tmp_path / "s", volume, [1, 2, 3, 5, 6, 7, 8])
    scan = read_scan(folder, spacing=(1, 1, 2))
    assert len(scan.volume) == 8 and (scan.volume[4:] == volume[3:]).all()
    assert "slices are missing between 003.png and 005.png" in scan.messages[1]
    for number in (5, 6):
        (folder / f"00{number}.png").unlink()
    assert "gap of 8 mm between 003.png and 007.png" in message(folder, spacing=(1, 1, 2))
    assert len(read_scan(folder, spacing=(1, 1, 2), allow_gaps=True).volume) == 8


def test_spacing_that_is_not_known(tmp_path):
    folder = save(tmp_path / "s", make_volume(), range(7))
    assert "s: found no DL_info.csv beside it, expected one or a spacing" in message(folder)
    csv_file = tmp_path / "DL_info.csv"
    for text, found in (
        (HEADER, "found no row as spacing of s"),
        (f'{HEADER}s_1.png,"1, 1, 1"\ns_2.png,"1, 1, 2"\n', "found 1, 1, 1 and 1, 1, 2 as"),
        (f'{HEADER}s_1.png,"1, x, 1"\n', "found the spacing '1, x, 1' of s"),
        (f'{HEADER}s_1.png,"1, 0, 1"\n', "found the spacing (1.0, 0.0, 1.0), expected for x, y"),
        ("a,b\n1,2\n", "found no readable CSV with columns File_name"),
    ):
        csv_file.write_text(text)
        assert found in message(folder)
    assert "found the spacing (1, 1), expected" in message(folder, spacing=(1, 1))


def test_bad_slices(tmp_path):
    folder = save(tmp_path / "s", make_volume(), range(7))
    good = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(good[:-9])
    assert "003.png: truncated PNG" in message(folder, spacing=(1, 1, 1))
    cv2.imwrite(str(folder / "003.png"), np.zeros((4, 4), np.uint16))
    assert "003.png: found 4 x 4 pixels, expected 16 x 12" in message(
        folder, spacing=(1, 1, 1)
    )
    cv2.imwrite(str(folder / "000.png"), np.zeros((12, 16, 3), np.uint8))
    assert "000.png: found a 8-bit RGB PNG, expected 16-bit" in message(folder, spacing=(1, 1, 1))
    huge = bytearray(good)
    huge[16:24] = (100_000).to_bytes(4, "big") * 2
    (folder / "000.png").write_bytes(huge)
    assert "000.png: found 100000 x 100000 pixels, expected 1 x 1 to 8192" in message(folder, spacing=(1, 1, 1))


def test_file_names_are_slice_numbers():
    names = ["10.png", "9.png", "a.png", "3.txt", "²1.png", ".png", "011.png"]
    assert numbered_pngs(names) == ["9.png", "10.png", "011.png"]
