"""Benchmark of formats for voxels: size, and time to read slices and patches."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lesion_d2.data.roots import resolve_root
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.data.volume_set.slices import voxels_slice_path
from lesion_d2.data.volume_set.voxels import BLOCKS, CHUNKS, read_voxels, write_voxels

import blosc2
import cv2
import nibabel
import numpy as np

from ..inputs import LARGE, prepare_phantom
from ..timing import Row, time_calls

_DEPTH, _SIDE = 64, 128  # of a patch
_READ = 4  # slices and patches to read per measurement
# Codec, level, chunks and blocks that were not chosen.
_OTHERS = (
    ("LZ4", 5, CHUNKS, BLOCKS),
    ("ZSTD", 5, CHUNKS, BLOCKS),
    ("ZSTD", 1, (1, 512, 512), (1, 64, 512)),
    ("ZSTD", 1, (8, 128, 128), (4, 64, 64)),
)

_Read = Callable[[tuple[slice, slice, slice]], np.ndarray]


def measure_voxels(folder: Path) -> list[Row]:
    """Milliseconds per slice for each format, with the other numbers in the note.

    The slices are those of the data set ``deeplesion_sample`` if it exists, otherwise a phantom's.
    All times are CPU time, also for a patch of 64 x 128 x 128 voxels and for writing.
    """
    volume = real_volume(folder)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, np.subtract(volume.shape, (_DEPTH, _SIDE, _SIDE)) + 1, (_READ, 3))
    patches = [
        tuple(slice(a, a + n) for a, n in zip(corner, (_DEPTH, _SIDE, _SIDE), strict=True))
        for corner in corners.tolist()
    ]
    slices = [
        (slice(z, z + 1), slice(None), slice(None))
        for z in rng.integers(0, len(volume), _READ).tolist()
    ]
    rows = []
    for name, write, read, file in _formats(folder, volume):
        times = time_calls([write], repeats=1, warm_up=0)
        for part in (slices[0], patches[0]):
            if not np.array_equal(read(part), volume[part]):
                raise AssertionError(f"{name}: found other voxels, expected those written")
        calls = [lambda ps=parts, read=read: [read(p) for p in ps] for parts in (slices, patches)]
        times += time_calls(calls, repeats=1, warm_up=0)
        written, a_slice, patch = (min(t.cpu_seconds) * 1e3 for t in times)
        size = sum(f.stat().st_size for f in ([file] if file.is_file() else file.iterdir()))
        note = f"size {size / volume.nbytes:.3f}; {patch / _READ:.1f} ms per patch; "
        note += f"{written / len(volume):.1f} ms to write a slice"
        rows.append(Row(f"slice from {name}", a_slice / _READ, "ms", note=note))
    return rows


def real_volume(folder: Path) -> np.ndarray:
    """(Z, H, W) int16 of up to 90 slices, of ``deeplesion_sample`` if it exists, or a phantom."""
    files = sorted(Path(resolve_root("$DETECTRON2_DATASETS/deeplesion_sample")).rglob("*.png"))
    if not files:
        files = sorted(prepare_phantom(folder, **LARGE).rglob("*.png"))
    return np.stack([read_slice(file) for file in files[:90]])


def _formats(
    folder: Path, volume: np.ndarray
) -> Iterator[tuple[str, Callable[[], object], _Read, Path]]:
    """For each format: name, function to write, function to read a part, and file or folder."""
    png, nifti, npy = folder / "png", folder / "volume.nii.gz", folder / "volume.npy"
    image = nibabel.Nifti1Image(volume.T, np.eye(4))
    yield "PNG files", partial(_write_pngs, png, volume), partial(_read_pngs, png), png
    yield "NIfTI (.nii.gz)", partial(nibabel.save, image, nifti), partial(_read_nifti, nifti), nifti
    yield "npy memory map", partial(np.save, npy, volume), partial(_read_npy, npy), npy
    for codec, level, chunks, blocks in _OTHERS:
        file = folder / f"{codec}_{level}_{chunks[0]}.b2nd"
        write = partial(_write_blosc2, file, volume, codec, level, chunks, blocks)
        shape = f"{'x'.join(map(str, chunks))} of {'x'.join(map(str, blocks))}"
        yield f"blosc2, {codec} {level}, {shape}", write, partial(_read_blosc2, file), file
    file = folder / "volume.b2nd"
    yield "write_voxels", partial(write_voxels, file, volume), partial(_read_voxels, file), file


def _write_pngs(folder: Path, volume: np.ndarray) -> None:
    folder.mkdir()
    for number, hu in enumerate(volume):
        pixels = (hu.astype(np.int32) + 32768).astype(np.uint16)
        cv2.imwrite(str(folder / f"{number:03d}.png"), pixels)


def _read_pngs(folder: Path, part: tuple[slice, slice, slice]) -> np.ndarray:
    numbers = range(*part[0].indices(len(os.listdir(folder))))
    return np.stack([read_slice(voxels_slice_path(folder, number))[part[1:]] for number in numbers])


def _read_nifti(file: Path, part: tuple[slice, slice, slice]) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj[part[::-1]]).T


def _read_npy(file: Path, part: tuple[slice, slice, slice]) -> np.ndarray:
    return np.load(file, mmap_mode="r")[part].copy()


def _write_blosc2(file: Path, volume: np.ndarray, codec: str, level: int, chunks, blocks) -> None:
    options = {"filters": [blosc2.Filter.SHUFFLE], "filters_meta": [0], "nthreads": 1}
    options = blosc2.CParams(codec=blosc2.Codec[codec], clevel=level, **options)
    blosc2.asarray(
        volume, chunks=chunks, blocks=blocks, cparams=options, urlpath=str(file), mode="w"
    )


def _read_blosc2(file: Path, part: tuple[slice, slice, slice]) -> np.ndarray:
    return blosc2.open(str(file), mode="r", dparams=blosc2.DParams(nthreads=1))[part]


def _read_voxels(file: Path, part: tuple[slice, slice, slice]) -> np.ndarray:
    return read_voxels(file, *(end for axis in part for end in (axis.start or 0, axis.stop)))
