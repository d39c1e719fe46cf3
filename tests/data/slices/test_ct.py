import math
import shutil
from pathlib import Path

import lesion_d2.data.slices.ct as ct
from lesion_d2.data.slices.ct import hu_to_pixels, read_slice, slice_stack

import cv2
import numpy as np
import pytest
import torch
from slice_files import write_slice, write_slices

SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "deeplesion_sample"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="no DeepLesion sample beside")


def write_series(folder: Path, indices, height: int = 5, width: int = 7) -> dict[int, np.ndarray]:
    """Random slices, full 16 bits, by their number."""
    rng = np.random.default_rng(0)
    series = {i: rng.integers(-32768, 32768, (height, width)).astype(np.int16) for i in indices}
    write_slices(folder, series)
    return series


def slow_stack(series, key, num_slices, interval, spacing_z, slice_range=None) -> np.ndarray:
    """Pixel by pixel in Python floats, unrounded."""

    def existing(index):
        first, last = slice_range or (min(series), max(series))
        while index not in series or not first <= index <= last:
            index += 1 if index < key else -1
        return series[index]

    height, width = series[key].shape
    stack = np.zeros((num_slices, height, width))
    for channel in range(num_slices):
        position = key + (channel - num_slices // 2) * interval / spacing_z
        below = math.floor(position)
        for y in range(height):
            for x in range(width):
                value = float(existing(below)[y, x])
                if position > below:
                    value *= 1 - (position - below)
                    value += float(existing(below + 1)[y, x]) * (position - below)
                stack[channel, y, x] = value
    return stack


def test_read_slice_is_lossless_over_all_16_bits(tmp_path):
    hu = np.arange(-32768, 32768).reshape(256, 256)
    read = read_slice(write_slice(tmp_path / "001.png", hu))
    assert read.dtype == np.int16
    assert (read == hu).all()


@pytest.mark.parametrize("spacing_z", [0.8, 1.0, 1.25, 2.0, 2.5, 4.0, 5.0])
@pytest.mark.parametrize("num_slices", [1, 3, 9])
def test_stack_equals_per_pixel_interpolation(tmp_path, spacing_z, num_slices):
    series = write_series(tmp_path, range(20, 45))
    stack = slice_stack(
        tmp_path / "032.png", num_slices=num_slices, interval=2.0, spacing_z=spacing_z
    )
    slow = slow_stack(series, 32, num_slices, 2.0, spacing_z)
    assert stack.dtype == np.int16 and stack.shape == (num_slices, 5, 7)
    # Rounded to the nearest integer; either way at a half, which floats do not always hit.
    assert np.abs(stack - slow).max() <= 0.5 + 1e-2
    assert (stack[num_slices // 2] == series[32]).all()


def test_stack_replaces_missing_slices_on_the_way_to_the_key_slice(tmp_path):
    # 29 and 36 are gaps, 31..34 is the end where a range says so.
    series = write_series(tmp_path, [28, 30, 31, 32, 33, 34, 35, 37])
    for slice_range in (None, (28, 37), (31, 34)):
        for spacing_z in (1.0, 1.6, 5.0):
            stack = slice_stack(
                tmp_path / "032.png",
                num_slices=7,
                interval=2.0,
                spacing_z=spacing_z,
                slice_range=slice_range,
            )
            slow = slow_stack(series, 32, 7, 2.0, spacing_z, slice_range)
            assert np.abs(stack - slow).max() <= 0.5 + 1e-2
    stack = slice_stack(tmp_path / "032.png", num_slices=7, interval=2.0, spacing_z=1.0)
    expected = [28, 28, 30, 32, 34, 35, 37]  # 26 is past the end: 28; 36 is missing: 35; 38: 37
    assert all((channel == series[i]).all() for channel, i in zip(stack, expected, strict=True))


@pytest.mark.parametrize("spacing_z", [1.0, 5.0])
def test_without_an_interval_the_channels_are_the_neighbors_in_the_series(tmp_path, spacing_z):
    series = write_series(tmp_path, [29, 31, 32, 33, 34, 35, 36])
    stack = slice_stack(tmp_path / "032.png", num_slices=7, interval=0.0, spacing_z=spacing_z)
    expected = [29, 31, 31, 32, 33, 34, 35]  # 30 is missing
    assert all((channel == series[i]).all() for channel, i in zip(stack, expected, strict=True))


def test_stack_of_a_lone_key_slice_repeats_it(tmp_path):
    series = write_series(tmp_path, [5])
    stack = slice_stack(tmp_path / "005.png", num_slices=5, interval=2.0, spacing_z=3.0)
    assert (stack == series[5]).all()


def test_stack_reads_every_needed_file_once(tmp_path, monkeypatch):
    write_series(tmp_path, range(20, 45))
    read = []
    monkeypatch.setattr(
        ct, "read_slice", lambda f, s: read.append(Path(f).name) or read_slice(f, s)
    )
    ct.slice_stack(tmp_path / "032.png", num_slices=3, interval=2.0, spacing_z=5.0)
    assert read == ["031.png", "032.png", "033.png"]
    read.clear()
    ct.slice_stack(tmp_path / "032.png", num_slices=3, interval=2.0, spacing_z=1.0)
    assert read == ["030.png", "032.png", "034.png"]
    read.clear()
    ct.slice_stack(tmp_path / "032.png", num_slices=3, interval=0.6, spacing_z=0.2)
    assert read == ["029.png", "032.png", "035.png"]  # 0.6 / 0.2 is 2.9999999999999996


def test_window_clips_before_interpolation(tmp_path):
    write_slice(tmp_path / "001.png", np.full((2, 2), -3024))
    write_slice(tmp_path / "002.png", np.full((2, 2), 0))
    write_slice(tmp_path / "003.png", np.full((2, 2), 3000))
    arguments = {"num_slices": 3, "interval": 1.0, "spacing_z": 2.0}
    raw = slice_stack(tmp_path / "002.png", **arguments)
    assert raw[:, 0, 0].tolist() == [-1512, 0, 1500]
    clipped = slice_stack(tmp_path / "002.png", window=(-1024.0, 1050.0), **arguments)
    assert clipped[:, 0, 0].tolist() == [-512, 0, 525]
    wide = slice_stack(tmp_path / "002.png", window=(-1e6, 1e6), **arguments)
    assert (wide == raw).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_slices": 4}, "found num_slices 4, expected an odd number"),
        ({"num_slices": 0}, "expected an odd number"),
        ({"interval": -1.0}, "slice interval -1.0 mm"),
        ({"spacing_z": 0.0}, "slice spacing 0.0 mm"),
        ({"spacing_z": -5.0}, "slice spacing -5.0 mm"),
        ({"spacing_z": math.nan}, "slice spacing nan mm"),
        ({"spacing_z": math.inf}, "slice spacing inf mm"),
        ({"window": (100.0, 100.0)}, "expected low < high"),
    ],
)
def test_an_invalid_geometry_is_refused(tmp_path, change, message):
    write_series(tmp_path, [5])
    arguments = {"num_slices": 3, "interval": 2.0, "spacing_z": 1.0} | change
    with pytest.raises(ValueError, match=message) as error:
        slice_stack(tmp_path / "005.png", **arguments)
    assert "window" in change or "005.png" in str(error.value)


def test_files_that_are_no_16_bit_slices_are_refused(tmp_path):
    def message(name):
        with pytest.raises(ValueError) as error:
            read_slice(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "8bit.png"), rng.integers(0, 255, (64, 64), np.uint8))
    cv2.imwrite(str(tmp_path / "rgb.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "rgb16.png"), rng.integers(0, 65535, (64, 64, 3), np.uint16))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is not an image, whatever its name says")
    assert "8-bit grayscale" in message("8bit.png")
    assert "8-bit RGB" in message("rgb.png")
    assert "16-bit RGB" in message("rgb16.png")
    assert "0 bytes" in message("empty.png")
    assert "no PNG" in message("text.png")
    with pytest.raises(FileNotFoundError, match=r"007\.png"):
        read_slice(tmp_path / "007.png")
    write_series(tmp_path, [5])
    shutil.copy(tmp_path / "005.png", tmp_path / "key.png")
    with pytest.raises(ValueError, match=r"key\.png.*<slice number>\.png"):
        slice_stack(tmp_path / "key.png", num_slices=3, interval=2.0, spacing_z=1.0)


def test_truncated_or_damaged_file(tmp_path):
    write_series(tmp_path, [5], 64, 64)
    whole = (tmp_path / "005.png").read_bytes()
    for length in (27, 100, len(whole) // 2, len(whole) - 13, len(whole) - 1):
        (tmp_path / "006.png").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"006\.png: truncated"):
            read_slice(tmp_path / "006.png")
    (tmp_path / "007.png").write_bytes(whole[:33] + whole[-12:])  # header and end, no pixels
    with pytest.raises(ValueError, match=r"007\.png: damaged"):
        read_slice(tmp_path / "007.png")
    # A truncated neighbor is an error too, not a missing slice.
    with pytest.raises(ValueError, match=r"006\.png: truncated"):
        slice_stack(tmp_path / "005.png", num_slices=3, interval=1.0, spacing_z=1.0)


def test_slices_of_different_sizes(tmp_path):
    write_slice(tmp_path / "005.png", np.zeros((6, 8)))
    write_slice(tmp_path / "006.png", np.zeros((6, 9)))
    with pytest.raises(ValueError, match=r"006\.png: found 9 x 6 pixels.*8 x 6"):
        slice_stack(tmp_path / "005.png", num_slices=3, interval=1.0, spacing_z=1.0)


@pytest.mark.parametrize("window", [(-1024.0, 1050.0), (-175, 275), (-0.5, 0.5)])
def test_hu_to_pixels(window):
    hu = np.array([[-32768, -3024, -1024, -175], [0, 275, 1050, 32767]], np.int16)
    low, high = window
    expected = [[(min(max(float(v), low), high) - low) / (high - low) * 255 for v in r] for r in hu]
    before = hu.copy()
    pixels = hu_to_pixels(hu, window)
    assert pixels.dtype == np.float32 and pixels.shape == hu.shape
    np.testing.assert_allclose(pixels, expected, atol=1e-3)
    assert pixels.min() == 0.0 and pixels.max() <= 255.0
    tensor = hu_to_pixels(torch.from_numpy(hu), window)
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), pixels, atol=1e-4)
    assert (hu == before).all()
    floats = torch.from_numpy(hu.astype(np.float32))
    hu_to_pixels(floats, window)
    assert (floats.numpy() == before).all()


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_hu_to_pixels_refuses_an_empty_window(window):
    with pytest.raises(ValueError, match="expected low < high"):
        hu_to_pixels(np.zeros(3, np.int16), window)


@needs_sample
def test_real_slices_are_what_opencv_reads():
    folder = SAMPLE / "Images_png" / "000001_01_01"
    hu = read_slice(folder / "109.png")
    raw = cv2.imread(str(folder / "109.png"), cv2.IMREAD_UNCHANGED)
    assert hu.shape == (512, 512)
    assert (hu == raw.astype(np.int32) - 32768).all()
    assert hu.min() == -3024 and 1000 < hu.max() < 4000  # filling outside the field of view; bone
    arguments = {"num_slices": 3, "interval": 2.0, "spacing_z": 5.0, "slice_range": (103, 115)}
    stack = slice_stack(folder / "109.png", window=(-1024.0, 1050.0), **arguments)
    neighbors = [np.clip(read_slice(folder / f"{i}.png"), -1024, 1050) for i in (108, 109, 110)]
    assert (stack[1] == neighbors[1]).all()
    assert (stack[0] == np.rint(neighbors[1] * 0.6 + neighbors[0] * 0.4)).all()
    assert (stack[2] == np.rint(neighbors[1] * 0.6 + neighbors[2] * 0.4)).all()
