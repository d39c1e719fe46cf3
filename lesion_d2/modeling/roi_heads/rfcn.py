"""Position-sensitive ROI heads (R-FCN, 3DCE)."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, build_box_head
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..backbone import ALL_IMAGES, count_images
from .regions import RegionROIHeads


def position_sensitive_pool(
    maps: Tensor, box_lists: list[Tensor], resolution: int, stride: int
) -> Tensor:
    """R-FCN's pooling: each bin of a region is the mean of its own score maps inside the bin.

    This follows the published code of R-FCN and 3DCE: a region is rounded to integer pixels,
    including the last one (x2 + 1), and a bin is the mean of all features that it intersects, 0 if
    there are none. torchvision's ``ps_roi_pool`` instead rounds a region to features of ``stride``
    pixels. Bins are computed with integers, and thus equal on all devices.

    Args:
        maps: (N, M, H, W, resolution^2, C) for N stacks of M images, with the score maps last.
        box_lists: regions of the N stacks, (R_n, 4) in pixels of the images; integers are pixel
            centers.
        resolution: number of bins of a region along each side.
        stride: stride of the features in pixels of the image.

    Returns:
        (R, M, C, resolution, resolution) for all R regions.
    """
    num_images, height, width, num_parts, num_maps = maps.shape[1:]
    boxes = torch.cat(box_lists)
    if len(boxes) == 0:
        return maps.new_zeros(0, num_images, num_maps, resolution, resolution)
    x, num_x = _part_spans(boxes[:, 0::2], width, resolution, stride)
    y, num_y = _part_spans(boxes[:, 1::2], height, resolution, stride)
    # A bin is a bag of features; bags are concatenated in the order of the output.
    num_features = (num_y[:, :, None] * num_x[:, None, :]).flatten()
    bags = torch.repeat_interleave(num_features)
    starts = num_features.cumsum(0) - num_features
    place = torch.arange(len(bags), device=maps.device) - starts[bags]
    regions, parts = bags // num_parts, bags % num_parts
    rows, columns = parts // resolution, parts % resolution
    num_columns = num_x[regions, columns]
    rows = y[regions, rows] + place // num_columns
    columns = x[regions, columns] + place % num_columns
    stacks = torch.cat([torch.full_like(b[:, 0], n).long() for n, b in enumerate(box_lists)])
    features = (stacks[regions] * num_images * height + rows) * width + columns
    images = torch.arange(num_images, device=maps.device)[:, None]
    index = (features + images * height * width) * num_parts + parts
    offsets = starts + images * len(bags)
    # Its mean of nothing is 0.
    pooled = F.embedding_bag(
        index.flatten(), maps.reshape(-1, num_maps), offsets.flatten(), mode="mean"
    )
    pooled = pooled.view(num_images, len(boxes), resolution, resolution, num_maps)
    return pooled.permute(1, 0, 4, 2, 3)


def _part_spans(ends: Tensor, size: int, resolution: int, stride: int) -> tuple[Tensor, Tensor]:
    """First feature and number of features of each bin of regions along one axis.

    Args:
        ends: (R, 2), first and last pixel of regions.
        size: number of features along the axis.

    Returns:
        Two arrays (R, resolution).
    """
    first, last = (ends + 0.5).floor().long().split(1, dim=1)
    steps = torch.arange(resolution + 1, device=ends.device)
    # Boundaries of bins in features, times resolution * stride.
    borders = first * resolution + (last + 1 - first).clamp(min=1) * steps
    starts = (borders[:, :-1] // (resolution * stride)).clamp(0, size)
    stops = -(-borders[:, 1:] // (resolution * stride))
    return starts, stops.clamp(0, size) - starts


class PositionSensitivePooler(nn.Module):
    """Score maps of M images, and position-sensitive pooling of regions over them (R-FCN, 3DCE).

    A 1x1 convolution, shared by the images, computes ``num_score_maps`` maps for each of
    ``resolution`` x ``resolution`` bins of a region. All images are pooled by
    :func:`position_sensitive_pool` and concatenated.

    Args:
        channels: D, the channels of an image's features.
        num_images: M.
        stride: stride of the features in pixels of the image.
        resolution: number of bins of a region along each side.
        num_score_maps: 10 in 3DCE, which gives 490 maps per image at resolution 7.
    """

    def __init__(
        self,
        channels: int,
        num_images: int,
        *,
        stride: int,
        resolution: int = 7,
        num_score_maps: int = 10,
    ):
        super().__init__()
        self.num_images = num_images
        self.stride = stride
        self.resolution = resolution
        self.output_shape = ShapeSpec(
            channels=num_images * num_score_maps, height=resolution, width=resolution
        )
        self.score_maps = nn.Conv2d(channels, num_score_maps * resolution**2, kernel_size=1)
        weight_init.c2_xavier_fill(self.score_maps)

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool regions, as Detectron2's ROIPooler.

        Args:
            features: one tensor (N, M D, h, w).
            box_lists: regions of the N stacks, in pixels of the images.

        Returns:
            (R, M num_score_maps, resolution, resolution) for all R regions, float32.
        """
        [images] = features
        # Channels last, (N, M, h, w, D), and the convolution as a matrix product, in whose result
        # the maps of a bin are adjacent.
        images = images.unflatten(1, (self.num_images, -1)).movedim(2, -1)
        num_parts = self.resolution**2
        weight, bias = (
            p.flatten(1).unflatten(0, (-1, num_parts)).transpose(0, 1).flatten(0, 1)
            for p in (self.score_maps.weight, self.score_maps.bias[:, None])
        )
        maps = F.linear(images, weight, bias[:, 0]).unflatten(-1, (num_parts, -1))
        boxes = [boxes.tensor for boxes in box_lists]
        pooled = position_sensitive_pool(maps.float(), boxes, self.resolution, self.stride)
        return pooled.flatten(1, 2)


@ROI_HEADS_REGISTRY.register()
class RFCNROIHeads(RegionROIHeads):
    """Head of the improved R-FCN (3DCE): position-sensitive pooling before Fast R-CNN's layers.

    With ``FastRCNNConvFCHead`` and one fully connected layer of 2048 it equals 3DCE's; the "two
    fully connected layers" of Tao et al. (section 2) are that layer and the output layer.
    Everything else, from the sampling of proposals to inference, is as in RegionROIHeads. Its input
    are the features of all images of a :class:`SliceImages`.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict:
        in_features = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        if in_features != [ALL_IMAGES]:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES: found {in_features}, expected [{ALL_IMAGES!r}] for "
                "RFCNROIHeads"
            )
        if ALL_IMAGES not in input_shape:
            raise ValueError(
                f"MODEL.BACKBONE.NAME: found {cfg.MODEL.BACKBONE.NAME!r}, expected "
                "'build_slice_images_backbone' for RFCNROIHeads"
            )
        shape, num_images = input_shape[ALL_IMAGES], count_images(len(cfg.MODEL.PIXEL_MEAN))
        pooler = PositionSensitivePooler(
            shape.channels // num_images,
            num_images,
            stride=shape.stride,
            resolution=cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
            num_score_maps=cfg.MODEL.RFCN_3DCE.NUM_SCORE_MAPS,
        )
        box_head = build_box_head(cfg, pooler.output_shape)
        return {
            "box_in_features": [ALL_IMAGES],
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }
