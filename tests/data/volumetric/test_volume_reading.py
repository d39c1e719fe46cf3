from pathlib import Path

from lesion_d2.data.slices.ct import hu_to_pixels
from lesion_d2.data.volume_set import slices, voxels
from lesion_d2.data.volume_set.dicts import load_volume_set
from lesion_d2.data.volumetric import reading
from lesion_d2.data.volumetric.reading import ResampledVolume, array_record, read_block
from lesion_d2.data.volumetric.records import volume_records

import numpy as np
import pytest
import torch
from made_up_sets import write_made_up_set
from slice_files import write_slices

WINDOW = (-900.0, 300.0)


def made_up_voxels(shape=(7, 20, 26)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1200, 500, shape).astype(np.int16)


def write_png_record(folder: Path) -> dict:
    """A record of slices 3, 4, ... in a folder."""
    volume = made_up_voxels()
    write_slices(folder, dict(enumerate(volume, start=3)))
    files = [str(folder / f"{number:03d}.png") for number in range(3, 3 + len(volume))]
    record = array_record(volume, (0.8, 0.8, 2.5), "png")
    return {**{k: v for k, v in record.items() if k != "voxels"}, "files": files}


@pytest.fixture(scope="module")
def png_record(tmp_path_factory) -> dict:
    return write_png_record(tmp_path_factory.mktemp("series"))


def slow_resample(volume: np.ndarray, shape, window) -> np.ndarray:
    """Trilinear interpolation written out, voxel by voxel, with the edges repeated."""
    volume = volume.clip(*window).astype(float)
    out = np.empty(shape)
    for index in np.ndindex(*shape):
        value = 0.0
        where = [
            min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
            for i, n, m in zip(index, volume.shape, shape, strict=True)
        ]
        for corner in np.ndindex(2, 2, 2):
            weight, at = 1.0, []
            for position, upper, n in zip(where, corner, volume.shape, strict=True):
                lower = int(position)
                weight *= (position - lower) if upper else 1 - (position - lower)
                at.append(min(lower + upper, n - 1))
            value += weight * volume[tuple(at)]
        out[index] = value
    return out


@pytest.mark.parametrize(
    ("start", "size"),
    [
        ((0, 0, 0), (7, 20, 26)),
        ((2, 3, 4), (3, 5, 6)),
        ((-2, -3, 20), (4, 30, 10)),
        ((9, 0, 0), (2, 2, 2)),
    ],
)
def test_a_block_is_a_part_of_the_padded_volume(png_record, start, size):
    padded = np.full((30, 80, 80), -1024)
    padded[10:17, 30:50, 30:56] = made_up_voxels()
    z, y, x = (s + o for s, o in zip(start, (10, 30, 30), strict=True))
    expected = padded[z : z + size[0], y : y + size[1], x : x + size[2]]
    found = read_block(png_record, start, size)
    assert found.dtype == np.int16 and np.array_equal(found, expected)
    in_memory = array_record(made_up_voxels(), None)
    assert np.array_equal(read_block(in_memory, start, size), expected)
    found[:] = 0  # the caller's own
    assert np.array_equal(read_block(in_memory, start, size), expected)


def test_no_more_slices_are_read_than_asked_for(tmp_path, monkeypatch):
    record, read = write_png_record(tmp_path), []
    original = reading.read_slice
    monkeypatch.setattr(reading, "read_slice", lambda f, size: read.append(f) or original(f, size))
    read_block(record, (2, 0, 0), (2, 20, 26))
    assert read == record["files"][2:4]


def test_of_a_volume_set_only_the_voxels_of_a_block_are_read(tmp_path, monkeypatch):
    root, volumes = write_made_up_set(Path(tmp_path))
    record = volume_records(load_volume_set(root, every_slice=True))[0]
    asked = []
    monkeypatch.setattr(
        slices, "read_voxels", lambda *args: asked.append(args[1:]) or voxels.read_voxels(*args)
    )
    block = read_block(record, (-1, 30, 50), (4, 30, 20), -5)
    assert asked == [(0, 3, 30, 48, 50, 64)]
    whole = voxels.read_voxels(root / volumes[0].image)
    assert (block[0] == -5).all() and (block[:, 18:] == -5).all()
    assert np.array_equal(block[1:, :18, :14], whole[:3, 30:, 50:])


def test_resampling_is_trilinear_interpolation_written_out():
    voxels = made_up_voxels((3, 5, 6))
    volume = ResampledVolume(array_record(voxels, (0.8, 0.8, 2.5)), (1.3, 0.5, 1.0), WINDOW)
    assert volume.shape == (8, 8, 4)  # of 7.5 x 4 x 4.8 mm
    found = volume.read((0, 0, 0), volume.shape)
    assert np.abs(found - slow_resample(voxels, volume.shape, WINDOW)).max() <= 0.501


