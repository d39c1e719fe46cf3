import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, build_box_head
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import ps_roi_pool

from ..backbone import ALL_IMAGES, count_images


class PositionSensitivePooler(nn.Module):
    """Score maps of M images, and position-sensitive pooling of regions over them (R-FCN, 3DCE).

    A 1x1 convolution, shared by the images, gives each of them ``num_score_maps`` maps for each of
    ``resolution`` x ``resolution`` parts of a region. The maps of all images are pooled together by
    torchvision's ``ps_roi_pool``, and stay side by side. That op rounds a region to whole features,
    of ``stride`` pixels, where R-FCN's own rounds it to whole pixels.

    Args:
        channels: D, of an image's features.
        num_images: M.
        stride: pixels of the image a feature.
        resolution: parts of a region along each side.
        num_score_maps: 10 in 3DCE, which makes 490 maps an image at resolution 7.
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
        self.scale = 1 / stride
        self.resolution = resolution
        self.output_shape = ShapeSpec(
            channels=num_images * num_score_maps, height=resolution, width=resolution
        )
        self.score_maps = nn.Conv2d(channels, num_score_maps * resolution**2, kernel_size=1)
        weight_init.c2_xavier_fill(self.score_maps)

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """As Detectron2's ROIPooler.

        Args:
            features: one tensor (N, M D, h, w).
            box_lists: N times the regions of a stack, in pixels of its images.

        Returns:
            (R, M num_score_maps, resolution, resolution) of all R regions, float32.
        """
        [images] = features
        num_stacks, _, height, width = images.shape
        # torchvision's op never reads the last row and column, nor then what is put there.
        images = F.pad(images, (0, 1, 0, 1)).unflatten(1, (self.num_images, -1)).flatten(0, 1)
        # The convolution as a product of matrices: a convolution of features with the channels last
        # would lay out maps in a way that the op has to copy.
        weight = self.score_maps.weight.flatten(1).expand(len(images), -1, -1)
        maps = torch.baddbmm(self.score_maps.bias[:, None], weight, images.flatten(2))
        maps = maps.reshape(num_stacks, -1, height + 1, width + 1)
        boxes = [boxes.tensor for boxes in box_lists]
        return ps_roi_pool(maps.float(), boxes, self.resolution, self.scale)


@ROI_HEADS_REGISTRY.register()
class RFCNROIHeads(StandardROIHeads):
    """The improved R-FCN's head (3DCE): position-sensitive pooling before Fast R-CNN's layers.

    With ``FastRCNNConvFCHead`` and one fully connected layer of 2048 it is 3DCE's; the "two fully
    connected layers" of Tao et al. (section 2) are that one and the outputs'. Everything else, from
    the sampling of proposals to the inference, is StandardROIHeads'. It looks at a
    :class:`SliceImages`' features of all images.
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
