"""Mean teacher for missing annotations (Bai et al., 2023)."""

import copy
from collections.abc import Iterator

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...structures.ignore_regions import IGNORED_CLASS, lie_inside, mark_regions, split_regions
from ..backbone import batch_images
from ..pseudo_labels import (
    PseudoLabelCounts,
    box_masks,
    ellipse_masks,
    hits_any,
    select_pseudo_labels,
    view_detections,
)
from ..variants import without_low_scores, without_masks
from ..waiting import to_host, upload

PSEUDO_LABEL_MODES = ("none", "add", "ignore")
# Keys of a sample that the detector needs to transform detections to the slice, and its name.
_SLICE_KEYS = ("file_name", "image_id", "height", "width", "crop")


class MeanTeacher(nn.Module):
    """A student and its mean teacher, for training with missing annotations (Bai et al., 2023).

    For every batch, the teacher processes the images as at inference ("weakly augmented": without
    the student's random resize). Its confident detections that are not annotated become
    pseudo-labels, see :func:`select_pseudo_labels`, and are transformed to the student's images.
    With ``pseudo_label_mode`` "add" they are annotations; with "ignore" they become annotations of
    class -1, which Detectron2's RetinaNet and ROI heads, our RPN and our segmentation losses
    ignore; with "none" there are no pseudo-labels. In evaluation, this model is the teacher. On
    slices of fully annotated volumes, only lesions of the volume become pseudo-labels, because they
    need not be annotated on each of its slices. There are no pseudo-labels in regions to ignore
    (:mod:`lesion_d2.structures.ignore_regions`). A pseudo-label of which a patch shows too little
    becomes such a region, like annotated lesions.

    The paper does not say which anchors are ignored with "ignore": here those that would be
    positive for the pseudo-label with "add". If the detector is trained on masks, those of
    pseudo-labels are :func:`ellipse_masks`.

    Args:
        student: any detector with Detectron2's model interface; the teacher is a copy.
        momentum: share of the teacher that :meth:`update_teacher` keeps.
        pseudo_label_mode: "none", "add" or "ignore".
        start_iter: first iteration with pseudo-labels.
        score_threshold, gt_nms_threshold: see :func:`select_pseudo_labels`.
        box_margin: see :func:`ellipse_masks`.

    Raises:
        ValueError: the momentum is outside [0, 1), a threshold outside [0, 1], or the mode is
            unknown.

    Attributes:
        counts: counts of pseudo-labels.
    """

    @configurable
    def __init__(
        self,
        student: nn.Module,
        *,
        momentum: float = 0.999,
        pseudo_label_mode: str = "add",
        start_iter: int = 0,
        score_threshold: float = 0.9,
        gt_nms_threshold: float = 0.7,
        box_margin: float = 5.0,
    ):
        super().__init__()
        _check(momentum, pseudo_label_mode, score_threshold, gt_nms_threshold)
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.pseudo_label_mode = pseudo_label_mode
        self.start_iter = start_iter
        self.score_threshold = score_threshold
        self.gt_nms_threshold = gt_nms_threshold
        self.box_margin = box_margin
        self.counts = PseudoLabelCounts()
        self._average = get_ema_multi_avg_fn(momentum)

    @classmethod
    def from_config(cls, cfg, student: nn.Module) -> dict:
        """Arguments of ``MeanTeacher(cfg, student)``."""
        options = cfg.MODEL.MEAN_TEACHER
        return {
            "student": student,
            "momentum": options.MOMENTUM,
            "pseudo_label_mode": options.PSEUDO_LABELS,
            "start_iter": options.START_ITER,
            "score_threshold": options.SCORE_THRESH,
            "gt_nms_threshold": options.GT_NMS_THRESH,
            "box_margin": cfg.INPUT.BOX_MARGIN,
        }

    def train(self, mode: bool = True) -> "MeanTeacher":
        """As in torch; the teacher always stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Return the student's losses in training, the teacher's detections in evaluation.

        Args:
            batched_inputs: inputs of the detector. In training, unless the mode is "none", also
                with ``weak_image``, the image as it is at inference, ``slice_to_image``, the (2, 3)
                matrix from pixels of the slice to those of ``image``, and optional
                ``volume_boxes``, all lesions of a fully annotated volume as boxes on the slice,
                ``hidden_boxes`` in pixels of ``image``, which are only counted, and, of a patch,
                ``min_share``, see :func:`view_detections`.
        """
        if not self.training:
            return self.teacher(batched_inputs)
        if self.pseudo_label_mode != "none" and get_event_storage().iter >= self.start_iter:
            pseudo_labels = self.generate_pseudo_labels(batched_inputs)
            batched_inputs = list(map(self._add_pseudo_labels, batched_inputs, pseudo_labels))
        return self.student(batched_inputs)

    @torch.no_grad()
    def generate_pseudo_labels(self, batched_inputs: list[dict]) -> list[Instances]:
        """Find unannotated lesions with the teacher, in pixels of the student's images.

        For patches, those with ``is_cut`` are to be ignored, see :func:`view_detections`.

        The selection depends on the detections, so they are copied to the host, with a single GPU
        synchronization. All results are on the host.
        """
        views = [
            {"image": x["weak_image"], **{k: x[k] for k in _SLICE_KEYS if k in x}}
            for x in batched_inputs
        ]
        pseudo_labels = []
        # Without masks, and without detections below the score threshold.
        teacher = without_low_scores(without_masks(self.teacher), self.score_threshold)
        with torch.inference_mode(), batch_images(teacher):  # faster than no_grad alone
            outputs = teacher(views)
        outputs = [output["instances"] for output in outputs]
        for sample, (found, known) in zip(
            batched_inputs, _on_host(outputs, batched_inputs), strict=True
        ):
            annotated, regions = split_regions(known["instances"])
            if "volume_boxes" in sample:  # all lesions are known, though not on all slices
                found = found[hits_any(found.pred_boxes, sample["volume_boxes"])]
            found = view_detections(
                found,
                known["slice_to_image"],
                annotated.image_size,
                min_share=sample.get("min_share"),
            )
            found = select_pseudo_labels(
                found,
                annotated.gt_boxes,
                score_threshold=self.score_threshold,
                gt_nms_threshold=self.gt_nms_threshold,
            )
            if regions is not None:
                found = found[~lie_inside(found.pred_boxes, regions.gt_boxes)]
            self.counts.add(_split_cut(found)[0], known.get("hidden_boxes"))
            pseudo_labels.append(found)
        return pseudo_labels

    def _add_pseudo_labels(self, sample: dict, pseudo_labels: Instances) -> dict:
        """A copy of a sample with pseudo-labels before the annotated instances."""
        if len(pseudo_labels) == 0:
            return sample
        pseudo_labels = upload(pseudo_labels, sample["instances"].gt_boxes.device)
        annotated, regions = split_regions(sample["instances"])
        pseudo_labels, cut = _split_cut(pseudo_labels)
        lesions = Instances(pseudo_labels.image_size)
        lesions.gt_boxes = pseudo_labels.pred_boxes
        lesions.gt_classes = pseudo_labels.pred_classes
        if self.pseudo_label_mode == "ignore":
            lesions.gt_classes = torch.full_like(pseudo_labels.pred_classes, IGNORED_CLASS)
        if annotated.has("gt_masks"):
            lesions.gt_masks = ellipse_masks(
                pseudo_labels.pred_boxes.tensor,
                sample["slice_to_image"],
                pseudo_labels.image_size,
                margin=self.box_margin,
            )
        # If masks overlap, the later, annotated one is used.
        parts = [lesions, annotated]
        if regions is not None:
            regions.remove("is_region")
            parts.insert(0, regions)
        if cut is not None:
            parts.insert(0, _as_regions(cut, with_masks=annotated.has("gt_masks")))
        instances = Instances.cat(parts)
        mark_regions(instances, sum(map(len, parts[:-2])))
        return {**sample, "instances": instances}

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Update the teacher's parameters and buffers by the moving average of the student's.

        t = momentum t + (1 - momentum) s; integers, such as counts of batches, are copied.
        """
        teacher, student = (
            [*module.parameters(), *module.buffers()] for module in (self.teacher, self.student)
        )
        averaged = [t.is_floating_point() for t in teacher]
        self._average(
            [t for t, is_averaged in zip(teacher, averaged, strict=True) if is_averaged],
            [s.detach() for s, is_averaged in zip(student, averaged, strict=True) if is_averaged],
            None,
        )
        for t, s, is_averaged in zip(teacher, student, averaged, strict=True):
            if not is_averaged:
                t.copy_(s)

    def restart(self) -> None:
        """Initialize the student with the teacher's weights, which were loaded."""
        self.student.load_state_dict(self.teacher.state_dict())


