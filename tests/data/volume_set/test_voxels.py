import os
import struct
import zlib
from multiprocessing import get_context

from lesion_d2.data.volume_set.voxels import read_voxels, voxels_shape, write_voxels

import blosc2
import numpy as np
import pytest

PATCH = (5, 9, 40, 100, 30, 131)
FOOTER = "<8sQQII"  # magic, the lengths of the header and of the chunks, a checksum, their number


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).integers(-3024, 3071, (9, 100, 140)).astype(np.int16)


@pytest.fixture
def file(tmp_path, volume):
    write_voxels(tmp_path / "images" / "a.b2nd", volume)
    return tmp_path / "images" / "a.b2nd"


def test_patches_are_what_was_written(file, volume):
    assert voxels_shape(file) == volume.shape
    assert np.array_equal(read_voxels(file), volume)
    z0, z1, y0, y1, x0, x1 = PATCH
    patch = read_voxels(file, *PATCH)
    assert patch.dtype == np.int16 and np.array_equal(patch, volume[z0:z1, y0:y1, x0:x1])
    assert np.array_equal(read_voxels(file, 3, 4), volume[3:4])
    assert np.array_equal(blosc2.open(str(file), mode="r")[:], volume)  # as any program reads it
    assert os.listdir(file.parent) == ["a.b2nd"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 7), (20, 3, 129)])
def test_volumes_of_any_size_are_read_back_the_same(tmp_path, shape):
    volume = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    write_voxels(tmp_path / "a.b2nd", volume)
    assert np.array_equal(read_voxels(tmp_path / "a.b2nd"), volume)


def test_a_file_that_is_written_anew_is_read_anew(file, volume):
    read_voxels(file)
    write_voxels(file, volume[:, :50] + 1)
    assert np.array_equal(read_voxels(file), volume[:, :50] + 1)


def test_chunks_outside_of_a_patch_are_not_read(file, volume):
    content = bytearray(file.read_bytes())
    _, header, chunks, _, _ = struct.unpack(FOOTER, content[-struct.calcsize(FOOTER) :])
    content[header + chunks - 9] ^= 1  # in the last one, of slice 8
    _write(file, content, 0)
    assert np.array_equal(read_voxels(file, 0, 8, 40, 100, 30, 131), volume[:8, 40:, 30:131])
    with pytest.raises(ValueError, match=r"a.b2nd: found damaged voxels"):
        read_voxels(file, 8, 9)


def _compare(file, volume):
    z0, z1, y0, y1, x0, x1 = PATCH
    for _ in range(20):
        if not np.array_equal(read_voxels(file, *PATCH), volume[z0:z1, y0:y1, x0:x1]):
            raise AssertionError
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
def test_forked_processes_read_at_once(file, volume):
    before = len(os.listdir("/proc/self/task"))
    read_voxels(file)
    assert len(os.listdir("/proc/self/task")) == before  # no threads, which a fork would lose
    with get_context("fork").Pool(2) as pool:
        pool.starmap_async(_compare, [(file, volume)] * 4).get(60)


def test_no_damage_is_silent(file):
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(whole), 30), *range(0, 184, 8), *range(-60, 0, 4)]
    for number, place in enumerate(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (number % 8)
        _write(file, damaged, number)
        with pytest.raises(ValueError, match=r"a.b2nd: found damaged voxels \("):
            read_voxels(file)
    for number, length in enumerate([0, 1, 100, len(whole) // 2, len(whole) - 1]):
        _write(file, whole[:length], 1000 + number)
        with pytest.raises(ValueError, match=r"a.b2nd: found damaged voxels"):
            voxels_shape(file)


def _write(file, content, when):
    file.write_bytes(content)
    os.utime(file, ns=(when, when))


def _with_sums(frame: bytes) -> bytes:
    """A frame of no chunk with what :func:`write_voxels` writes behind one."""
    header = int.from_bytes(frame[11:15], "big")
    return frame + struct.pack(FOOTER, b"ld2crc32", header, 0, zlib.crc32(frame), 0)


def test_plain_arrays_alone_are_read(file, volume):
    lazy = blosc2.lazyexpr("a + 1", {"a": blosc2.open(str(file), mode="r")})
    other = file.with_name("lazy.b2nd")
    lazy.save(str(other))
    with pytest.raises(ValueError, match=r"lazy.b2nd: found damaged voxels .no checksums"):
        read_voxels(other)
    other.write_bytes(_with_sums(other.read_bytes()))
    with pytest.raises(ValueError, match=r"lazy.b2nd: found (?!damaged voxels .(no|the) checksum)"):
        read_voxels(other)
    plain = file.with_name("plain.b2nd")
    blosc2.asarray(volume, urlpath=str(plain), mode="w")
    with pytest.raises(ValueError, match=r"plain.b2nd: found damaged voxels .no checksums"):
        read_voxels(plain)


def test_what_cannot_be_written_or_read_is_one_line(tmp_path, file, volume):
    with pytest.raises(FileNotFoundError, match=r"b.b2nd: no such voxel file"):
        read_voxels(tmp_path / "b.b2nd")
    with pytest.raises(ValueError, match=r"request for voxels 0:10 x 0:100 x 0:140, expected"):
        read_voxels(file, 0, 10)
    with pytest.raises(ValueError, match=r"request for voxels 3:3 x"):
        read_voxels(file, 3, 3)
    with pytest.raises(ValueError, match=r"found the suffix '.npy', expected '.b2nd'"):
        write_voxels(tmp_path / "a.npy", volume)
    for wrong in (volume[0], volume.astype(np.float32)):
        with pytest.raises(ValueError, match="found voxels"):
            write_voxels(file, wrong)
    with pytest.raises(ValueError, match="found 0 slices"):
        write_voxels(file, volume[:0])
