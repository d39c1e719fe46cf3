"""3DCE with attention (Tao et al., 2019)."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from ..backbone import SliceImages
from .lesion_rcnn import LesionRCNN


@META_ARCH_REGISTRY.register()
class RFCN3DCE(LesionRCNN):
    """3DCE based on an improved R-FCN, with optional attention (Tao et al., 2019, section 2).

    The C = 3 M slices of a sample are M images of three channels. Region proposals are computed
    from the key image, the middle one; regions are classified by the score maps of all images. M =
    1 is the improved R-FCN. The parts are ``build_slice_images_backbone``, Detectron2's RPN and
    ``RFCNROIHeads``.

    Args:
        kwargs: see :class:`LesionRCNN`; the backbone is a :class:`SliceImages`.

    Raises:
        ValueError: the backbone is not a :class:`SliceImages`.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(self.backbone, SliceImages):
            raise ValueError(
                f"MODEL.BACKBONE.NAME: found a {type(self.backbone).__name__}, expected "
                "'build_slice_images_backbone' for RFCN3DCE"
            )

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """As in Detectron2.

        Raises:
            ValueError: an image does not have 3 M channels, or is smaller than the stride, so that
                its only feature would consist mostly of padding.
        """
        stride = self.backbone.output_shape()[self.backbone.in_feature].stride
        for x in batched_inputs:
            num_slices, height, width = x["image"].shape
            if num_slices != len(self.pixel_mean):
                raise ValueError(
                    f"{x.get('file_name', 'image')}: found {num_slices} slices, expected the "
                    f"{len(self.pixel_mean)} of MODEL.PIXEL_MEAN"
                )
            if min(height, width) < stride:
                name = x.get("file_name", "image")
                raise ValueError(
                    f"{name}: found {width} x {height} pixels, expected at least {stride} x "
                    f"{stride}, the stride of the features"
                )
        return super().preprocess_image(batched_inputs)

    def extract_features(self, images: ImageList) -> dict[str, Tensor]:
        """As in :class:`LesionRCNN`; the spatial attention ignores the batch's padding."""
        return self.backbone(images.tensor, images.image_sizes)