def _check(momentum: float, mode: str, score_threshold: float, gt_nms_threshold: float) -> None:
    modes = ", ".join(PSEUDO_LABEL_MODES)
    for key, value, is_right, expected in (
        ("MOMENTUM", momentum, 0 <= momentum < 1, "a number in [0, 1)"),
        ("PSEUDO_LABELS", mode, mode in PSEUDO_LABEL_MODES, f"one of {modes}"),
        ("SCORE_THRESH", score_threshold, 0 < score_threshold <= 1, "a score in (0, 1]"),
        ("GT_NMS_THRESH", gt_nms_threshold, 0 <= gt_nms_threshold <= 1, "an IoU in [0, 1]"),
    ):
        if not is_right:
            raise ValueError(f"MODEL.MEAN_TEACHER.{key}: found {value!r}, expected {expected}")


def _on_host(
    found: list[Instances], batched_inputs: list[dict]
) -> Iterator[tuple[Instances, dict]]:
    """Copy detections and the related fields of samples to the host, with one synchronization.

    Yields:
        Per image, the detections, and a dict of ``instances`` with only ``gt_boxes`` and
        ``is_region``, ``slice_to_image`` and, if known, ``hidden_boxes``.
    """
    names, moved = ("pred_boxes", "scores", "pred_classes"), []
    for each, sample in zip(found, batched_inputs, strict=True):
        fields = [*map(each.get, names), sample["instances"].gt_boxes, sample.get("hidden_boxes")]
        moved += [field.tensor if isinstance(field, Boxes) else field for field in fields]
        moved.append(sample["slice_to_image"])
    tensors = iter(to_host(*(tensor for tensor in moved if tensor is not None)))
    for each, sample in zip(found, batched_inputs, strict=True):
        detections = Instances(each.image_size, pred_boxes=Boxes(next(tensors)))
        detections.scores, detections.pred_classes = next(tensors), next(tensors)
        instances = Instances(sample["instances"].image_size, gt_boxes=Boxes(next(tensors)))
        if sample["instances"].has("is_region"):
            instances.is_region = sample["instances"].is_region
        known = {"instances": instances}
        if sample.get("hidden_boxes") is not None:
            known["hidden_boxes"] = Boxes(next(tensors))
        yield detections, {**known, "slice_to_image": next(tensors)}


def _split_cut(pseudo_labels: Instances) -> tuple[Instances, Instances | None]:
    """Separate pseudo-labels that a patch cuts too much; None without a patch."""
    if not pseudo_labels.has("is_cut"):
        return pseudo_labels, None
    is_cut = pseudo_labels.is_cut
    return pseudo_labels[~is_cut], pseudo_labels[is_cut]


def _as_regions(cut: Instances, *, with_masks: bool) -> Instances:
    regions = Instances(cut.image_size)
    regions.gt_boxes = cut.pred_boxes
    regions.gt_classes = torch.full_like(cut.pred_classes, IGNORED_CLASS)
    if with_masks:
        regions.gt_masks = box_masks(cut.pred_boxes.tensor, cut.image_size)
    return regions
