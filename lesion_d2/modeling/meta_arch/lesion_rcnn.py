"""Faster and Mask R-CNN for slices."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ...structures.cropping import crop_size, paste_to_slice
from ..losses import segmentation_loss
from ..segmentation import (
    SegmentationLoss,
    build_segmentation_loss,
    build_segmentation_predictor,
    semantic_labels,
)


@META_ARCH_REGISTRY.register()
class LesionRCNN(GeneralizedRCNN):
    """Faster and Mask R-CNN with boxes on the slice in the data set's coordinates.

    Integers are pixel centers there. With ``ULDorROIHeads`` it is ULDor's detector (Tang et al.,
    section 2); on a U-FPN with its segmentation loss it is U-Faster R-CNN+ (Jaeger et al., section
    4.1). The papers' "+" stands for RoIAlign.

    Args:
        seg_loss_weight: weight of the segmentation loss, added to those of the R-CNN; 0 to disable
            it. The segmentation is only computed in training.
        seg_loss: maps logits (N, K + 1, H, W) and labels (N, H, W) to a scalar.
        seg_class_agnostic: segment lesions against background, with K = 1, instead of K classes.
        kwargs: see :class:`GeneralizedRCNN`. With a segmentation loss the backbone is a
            :class:`UNetFPN`.

    Raises:
        ValueError: there is no U-FPN for the segmentation.
    """

    @configurable
    def __init__(
        self,
        *,
        seg_loss_weight: float = 0.0,
        seg_loss: SegmentationLoss = segmentation_loss,
        seg_class_agnostic: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.seg_loss_weight = seg_loss_weight
        self.seg_loss = seg_loss
        self.seg_class_agnostic = seg_class_agnostic
        if seg_loss_weight > 0:
            self.seg_predictor = build_segmentation_predictor(
                self.backbone, self.roi_heads.num_classes, class_agnostic=seg_class_agnostic
            )

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``LesionRCNN(cfg)``."""
        return {
            **super().from_config(cfg),
            "seg_loss_weight": cfg.MODEL.LESION_RCNN.SEG_LOSS_WEIGHT,
            "seg_loss": build_segmentation_loss(cfg),
            "seg_class_agnostic": cfg.MODEL.SEG_HEAD.CLASS_AGNOSTIC,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As in Detectron2; in training with ``loss_seg`` if the segmentation loss is enabled."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.extract_features(images)
        proposals, losses = self.propose(images, features, batched_inputs, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        losses = {**detector_losses, **losses}
        if self.seg_loss_weight > 0:
            logits = self.seg_predictor(self.backbone.decode(images.tensor, features))
            labels = semantic_labels(gt_instances, images, class_agnostic=self.seg_class_agnostic)
            losses["loss_seg"] = self.seg_loss_weight * self.seg_loss(logits, labels)
        return losses

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list:
        """As in Detectron2; if an input has ``crop``, results are on the whole slice."""
        images = self.preprocess_image(batched_inputs)
        features = self.extract_features(images)
        if detected_instances is None:
            proposals, _ = self.propose(images, features, batched_inputs)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            detected = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, detected)
        if not do_postprocess:
            return results
        return [
            {"instances": self.postprocess(*each)}
            for each in zip(results, batched_inputs, strict=True)
        ]

    def extract_features(self, images: ImageList) -> dict[str, Tensor]:
        """Return the backbone's features of a padded batch by name."""
        return self.backbone(images.tensor)

    def propose(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        batched_inputs: list[dict],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Return region proposals of each image, and in training the losses of the RPN.

        Without a proposal generator, the ``proposals`` of the inputs are used, as in Detectron2.
        """
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, gt_instances)
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    @staticmethod
    def postprocess(result: Instances, input_dict: dict) -> Instances:
        """Transform the detections of one image to its slice.

        Detectron2 scales pixel corners. This is correct for masks, which are trained and pasted
        with the same boxes. Boxes in pixel centers are shifted by half a pixel before and after.

        Args:
            result: boxes in pixels of the image and, with masks, ``pred_masks`` (n, 1, h, w),
                probabilities inside the boxes.
            input_dict: with optional ``height`` and ``width`` of the output, and ``crop``.

        Returns:
            Boxes in pixels of the slice, and ``pred_masks`` (n, height, width) bool.
        """
        image_height, image_width = result.image_size
        height, width = crop_size(input_dict, result.image_size)
        result = detector_postprocess(result, height, width)
        shift_x, shift_y = (width / image_width - 1) / 2, (height / image_height - 1) / 2
        # Clip to the image's borders: Detectron2 clips to pixel corners, 0 and the size.
        for side, shift, size in ((0, shift_x, width), (1, shift_y, height)):
            result.pred_boxes.tensor[:, side::2].add_(shift).clamp_(min=-0.5, max=size - 0.5)
        return paste_to_slice(result, input_dict)