@pytest.mark.parametrize("spacing", [(1.3, 0.5, 1.0), (0.8, 0.8, 5.0), (0.0, 0.6, 0.0)])
def test_resampling_is_that_of_torch(png_record, spacing):
    volume = ResampledVolume(png_record, spacing, WINDOW)
    known = png_record["spacing"]
    sides = zip((26, 20, 7), known, spacing, strict=True)
    assert volume.shape == tuple(round(n * k / (s or k)) for n, k, s in sides)[::-1]
    found = volume.read((0, 0, 0), volume.shape)
    source = torch.from_numpy(made_up_voxels().clip(*WINDOW)).double()[None, None]
    expected = torch.nn.functional.interpolate(source, volume.shape, mode="trilinear")[0, 0]
    assert np.abs(found - expected.numpy()).max() <= 0.501


def test_without_a_spacing_voxels_stay_as_they_are(png_record):
    volume = ResampledVolume(png_record, (0, 0, 0), WINDOW)
    found = volume.read((0, 0, 0), volume.shape)
    assert np.array_equal(found, made_up_voxels().clip(-900, 300))


@pytest.mark.parametrize("spacing", [(1.3, 0.5, 1.0), (0.7, 0.9, 5.7), (0.0, 0.0, 0.83)])
def test_blocks_have_the_voxels_of_the_whole(png_record, spacing):
    volume = ResampledVolume(png_record, spacing, WINDOW)
    margin = 3
    size = tuple(n + 2 * margin for n in volume.shape)
    whole = volume.read((-margin,) * 3, size)
    assert (whole[:margin] == -900).all() and (whole[:, :, -margin:] == -900).all()
    rng = np.random.default_rng(1)
    for _ in range(30):
        start = np.array([rng.integers(0, n) for n in size])
        end = [rng.integers(a + 1, n + 1) for a, n in zip(start, size, strict=True)]
        block = volume.read(start - margin, end - start)
        cut = tuple(slice(a, b) for a, b in zip(start, end, strict=True))
        assert np.array_equal(block, whole[cut])


def test_boxes_map_by_the_outer_edges(png_record):
    volume = ResampledVolume(png_record, (1.3, 0.5, 1.0), WINDOW)
    depth, height, width = volume.shape
    whole = torch.tensor([[-0.5, -0.5, -0.5, width - 0.5, height - 0.5, depth - 0.5]])
    expected = torch.tensor([[-0.5, -0.5, -0.5, 25.5, 19.5, 6.5]])
    torch.testing.assert_close(volume.to_source(whole), expected)
    boxes = np.array([[3.0, 4.0, 1.0, 9.0, 12.0, 5.5]])
    assert volume.from_source(volume.to_source(boxes)) == pytest.approx(boxes)


def test_a_shifted_ball_is_found_where_the_boxes_say():
    z, y, x = np.mgrid[:9, :40, :40]
    ball = ((z - 4) / 3) ** 2 + ((y - 22) / 9) ** 2 + ((x - 14) / 9) ** 2 <= 1
    record = array_record(np.where(ball, 100, -1000).astype(np.int16), (0.5, 0.5, 3.0))
    volume = ResampledVolume(record, (0.9, 0.8, 0.75))
    found = np.argwhere(volume.read((0, 0, 0), volume.shape) > -450)
    low, high = found.min(axis=0)[::-1] - 0.5, found.max(axis=0)[::-1] + 0.5
    box = volume.to_source(np.array([[*low, *high]]))[0]
    assert box == pytest.approx([4.5, 12.5, 0.5, 23.5, 31.5, 7.5], abs=2)


def test_what_a_model_takes_is_on_the_scale_of_the_window(png_record):
    volume = ResampledVolume(png_record, (0.8, 0.8, 1.25), WINDOW)
    block = volume.read((1, 2, -3), (4, 5, 6))
    loaded = volume.load((1, 2, -3), (4, 5, 6))
    assert loaded.dtype == torch.float32 and (loaded[..., :3] == 0).all()
    assert torch.equal(loaded, hu_to_pixels(torch.from_numpy(block), WINDOW))


def test_bad_volumes_stop_with_one_line(png_record):
    with pytest.raises(ValueError, match=r"volume png: found spacing None, expected x, y and"):
        ResampledVolume({**png_record, "spacing": None}, (0.7, 0.7, 1.25))
    with pytest.raises(ValueError, match=r"png: found 26 x 20 pixels, expected 26 x 21$"):
        read_block({**png_record, "shape": (7, 21, 26)}, (0, 0, 0), (1, 4, 4))
    with pytest.raises(ValueError, match=r"found voxels float64 of shape \(2, 2, 2\), expected"):
        array_record(np.zeros((2, 2, 2)), None)
    missing = {**png_record, "files": ["/nowhere/000.png"] * 7}
    with pytest.raises(FileNotFoundError, match=r"/nowhere/000\.png"):
        read_block(missing, (0, 0, 0), (1, 4, 4))
