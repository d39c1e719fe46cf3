"""Images of volumes, put together from channels, against the mapper's own."""

import math
import os
from collections import Counter
from functools import partial
from pathlib import Path

from lesion_d2.data.chunks import loading, reading
from lesion_d2.data.chunks.loading import ChunkLoader
from lesion_d2.data.loader import NamingReader
from lesion_d2.data.slices.slice_formats import format_of
from lesion_d2.data.transforms.augmentation import ResizeCT
from lesion_d2.data.transforms.borders import volume_extent
from lesion_d2.data.volume_set.voxels import write_voxels
from lesion_d2.scans import volume_file
from lesion_d2.scans.writing import write_nifti
from lesion_d2.utils.errors import InputError

import pytest
import torch
from moving_body import SIZE, make_mapper, make_volume
from slice_files import write_slices

DEPTH = 21


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same volume in three formats; the folder of PNG files has holes."""
    root = tmp_path_factory.mktemp("volumes")
    png, volume = root / "000001_01_01", make_volume(DEPTH)
    write_slices(png, {index: volume[index] for index in set(range(DEPTH)) - {3, 4, 11}})
    nifti = root / f"000001_01_01_000-{DEPTH - 1:03d}.nii.gz"
    write_nifti(nifti, volume, (0.7, 0.8, 2.0))
    write_voxels(root / "case.b2nd", volume)
    return {"png": png, "nifti": nifti, "b2nd": root / "case.b2nd"}


def make_dicts(folder, spacing=(0.7, 0.8, 2.0), slice_range=None, name="a"):
    return [
        {
            "file_name": file,
            "image_id": f"{name}_{number}",
            "slice_index": number,
            "height": SIZE[0],
            "width": SIZE[1],
            "spacing": spacing,
            "slice_range": slice_range,
            "volume": name,
            "annotations": [{"bbox": [1, 2, 3, 4]}],
        }
        for number, file in format_of(folder).files(folder).items()
        if slice_range is None or slice_range[0] <= number <= slice_range[1]
    ]


def load_all(dicts, mapper, batch_size=1, num_workers=0):
    loader = ChunkLoader(
        dicts, mapper, batch_size=batch_size, num_workers=num_workers, named=NamingReader
    )
    batches = list(loader)
    assert len(batches) == len(loader) == math.ceil(len(dicts) / batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    return [sample for batch in batches for sample in batch]


def check_alike(found, dicts, mapper):
    assert [sample["image_id"] for sample in found] == [image["image_id"] for image in dicts]
    for sample, image in zip(found, dicts, strict=True):
        expected = mapper.load(image)
        assert sample.keys() == expected.keys()
        assert sample["image"].dtype == torch.int16 and sample["image"].is_contiguous()
        assert torch.equal(sample["image"], expected["image"])
        assert sample.get("crop") == expected.get("crop")


CASES = [
    (ResizeCT(52), {}, 2.0),
    (ResizeCT(33), {"num_slices": 9, "slice_interval": 0.0}, 3.0),
    (ResizeCT(64), {"num_slices": 5, "hu_window": (-1000.5, 400.2)}, 1.0),
    (ResizeCT(pixel_spacing=0.5, max_size=70), {"num_slices": 9, "cut_borders": True}, 5.0),
    (ResizeCT(48), {"num_slices": 3, "cut_borders": True, "hu_window": (0, 400)}, 1.3),
    (ResizeCT(48), {"num_slices": 5}, None),
]


@pytest.mark.parametrize("resize, options, spacing_z", CASES)
@pytest.mark.parametrize("kind", ["png", "nifti", "b2nd"])
def test_images_are_those_of_the_mapper(folders, monkeypatch, kind, resize, options, spacing_z):
    monkeypatch.setattr(reading, "_MAX_IMAGES", 4)
    mapper = make_mapper(resize, **options)
    spacing = None if spacing_z is None else (0.7, 0.8, spacing_z)
    dicts = make_dicts(folders[kind], spacing)
    for batch_size in (1, 3):
        check_alike(load_all(dicts, mapper, batch_size), dicts, mapper)


def test_what_is_no_run_of_a_volume_is_read_one_by_one(folders):
    mapper = make_mapper(num_slices=5)
    png, nifti = make_dicts(folders["png"], slice_range=(2, 9)), make_dicts(folders["nifti"])
    key_slice = {k: v for k, v in png[5].items() if k != "volume"}
    falling = make_dicts(folders["png"], name="b")[::-1]
    other_spacing = make_dicts(folders["png"], (0.7, 0.7, 1.0), name="a")
    dicts = [*png, key_slice, *nifti[::4], *falling[:4], *other_spacing, png[0], *nifti]
    check_alike(load_all(dicts, mapper, 2), dicts, mapper)


@pytest.mark.parametrize("num_slices", [3, 9, 15])
@pytest.mark.parametrize("spacing_z, most", [(2.0, 1.0), (1.0, 1.0), (5.0, 1.7)])
def test_a_slice_is_read_once(folders, monkeypatch, num_slices, spacing_z, most):
    monkeypatch.setattr(reading, "_MAX_IMAGES", 8)
    counts, read_slice = Counter(), reading.read_slice
    monkeypatch.setattr(
        reading, "read_slice", lambda file, size: counts.update([file]) or read_slice(file, size)
    )
    dicts = make_dicts(folders["png"], (0.7, 0.8, spacing_z))
    load_all(dicts, make_mapper(num_slices=num_slices))
    assert counts.keys() == {image["file_name"] for image in dicts}
    # Channels between two slices are of one image: the ends of a chunk are read for the next, too.
    assert counts.total() <= most * len(dicts) * (1 if most == 1 else (8 + num_slices) / 8)


def test_one_of_the_workers_decompresses_a_volume(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_IMAGES", 2)
    read, extent, calls = (
        volume_file.VolumeFile.read_volume,
        reading.volume_crop,
        tmp_path / "calls",
    )

    def write_call(function, name, *args):
        with open(calls, "a") as file:
            file.write(f"{name} {os.getpid()}\n")
        return function(*args)

    monkeypatch.setattr(
        volume_file.VolumeFile, "read_volume", lambda *args: write_call(read, "read", *args)
    )
    monkeypatch.setattr(reading, "volume_crop", partial(write_call, extent, "crop"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(loading.tempfile, "tempdir", None)
    volume_extent.cache_clear()
    mapper = make_mapper(num_slices=5, cut_borders=True)
    dicts = make_dicts(folders["nifti"])
    found = load_all(dicts, mapper, num_workers=2)
    names = [line.split()[0] for line in calls.read_text().splitlines()]
    assert sorted(names) == ["crop", "read"]
    assert str(os.getpid()) not in calls.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["calls"]
    check_alike(found, dicts, mapper)


def test_unpacked_volumes_go_with_their_last_chunk(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loading.tempfile, "tempdir", str(tmp_path))
    content, names = folders["nifti"].read_bytes(), ["000001_01_01", "000002_01_01"]
    files = [tmp_path / f"{name}_000-{DEPTH - 1:03d}.nii.gz" for name in names]
    for file in files:
        file.write_bytes(content)
    first, second = (make_dicts(file, name=file.name) for file in files)
    dicts = [first[5], second[5], first[7]]  # a chunk each
    loader = ChunkLoader(
        dicts, make_mapper(num_slices=3), batch_size=1, num_workers=1, named=NamingReader
    )
    released, left, release = [], [], loading.release

    def note(folder, owner):
        released.append(Path(owner))
        release(folder, owner)
        left.append(len(list(Path(folder).iterdir())))

    monkeypatch.setattr(loading, "release", note)
    steps = [len(released) for _ in loader]
    assert steps == [0, 1, 2] and released == files[::-1]
    assert left[0] > left[1] == 0


def test_the_image_that_cannot_be_read_is_named(folders, tmp_path):
    png = tmp_path / "000001_01_01"
    png.mkdir()
    for file in sorted(folders["png"].iterdir()):
        (png / file.name).write_bytes(file.read_bytes())
    (png / "014.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"^image a_13: .*014\.png: "):
        load_all(make_dicts(png), make_mapper(num_slices=3))
    (png / "014.png").unlink()
    dicts = make_dicts(folders["png"])
    moved = [{**d, "file_name": str(png / Path(d["file_name"]).name)} for d in dicts]
    with pytest.raises(InputError, match=r"^image a_14: .*014\.png: no such CT slice"):
        load_all(moved, make_mapper(num_slices=3))
