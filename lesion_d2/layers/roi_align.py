"""RoIAlign in 3-D by PyTorch's own ``grid_sample``."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A coordinate, in cells, so far outside that nothing is read there.
NOWHERE = -1e6


def roi_align_3d(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int, int],
    spatial_scale: tuple[float, float, float],
    sampling_ratio: int = 0,
) -> Tensor:
    """Pool regions of volumes to one size (He et al., 2017, section 3, along three axes).

    Every bin is the mean of points spread evenly in it, each read by trilinear interpolation; a
    point more than one cell outside counts as 0. Coordinates are those of ``Boxes3D``: whole
    numbers are voxel centers, and cell (i, j, k) of the features lies at voxel (i, j, k) / scale,
    as anchors do. So in-plane it is torchvision's ``roi_align(aligned=True)`` with half a cell,
    0.5 / scale, added to its boxes, which count from the outer edge of cell 0.

    Args:
        features: (N, C, D, H, W).
        rois: (K, 7), index in the batch and x1, y1, z1, x2, y2, z2 in voxels of the input.
        output_size: bins along depth, height and width.
        spatial_scale: cells a voxel along depth, height and width: 1 / stride.
        sampling_ratio: points a bin along each axis; 0 for one point a cell that the bin has,
            rounded up, which waits for a GPU once.

    Returns:
        (K, C, d, h, w) of the features' type.
    """
    number, channels, *sizes = features.shape
    if len(rois) == 0:
        return features.new_zeros(0, channels, *output_size)
    low, high = cells_of(rois[:, 1:], spatial_scale)
    counts = points_per_bin(high - low, output_size, sampling_ratio)
    most = [sampling_ratio] * 3 if sampling_ratio > 0 else counts.amax(dim=0).tolist()
    axes = [
        bin_points(low[:, i], high[:, i], output_size[i], counts[:, i], int(most[i]), sizes[i])
        for i in range(3)
    ]
    # The volumes of a batch lie behind each other, so that one call reads from all of them. No
    # point between two is read: points are clamped to their own volume.
    axes[0] = axes[0] + rois[:, 0].view(-1, 1, 1).float() * sizes[0]
    stacked = features.float().transpose(0, 1).reshape(1, channels, number * sizes[0], *sizes[1:])
    grid = _sampling_grid([points.flatten(1) for points in axes], stacked.shape[2:])
    sampled = F.grid_sample(stacked, grid, mode="bilinear", align_corners=False)
    pooled = F.avg_pool3d(sampled, [int(points) for points in most])
    pooled = pooled.view(channels, len(rois), *output_size).transpose(0, 1)
    if sampling_ratio <= 0:
        # Bins with fewer points than others were filled up with zeros.
        full = most[0] * most[1] * most[2] / counts.prod(dim=1)
        pooled = pooled * full.view(-1, 1, 1, 1, 1)
    return pooled.to(features.dtype).contiguous()


def cells_of(boxes: Tensor, spatial_scale: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Low and high ends of (K, 6) boxes in cells of a feature map, (K, 3) each: z, y, x."""
    low, high = boxes[:, :3].float(), boxes[:, 3:].float()
    columns = [
        torch.stack([ends[:, 2 - axis] * scale for axis, scale in enumerate(spatial_scale)], dim=1)
        for ends in (low, high)
    ]
    return columns[0], columns[1]


def bin_points(
    low: Tensor, high: Tensor, bins: int, counts: Tensor, most: int, size: int
) -> Tensor:
    """Where the points of bins lie along one axis.

    Args:
        low: (K,) ends of the regions, in cells.
        high: (K,).
        bins: of each region.
        counts: (K,) points a bin of each region has.
        most: the greatest of them.
        size: of the feature map along the axis.

    Returns:
        (K, bins, most) in 0..size - 1; :data:`NOWHERE` for points that a region does not have, or
        that lie more than one cell outside.
    """
    half = torch.arange(most, dtype=low.dtype, device=low.device) + 0.5
    first = torch.arange(bins, dtype=low.dtype, device=low.device)
    share = half / counts[:, None]  # (K, most), of a bin
    in_bins = first[:, None] + share[:, None]  # (K, bins, most), from the low end, in bins
    points = low[:, None, None] + in_bins * ((high - low) / bins)[:, None, None]
    counted = (share < 1)[:, None] & (points >= -1) & (points <= size)
    return points.clamp(0, size - 1).masked_fill(~counted, NOWHERE)


def points_per_bin(sides: Tensor, bins: Sequence[int], sampling_ratio: int) -> Tensor:
    """(K, 3) points a bin along each axis, of regions with (K, 3) sides in cells.

    They are ``sampling_ratio``, or where it is 0 as many as a bin has cells, rounded up.
    """
    if sampling_ratio > 0:
        return torch.full_like(sides, sampling_ratio)
    columns = [side / number for side, number in zip(sides.unbind(dim=1), bins, strict=True)]
    return torch.stack(columns, dim=1).ceil().clamp(min=1)


def _sampling_grid(axes: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The grid of points whose z, y and x are (K, d), (K, h) and (K, w) cells: one volume's.

    Returns:
        (1, K * d, h, w, 3) as ``grid_sample`` takes it: -1 and 1 are the outer edges.
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
