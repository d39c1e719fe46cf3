import math
from pathlib import Path

from lesion_d2.data.deeplesion.key_slices import load_deeplesion
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.data.transforms.borders import body_extent, slice_files, volume_extent

import numpy as np
import pytest
from made_up_bodies import AIR, make_body
from scipy import ndimage
from slice_files import write_slices

SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "deeplesion_sample"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no real slices at {SAMPLE}")
OUTSIDE = -3024


def _slow_extent(hu, spacing):
    """Squares of pixels above the threshold, one by one, and the box around all of them."""
    height, width = hu.shape
    sides = []
    for mm in spacing:
        side = 1
        while side * mm < 5.6 - 1e-5:
            side += 2
        sides.append(side)
    kx, ky = sides
    found = []
    for y in range(height - ky + 1):
        for x in range(width - kx + 1):
            if (hu[y : y + ky, x : x + kx] > -768).all():
                found.append((x, y, x + kx, y + ky))
    if not found:
        return 0, 0, width, height
    x0, y0 = (min(box[i] for box in found) - 5 for i in (0, 1))
    x1, y1 = (max(box[i] for box in found) + 5 for i in (2, 3))
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


@pytest.mark.parametrize("seed", range(12))
def test_extent_against_squares_one_by_one(seed):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(60, 74)), rng.uniform(2, 5))
    hu = np.full(smooth.shape, OUTSIDE, np.int16)
    is_air = smooth > np.quantile(smooth, 0.2)
    is_body = smooth > np.quantile(smooth, rng.uniform(0.8, 0.97))
    hu[is_air], hu[is_body] = AIR, rng.integers(-767, 800, is_body.sum())
    hu[rng.uniform(size=hu.shape) < 0.02] = 300  # specks
    spacing = tuple(rng.choice([0.5, 0.8, 1.0, 1.4, 5.6, 8.0], 2).tolist())
    assert body_extent(hu, spacing) == _slow_extent(hu, spacing)


@pytest.mark.parametrize("mm", [0.4, 0.8, 1.2, 2.0])
def test_the_table_is_dropped_and_what_is_as_thick_as_an_arm_is_not(mm):
    hu = make_body()
    extent = body_extent(hu, (mm, mm))
    # The opening takes some pixels of round ends, fewer than the margin has.
    np.testing.assert_allclose(extent, (130 - 95, 120 - 65, 130 + 96, 120 + 66), rtol=0, atol=4)
    y, x = np.ogrid[:256, :256]
    radius = np.hypot(y + 80, x - 130)
    thickness = max(1, int(5.5 / mm) - 1)  # pixels: also where its curve is cut obliquely
    table = hu.copy()
    table[(np.abs(radius - 300) <= thickness / 2) & (np.abs(x - 130) < 40)] = 200
    assert (table != hu).sum() > 70
    assert body_extent(table, (mm, mm)) == extent
    arm = hu.copy()
    side = math.ceil(12 / mm)
    arm[200 : 200 + side, 60 : 60 + side] = 20
    assert body_extent(arm, (mm, mm)) == (*extent[:3], 205 + side)


def test_thin_things_at_the_slices_border_are_dropped_too():
    hu = make_body()
    rail = hu.copy()
    rail[-4:] = 300
    assert body_extent(rail, (0.8, 0.8)) == body_extent(hu, (0.8, 0.8))
    whole = np.full((50, 60), 10, np.int16)
    assert body_extent(whole, (0.8, 0.8)) == (0, 0, 60, 50)


@pytest.mark.parametrize("value", [OUTSIDE, AIR, -768])
def test_a_slice_without_a_body_stays_whole(value):
    hu = np.full((48, 64), value, np.int16)
    hu[20:22, 10:40] = 400  # a line
    assert body_extent(hu, (0.8, 0.8)) == (0, 0, 64, 48)


