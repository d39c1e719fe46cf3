from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet


@META_ARCH_REGISTRY.register()
class LesionRetinaNet(RetinaNet):
    """Detectron2's RetinaNet with a choice of what becomes of lesions that no anchor fits.

    Detectron2 takes the best anchors of every lesion for positive, however low their IoU is. The
    RetinaNet of Zlocha et al. (keras-retinanet) does not: where no anchor reaches the highest of
    MODEL.RETINANET.IOU_THRESHOLDS, none is positive, and the lesion trains as background.

    Args:
        allow_low_quality_matches: whether the best anchors of a lesion are positive below the
            threshold too.
        kwargs: see :class:`RetinaNet`.
    """

    @configurable
    def __init__(self, *, allow_low_quality_matches: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.anchor_matcher.allow_low_quality_matches = allow_low_quality_matches

    @classmethod
    def from_config(cls, cfg) -> dict:
        allows = cfg.MODEL.RETINANET.ALLOW_LOW_QUALITY_MATCHES
        return {**super().from_config(cfg), "allow_low_quality_matches": allows}
