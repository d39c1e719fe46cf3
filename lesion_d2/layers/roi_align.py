"""RoIAlign in 3-D with PyTorch's ``grid_sample``."""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A coordinate, in cells, that is outside of any feature map.
NOWHERE = -1e6
# Values sampled at once, which limits memory to 128 MB.
_VALUES = 2**25


def roi_align_3d(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int, int],
    spatial_scale: tuple[float, float, float],
    sampling_ratio: int = 0,
) -> Tensor:
    """Pool regions of volumes to a fixed size (He et al., 2017, section 3, along three axes).

    Each bin averages points spaced evenly in it, read by trilinear interpolation; points more than
    one cell outside are 0. Coordinates are those of ``Boxes3D``: integers are voxel centers, and
    cell (i, j, k) of the features lies at voxel (i, j, k) / scale, as anchors do. In-plane it
    equals torchvision's ``roi_align(aligned=True)`` with half a cell, 0.5 / scale, added to the
    boxes, as torchvision's coordinates start at the outer edge of cell 0.

    Args:
        features: (N, C, D, H, W).
        rois: (K, 7), batch index and x1, y1, z1, x2, y2, z2 in voxels of the input.
        output_size: number of bins along depth, height and width.
        spatial_scale: cells per voxel along depth, height and width: 1 / stride.
        sampling_ratio: points per bin along each axis; 0 for one per cell of the bin, rounded up,
            which synchronizes with a GPU once.

    Returns:
        (K, C, d, h, w) of the features' dtype.
    """
    number, channels, *sizes = features.shape
    if len(rois) == 0:
        return features.new_zeros(0, channels, *output_size)
    # The volumes of a batch are concatenated along z, so that one call reads from all of them.
    # Points are clamped to their own volume, so none is read between two.
    stacked = features.float().transpose(0, 1).reshape(1, channels, number * sizes[0], *sizes[1:])
    low, high = cells_of(rois[:, 1:], spatial_scale)
    first = rois[:, 0].float() * sizes[0]  # slice of a region's volume
    counts = points_per_bin(high - low, output_size, sampling_ratio)
    order, parts = _parts(counts, channels * math.prod(output_size), sampling_ratio)
    pooled = []
    for rows, most in parts:
        rows = rows if order is None else order[rows]
        axes = [
            bin_points(low[rows, i], high[rows, i], output_size[i], counts[rows, i], most[i], size)
            for i, size in enumerate(sizes)
        ]
        axes[0] = axes[0] + first[rows].view(-1, 1, 1)
        grid = _sampling_grid([points.flatten(1) for points in axes], stacked.shape[2:])
        sampled = F.grid_sample(stacked, grid, mode="bilinear", align_corners=False)[0]
        sums = _sums_of_points(sampled, most).view(channels, -1, *output_size).transpose(0, 1)
        pooled.append(sums / counts[rows].prod(dim=1).view(-1, 1, 1, 1, 1))
    together = torch.cat(pooled)
    return (together if order is None else together[order.argsort()]).to(features.dtype)


def _parts(
    counts: Tensor, values_per_point: int, sampling_ratio: int
) -> tuple[Tensor | None, list[tuple[slice, list[int]]]]:
    """Chunks of regions whose samples stay below the memory limit.

    Args:
        counts: (K, 3) points per bin of each region.
        values_per_point: values of a region with one point per bin.
        sampling_ratio: see :func:`roi_align_3d`.

    Returns:
        An order of the regions (None for the given one), and slices of it, each with the largest
        number of points per bin along each axis.
    """
    number = len(counts)
    if sampling_ratio > 0:
        rows = max(1, _VALUES // (values_per_point * sampling_ratio**3))
        slices = [slice(start, start + rows) for start in range(0, number, rows)]
        return None, [(each, [sampling_ratio] * 3) for each in slices]
    # Sorted by size, as all regions of a chunk are padded to the largest number of points.
    order = counts.prod(dim=1).argsort()
    sorted_counts = counts[order].int().tolist()
    parts, start, most = [], 0, [1, 1, 1]
    for i, of_region in enumerate(sorted_counts):
        grown = [max(pair) for pair in zip(most, of_region, strict=True)]
        full = (i + 1 - start) * values_per_point * math.prod(grown) > _VALUES
        if full and i > start:
            parts.append((slice(start, i), most))
            start, grown = i, of_region
        most = grown
    return order, [*parts, (slice(start, number), most)]


def _sums_of_points(sampled: Tensor, most: list[int]) -> Tensor:
    """(C, K * d, h, w) sums over the points of each bin, of (C, K * d * mz, h * my, w * mx).

    It adds slices, as pooling would keep all points for the backward pass.
    """
    for axis in (3, 2, 1):
        points = sampled.unflatten(axis, (-1, most[axis - 1])).unbind(axis + 1)
        sampled = functools.reduce(torch.add, points)
    return sampled


def cells_of(boxes: Tensor, spatial_scale: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of (K, 6) boxes in cells of a feature map, (K, 3) each: z, y, x."""
    low, high = boxes[:, :3].float(), boxes[:, 3:].float()
    columns = [
        torch.stack([ends[:, 2 - axis] * scale for axis, scale in enumerate(spatial_scale)], dim=1)
        for ends in (low, high)
    ]
    return columns[0], columns[1]


def bin_points(
    low: Tensor, high: Tensor, bins: int, counts: Tensor, most: int, size: int
) -> Tensor:
    """Positions of the sampling points of bins along one axis.

    Args:
        low: (K,) lower ends of the regions, in cells.
        high: (K,) upper ends.
        bins: number of bins of each region.
        counts: (K,) points per bin of each region.
        most: the maximum of ``counts``.
        size: length of the feature map along the axis.

    Returns:
        (K, bins, most) in 0..size - 1; :data:`NOWHERE` for points beyond a region's ``counts``, or
        more than one cell outside.
    """
    half = torch.arange(most, dtype=low.dtype, device=low.device) + 0.5
    first = torch.arange(bins, dtype=low.dtype, device=low.device)
    share = half / counts[:, None]  # (K, most), of a bin
    in_bins = first[:, None] + share[:, None]  # (K, bins, most), from the low end, in bins
    points = low[:, None, None] + in_bins * ((high - low) / bins)[:, None, None]
    counted = (share < 1)[:, None] & (points >= -1) & (points <= size)
    return points.clamp(0, size - 1).masked_fill(~counted, NOWHERE)


def points_per_bin(sides: Tensor, bins: Sequence[int], sampling_ratio: int) -> Tensor:
    """(K, 3) points per bin along each axis, for regions with (K, 3) sides in cells.

    ``sampling_ratio``, or if it is 0 the number of cells per bin, rounded up.
    """
    if sampling_ratio > 0:
        return torch.full_like(sides, sampling_ratio)
    columns = [side / number for side, number in zip(sides.unbind(dim=1), bins, strict=True)]
    return torch.stack(columns, dim=1).ceil().clamp(min=1)


def _sampling_grid(axes: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The sampling grid of points with z, y and x in (K, d), (K, h) and (K, w) cells.

    Returns:
        (1, K * d, h, w, 3) for ``grid_sample``: -1 and 1 are the outer edges.
    """
    z, y, x = ((2 * points + 1) / size - 1 for points, size in zip(axes, sizes, strict=True))
    shape = (len(z), z.shape[1], y.shape[1], x.shape[1])
    grid = torch.stack(
        [
            x[:, None, None, :].expand(shape),
            y[:, None, :, None].expand(shape),
            z[:, :, None, None].expand(shape),
        ],
        dim=-1,
    )
    return grid.flatten(0, 1)[None]
