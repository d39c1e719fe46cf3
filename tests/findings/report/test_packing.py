"""Slices of a report: what a slow reader gets from their bytes, and which ones are chosen."""

import zlib

from lesion_d2.findings.report.packing import HU_RANGE, MARGIN, choose_slices, encode_slice

import numpy as np
import pytest


def decode_slowly(data: bytes, height: int, width: int) -> np.ndarray:
    """HU, pixel by pixel as JPEG-LS's predictor is defined."""
    planes = zlib.decompress(data)
    values = np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            i = y * width + x
            coded = planes[i] + 256 * planes[height * width + i]
            difference = coded // 2 if coded % 2 == 0 else -(coded + 1) // 2
            left = values[y, x - 1] if x else None
            up = values[y - 1, x] if y else None
            if left is None or up is None:
                foretold = left if up is None else up
                foretold = 0 if foretold is None else foretold
            else:
                corner = values[y - 1, x - 1]
                if corner >= max(left, up):
                    foretold = min(left, up)
                elif corner <= min(left, up):
                    foretold = max(left, up)
                else:
                    foretold = left + up - corner
            values[y, x] = (foretold + difference) % 4096
    return values - 1024


@pytest.mark.parametrize("kind", ["noise", "extremes", "flat", "ramp"])
def test_slice_is_kept_to_the_bit(kind):
    rng = np.random.default_rng(1)
    hu = {
        "noise": rng.integers(-3024, 4000, (23, 17)),
        "extremes": rng.choice([-32768, -1024, 3071, 32767], (23, 17)),
        "flat": np.full((23, 17), -1000),
        "ramp": np.add.outer(np.arange(23) * 60, np.arange(17) * 90) - 1024,
    }[kind].astype(np.int16)
    assert (decode_slowly(encode_slice(hu), 23, 17) == hu.clip(*HU_RANGE)).all()


def test_smooth_slice_is_small():
    y, x = np.mgrid[:64, :64]
    smooth = (40 + 30 * np.sin(x / 9) + 20 * np.cos(y / 7)).astype(np.int16)
    assert len(encode_slice(smooth)) < 64 * 64 * 12 / 8 / 3


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """200 slices of noise, which all take the same room."""
    return np.random.default_rng(2).integers(-1024, 3072, (200, 16, 16), dtype=np.int16)


@pytest.fixture(scope="module")
def slice_bytes(volume) -> int:
    return max(map(len, choose_slices(volume, [], limit=None).coded.values()))


def test_without_a_limit_all_slices_are_there(volume, small_findings):
    chosen = choose_slices(volume, small_findings.findings, limit=None)
    assert list(chosen.coded) == list(range(200))
    assert chosen.step == 1 and chosen.left_out == 0


def test_a_large_limit_has_room_for_all(volume, small_findings, slice_bytes):
    chosen = choose_slices(volume, small_findings.findings, limit=201 * slice_bytes)
    assert list(chosen.coded) == list(range(200))


def test_slices_of_findings_and_every_nth(volume, small_findings, slice_bytes):
    limit = 60 * slice_bytes
    chosen = choose_slices(volume, small_findings.findings, limit=limit)
    around = {
        z
        for one in small_findings.findings
        for z in range(int(one.box[2]) - MARGIN, int(one.box[5]) + MARGIN + 1)
    } & set(range(200))
    grid = set(range(0, 200, chosen.step)) | {199}
    assert set(chosen.coded) == around | grid
    assert chosen.left_out == 0
    assert sum(map(len, chosen.coded.values())) <= limit
    # One step less has no room.
    finer = around | set(range(0, 200, chosen.step - 1)) | {199}
    everything = choose_slices(volume, [], limit=None).coded
    assert sum(len(everything[z]) for z in finer) > limit


def test_key_slices_come_first(volume, small_findings, slice_bytes):
    chosen = choose_slices(volume, small_findings.findings, limit=5 * slice_bytes)
    assert {one.key_slice for one in small_findings.findings} <= set(chosen.coded)
    assert chosen.left_out > 0
    assert sum(map(len, chosen.coded.values())) <= 5 * slice_bytes


@pytest.mark.parametrize("limit", [0, 1])
def test_one_slice_is_always_there(volume, small_findings, limit):
    chosen = choose_slices(volume, small_findings.findings, limit=limit)
    assert list(chosen.coded) == [8]  # the first finding's key slice
    assert len(choose_slices(volume, [], limit=limit).coded) == 1