def test_a_volumes_extent_is_the_union_of_its_slices(tmp_path):
    rng = np.random.default_rng(0)
    slices = {
        number: make_body(center=rng.integers(90, 160, 2), radii=rng.integers(20, 70, 2))
        for number in (3, 4, 7, 8, 9)
    }
    slices[5] = np.full((256, 256), AIR, np.int16)  # adds nothing, instead of the whole slice
    folder = write_slices(tmp_path / "volume", slices)
    (tmp_path / "volume" / "notes.txt").write_text("no slice")
    extents = {n: body_extent(hu, (0.8, 0.8)) for n, hu in slices.items() if n != 5}
    for slice_range in ((3, 9), (4, 8), (8, 8), None):
        first, last = slice_range or (3, 9)
        inside = np.array([e for n, e in extents.items() if first <= n <= last])
        expected = (*inside[:, :2].min(axis=0), *inside[:, 2:].max(axis=0))
        found = volume_extent(folder, slice_range, (0.8, 0.8))
        assert found == expected and all(type(v) is int for v in found)
    assert len({volume_extent(folder, r, (0.8, 0.8)) for r in ((3, 9), (8, 8))}) == 2
    assert volume_extent(folder, (5, 6), (0.8, 0.8)) == (0, 0, 256, 256)


def test_slice_files_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("010.png", "9.png", "0100.png", "1.5.png", "-3.png", "mask.png", "011.PNG", "12"):
        (tmp_path / name).touch()
    expected = [(9, "9.png"), (10, "010.png"), (100, "0100.png")]
    assert list(slice_files(tmp_path).items()) == [(n, str(tmp_path / f)) for n, f in expected]
    with pytest.raises(FileNotFoundError):
        slice_files(tmp_path / "missing")


def test_a_volume_is_read_once(tmp_path, monkeypatch):
    folder = write_slices(tmp_path / "volume", {1: make_body(), 2: make_body(center=(100, 100))})
    read = []
    monkeypatch.setattr(
        "lesion_d2.data.transforms.borders.read_slice",
        lambda f, size: read.append(f) or read_slice(f, size),
    )
    assert len({volume_extent(folder, (1, 2), (0.7, 0.7)) for _ in range(5)}) == 1
    assert len(read) == 2


def test_bad_volumes_are_told_of_in_one_line(tmp_path):
    folder = write_slices(tmp_path / "volume", {1: make_body(), 2: make_body(size=(200, 256))})
    with pytest.raises(ValueError, match=r"002\.png: found 256 x 200 pixels, expected 256 x 256$"):
        volume_extent(folder, (1, 2), (0.8, 0.8))
    with pytest.raises(FileNotFoundError, match="volume: found no slice of 5 to 9, expected one"):
        volume_extent(folder, (5, 9), (0.8, 0.8))
    (tmp_path / "volume" / "003.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"003\.png: found 7 bytes that are no PNG"):
        volume_extent(folder, (3, 3), (0.8, 0.8))


@needs_sample
def test_real_slices_keep_their_lesions_and_lose_air_and_table():
    dicts = load_deeplesion(SAMPLE / "DL_info.csv", SAMPLE / "Images_png", None)
    for record in dicts:
        spacing, folder = record["spacing"][:2], str(Path(record["file_name"]).parent)
        x0, y0, x1, y1 = body_extent(read_slice(record["file_name"]), spacing)
        u0, v0, u1, v1 = volume_extent(folder, record["slice_range"], spacing)
        assert u0 <= x0 and v0 <= y0 and u1 >= x1 and v1 >= y1
        for annotation in record["annotations"]:
            left, top, right, bottom = annotation["bbox"]
            assert x0 <= left and y0 <= top and right <= x1 - 1 and bottom <= y1 - 1
    # 000001_03_01: 68 rows of air above, 60 of air with two rails of the table below the body.
    assert (x0, y0, x1, y1) == (0, 68, 512, 450)
    assert (u0, v0, u1, v1) == (0, 55, 512, 456)
