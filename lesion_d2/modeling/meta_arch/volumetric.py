"""Base classes of meta-architectures for volumes (Jaeger et al., 2018)."""

from detectron2.config import configurable
from detectron2.modeling import RetinaNet, build_anchor_generator, build_backbone
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Instances
from torch import Tensor

from ...layers import batched_nms
from ...structures import Boxes3D, ImageList3D
from ..box_losses import check_box_loss
from ..volumetric import Box2BoxTransform3D, RetinaNetHead3D, VolumeShape


class VolumetricDetector:
    """Mixin of detectors for volumes (1, D, H, W); must precede the other base classes.

    Boxes are :class:`Boxes3D` in voxels, both in training and in results.
    """

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList3D:
        """Normalize, pad and batch volumes.

        Args:
            batched_inputs: dicts with ``image`` (1, D, H, W) on the 0..255 scale.

        Raises:
            ValueError: an image has another shape.
        """
        images = []
        for x in batched_inputs:
            shape = tuple(x["image"].shape)
            if len(shape) != 4 or shape[0] != len(self.pixel_mean):
                raise ValueError(
                    f"{x.get('image_id', 'image')}: found shape {shape}, expected "
                    f"({len(self.pixel_mean)}, depth, height, width)"
                )
            image = self._move_to_current_device(x["image"])
            images.append((image - self.pixel_mean[..., None]) / self.pixel_std[..., None])
        return ImageList3D.from_tensors(images, self.backbone.size_divisibility_3d)


def volume_shapes(backbone, levels: list[str]) -> list[VolumeShape]:
    """Return the shapes of a backbone's feature maps.

    Raises:
        ValueError: levels are missing, or it is a backbone for slices.
    """
    shapes, name = backbone.output_shape(), type(backbone).__name__
    missing = [level for level in levels if level not in shapes]
    if missing:
        raise ValueError(f"levels of {name}: found {sorted(shapes)}, expected also {missing}")
    if not all(isinstance(shapes[level], VolumeShape) for level in levels):
        raise ValueError(
            f"MODEL.BACKBONE.NAME: found a {name}, expected a backbone for volumes, such as "
            "build_resnet_fpn_3d_backbone"
        )
    return [shapes[level] for level in levels]


class VolumetricRetinaNet(VolumetricDetector, RetinaNet):
    """Detectron2's RetinaNet for volumes: the 3-D parts for subclasses of RetinaNet.

    Args:
        kwargs: see :class:`RetinaNet`, with parts of :mod:`lesion_d2.modeling.volumetric`.

    Raises:
        ValueError: the anchor generator or the box regression loss does not support volumes.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.anchor_generator.box_dim != 6:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.NAME: found {type(self.anchor_generator).__name__!r}, "
                "expected 'AnchorGenerator3D' for volumes"
            )
        check_box_loss(self.box_reg_loss_type, self.anchor_generator.box_dim)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments of ``VolumetricRetinaNet(cfg)``."""
        backbone, options = build_backbone(cfg), cfg.MODEL.RETINANET
        if len(options.BBOX_REG_WEIGHTS) != 6:
            raise ValueError(
                f"MODEL.RETINANET.BBOX_REG_WEIGHTS: found {tuple(options.BBOX_REG_WEIGHTS)}, "
                "expected six, of dx, dy, dz, dw, dh and dd"
            )
        shapes = volume_shapes(backbone, options.IN_FEATURES)
        return {
            "backbone": backbone,
            "head": RetinaNetHead3D(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform3D(options.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(options.IOU_THRESHOLDS, options.IOU_LABELS),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_classes": options.NUM_CLASSES,
            "head_in_features": options.IN_FEATURES,
            "focal_loss_alpha": options.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": options.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": options.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": options.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": options.SCORE_THRESH_TEST,
            "test_topk_candidates": options.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": options.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def _transpose_dense_predictions(
        self, predictions: list[list[Tensor]], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        """Reshape maps (N, A * K, D, H, W) to (N, D * H * W * A, K); deltas have the last K."""
        # Detectron2 expects the four deltas of 2-D boxes.
        dims = [*dims_per_anchor[:-1], self.anchor_generator.box_dim]
        return [
            [anchors_last(level, dim) for level in levels]
            for levels, dim in zip(predictions, dims, strict=True)
        ]

    def _decode_per_level_predictions(
        self,
        anchors: Boxes3D,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int, int],
    ) -> Instances:
        """As in Detectron2, with boxes of the anchors' kind."""
        candidates = (pred_scores > score_thresh).nonzero()
        scores = pred_scores[candidates[:, 0], candidates[:, 1]]
        scores, order = scores.topk(min(len(scores), topk_candidates))
        positions, classes = candidates[order].unbind(dim=1)
        boxes = self.box2box_transform.apply_deltas(
            pred_deltas[positions], anchors.tensor[positions]
        )
        return Instances(
            image_size, pred_boxes=type(anchors)(boxes), scores=scores, pred_classes=classes
        )

    def inference_single_image(
        self,
        anchors: list[Boxes3D],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int, int],
    ) -> Instances:
        """As in Detectron2, with NMS in 3-D.

        Args:
            anchors: one per FPN level.
            box_cls: (R_i, K) scores, one per level.
            box_delta: (R_i, 6), one per level.
            image_size: depth, height and width.
        """
        found = self._decode_multi_level_predictions(
            anchors,
            box_cls,
            box_delta,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        keep = batched_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh
        )
        return found[keep[: self.max_detections_per_image]]


def anchors_last(level: Tensor, dim: int) -> Tensor:
    """Reshape a map (N, A * K, D, H, W) to (N, D * H * W * A, K): A varies fastest, then x, y, z.

    Args:
        level: predictions of a head on one level.
        dim: K.
    """
    num_images, _, *size = level.shape
    level = level.view(num_images, -1, dim, *size).permute(0, 3, 4, 5, 1, 2)
    return level.reshape(num_images, -1, dim)
