"""Slices of a scan in memory against the same slices in files."""

import tracemalloc

from lesion_d2.data.slices.scan_images import ScanImages
from lesion_d2.data.transforms.augmentation import ResizeCT

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from moving_body import SIZE, make_mapper, make_volume
from slice_files import write_slices

DEPTH = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("000001_01_01"), make_volume(DEPTH))


def record_of(folder, index, spacing):
    return {
        "file_name": str(folder / f"{index:03d}.png"),
        "image_id": index,
        "slice_index": index,
        "height": SIZE[0],
        "width": SIZE[1],
        "spacing": spacing,
        "slice_range": None,
        "volume": "000001_01_01",
    }


@pytest.mark.parametrize(
    "resize, options",
    [
        (ResizeCT(52), {}),
        (ResizeCT(33), {"num_slices": 9, "slice_interval": 0.0}),
        (T.ResizeShortestEdge(52, 100), {"num_slices": 3}),
        (ResizeCT(pixel_spacing=1.1), {"num_slices": 5, "hu_window": (-1000.5, 400.2)}),
        (ResizeCT(pixel_spacing=0.5, max_size=70), {"num_slices": 3, "cut_borders": True}),
        (
            ResizeCT(64),
            {"num_slices": 5, "slice_interval": 2.5, "cut_borders": True, "hu_window": (0, 400)},
        ),
    ],
)
@pytest.mark.parametrize("spacing_z", [0.99, 1.0, 2.0, 5.0])
def test_images_are_those_of_files(folder, resize, options, spacing_z):
    spacing = (0.7, 0.8, spacing_z)
    mapper = make_mapper(resize, **options)
    volume = make_volume(DEPTH)
    images = ScanImages(mapper, volume, spacing, "scan")
    assert sorted(images.order()) == list(range(len(images))) == list(range(DEPTH))
    for index in images.order():
        found, expected = images[index], mapper.load(record_of(folder, index, spacing))
        assert found["image"].dtype == torch.int16 and found["image"].is_contiguous()
        assert torch.equal(found["image"], expected["image"])
        assert found.get("crop") == expected.get("crop")
        assert (found["height"], found["width"], found["slice_index"]) == (*SIZE, index)
    assert np.array_equal(volume, make_volume(DEPTH))
    if options.get("cut_borders"):
        assert found["crop"] != (0, 0, *SIZE[::-1])


@pytest.mark.parametrize("spacing_z, interval", [(2.0, 0.0), (2.0, 2.0), (1.0, 2.0), (0.5, 2.0)])
def test_a_channel_is_windowed_and_resized_once(monkeypatch, spacing_z, interval):
    volume = make_volume(depth=40)
    mapper = make_mapper(num_slices=9, slice_interval=interval)
    images = ScanImages(mapper, volume, (0.7, 0.7, spacing_z), "scan")
    sizes, resize = [], cv2.resize
    assert images.scale  # finds out the transforms
    monkeypatch.setattr(cv2, "resize", lambda *a, **k: sizes.append(a[1]) or resize(*a, **k))
    for index in images.order():
        images[index]
    # Where the order leaps, the end's slice stands for those beyond it, once a round.
    assert 40 <= len(sizes) <= 40 + 2 * (max(1, interval / spacing_z) - 1)


@pytest.mark.parametrize("spacing_z", [0.3, 1.0, 4.0])
def test_memory_is_two_images_beside_the_volume(spacing_z):
    volume = make_volume(depth=60, size=(128, 128))
    mapper = make_mapper(ResizeCT(128), num_slices=9)
    images = ScanImages(mapper, volume, (0.7, 0.7, spacing_z), "scan")
    as_models_take_it = 9 * 128 * 128 * 4
    tracemalloc.start()
    for index in images.order():
        image = images[index]["image"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (9, 128, 128)
    # The channels that are kept, the image (int16) and the one before.
    assert peak < 2.25 * as_models_take_it < 1.5 * volume.nbytes


def test_bad_scans_are_told_in_one_line():
    volume = make_volume(DEPTH)
    for spacing, found in (((0.7, 0.0, 2.0), "0.0"), ((0.7, 0.7, float("nan")), "nan")):
        with pytest.raises(ValueError, match=rf"scan: found spacing .*{found}.*, expected x"):
            ScanImages(make_mapper(), volume, spacing, "scan")
    # 26 stacks of 2 mm are 52 mm.
    mapper = make_mapper(num_slices=27)
    expected = r"scan: found 14 slices of 3 mm, expected 19 or more, .* stack of 27 at 2 mm"
    with pytest.raises(ValueError, match=expected):
        ScanImages(mapper, volume, (0.7, 0.7, 3.0), "scan")
    assert len(ScanImages(mapper, volume, (0.7, 0.7, 4.0), "scan")) == DEPTH
    with pytest.raises(ValueError, match=r"expected 15 or more, .* stack of 15"):
        ScanImages(make_mapper(num_slices=15, slice_interval=0.0), volume, (1, 1, 9), "scan")
    with pytest.raises(IndexError, match="scan: found slice 14, expected 0 to 13"):
        ScanImages(make_mapper(), volume, (0.7, 0.7, 2.0), "scan")[14]
