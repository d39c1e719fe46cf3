import itertools
import math

import lesion_d2  # noqa: F401, it makes detectron2 importable
from lesion_d2.layers import roi_align as module
from lesion_d2.layers import roi_align_3d

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

# Regions of two volumes of 12 x 20 x 16 voxels: inside, thin, over an edge, outside, small.
ROIS = torch.tensor(
    [
        [0, 2.0, 3.0, 1.0, 9.0, 15.0, 7.0],
        [1, 0.3, 1.7, 4.5, 14.2, 18.1, 5.5],
        [1, -6.0, 10.0, -3.0, 5.0, 27.0, 6.0],
        [0, 40.0, 40.0, 40.0, 50.0, 50.0, 50.0],
        [0, 7.6, 8.1, 3.2, 8.1, 8.9, 3.4],
    ]
)
SCALE = (1.0, 0.5, 0.5)


def features_of(depth=12, height=10, width=8, channels=3, number=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(number, channels, depth, height, width, generator=generator)


def trilinear(volume, point):
    """A volume (D, H, W) at (z, y, x), by the definition."""
    if any(not -1 <= p <= size for p, size in zip(point, volume.shape, strict=True)):
        return 0.0
    point = [min(max(p, 0), size - 1) for p, size in zip(point, volume.shape, strict=True)]
    value = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        index = [math.floor(p) + c for p, c in zip(point, corner, strict=True)]
        weight = np.prod([1 - abs(p - i) for p, i in zip(point, index, strict=True)])
        if weight > 0:
            value += weight * volume[tuple(index)]
    return value


def written_out(volume, roi, size, scale, ratio):
    """One region of one channel, point by point."""
    low, high = (
        [roi[i] * s for i, s in zip(ends, scale, strict=True)] for ends in ((2, 1, 0), (5, 4, 3))
    )
    bins = [(h - lo) / n for lo, h, n in zip(low, high, size, strict=True)]
    counts = [ratio or max(1, math.ceil(b)) for b in bins]
    out = np.zeros(size)
    for cell in np.ndindex(*size):
        points = [
            [lo + b * (c + (k + 0.5) / n) for k in range(n)]
            for lo, b, c, n in zip(low, bins, cell, counts, strict=True)
        ]
        out[cell] = np.mean([trilinear(volume, point) for point in itertools.product(*points)])
    return out


@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("values", [2**25, 24 * 2])
def test_it_is_trilinear_sampling_written_out(ratio, values, monkeypatch):
    monkeypatch.setattr(module, "_VALUES", values)  # all at once, and by one or two
    features, size = features_of(channels=1), (3, 2, 4)
    found = roi_align_3d(features, ROIS, size, SCALE, ratio)
    assert found.shape == (5, 1, *size)
    for roi, pooled in zip(ROIS.tolist(), found[:, 0].numpy(), strict=True):
        volume = features[int(roi[0]), 0].double().numpy()
        expected = written_out(volume, roi[1:], size, SCALE, ratio)
        np.testing.assert_allclose(pooled, expected, atol=1e-5)
    assert found[3].abs().max() == 0


@pytest.mark.parametrize("ratio", [0, 2])
def test_in_plane_it_is_torchvisions_with_half_a_cell(ratio):
    plane = features_of()[:, :, 0]
    features = plane[:, :, None].expand(-1, -1, 6, -1, -1)
    rois = ROIS.clone()
    rois[:, 3], rois[:, 6] = 0.0, 5.0
    found = roi_align_3d(features, rois, (3, 7, 7), (1.0, 0.5, 0.5), ratio)
    flat = rois[:, [0, 1, 2, 4, 5]] + torch.tensor([0, 1, 1, 1, 1]) * (0.5 / 0.5)
    expected = roi_align(plane, flat, (7, 7), 0.5, ratio, aligned=True)
    torch.testing.assert_close(
        found, expected[:, :, None].expand(-1, -1, 3, -1, -1), atol=1e-5, rtol=1e-5
    )


def test_whole_boxes_pool_their_own_voxels():
    features = features_of(number=1)
    roi = torch.tensor([[0, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5]])  # 3 x 4 x 5 voxels
    found = roi_align_3d(features, roi, (5, 4, 3), (1.0, 1.0, 1.0))
    torch.testing.assert_close(found[0], features[0, :, 4:9, 3:7, 2:5], atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_region_alone():
    features = features_of(number=1).requires_grad_()
    roi = torch.tensor([[0, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5]])
    roi_align_3d(features, roi, (5, 4, 3), (1.0, 1.0, 1.0), 1).sum().backward()
    expected = torch.zeros_like(features)
    expected[0, :, 4:9, 3:7, 2:5] = 1.0
    torch.testing.assert_close(features.grad, expected, atol=1e-4, rtol=0)


def test_regions_without_a_side_are_read_at_their_place():
    features = features_of(number=1)
    rois = torch.tensor([[0, 3.0, 8.0, 5.0, 3.0, 8.0, 5.0], [0, 2.0, 4.0, 1.0, 6.0, 4.0, 3.0]])
    found = roi_align_3d(features, rois, (1, 2, 3), (1.0, 1.0, 1.0), 0)
    torch.testing.assert_close(
        found[0], features[0, :, 5, 8, 3, None, None, None].expand(3, 1, 2, 3)
    )
    for channel, volume in zip(found[1].numpy(), features[0].numpy(), strict=True):
        expected = written_out(volume, rois[1, 1:].tolist(), (1, 2, 3), (1.0, 1.0, 1.0), 0)
        np.testing.assert_allclose(channel, expected, atol=1e-5)


def test_no_regions_and_half_precision():
    assert roi_align_3d(features_of(), torch.zeros(0, 7), (3, 7, 7), SCALE).shape == (0, 3, 3, 7, 7)
    half = roi_align_3d(features_of().half(), ROIS, (3, 7, 7), SCALE, 2)
    assert half.dtype == torch.float16
    full = roi_align_3d(features_of(), ROIS, (3, 7, 7), SCALE, 2)
    torch.testing.assert_close(half.float(), full, atol=2e-3, rtol=0)
