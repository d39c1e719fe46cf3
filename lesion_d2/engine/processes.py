"""Helpers for training a model in several processes."""

import copy
import logging
import math

import torch
import torch.distributed as dist
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

_SIDE = 256  # minimum side of the image for finding unused parameters


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model without DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def share_running_statistics(model: nn.Module) -> None:
    """Broadcast the running statistics of the first process, which are saved in checkpoints."""
    if comm.get_world_size() > 1:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        shared = torch.cat([buffer.flatten() for buffer in buffers])  # one message for all
        dist.broadcast(shared, src=0)
        for buffer, values in zip(buffers, shared.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


def has_unused_parameters(model: nn.Module) -> bool:
    """Whether a training step leaves parameters of a detector without gradients.

    Examples are the parameters of pyramid levels that no head uses, and of P1 and P0 in a U-FPN
    without a segmentation loss. This works for any backbone: the features that the losses use, and
    their gradients, are computed on the "meta" device. Parameters of heads always have gradients:
    for a batch without lesions, an R-CNN's losses are 0 times its outputs.

    Args:
        model: a model on any device; not modified. If it is neither a one-stage detector nor an
            R-CNN of Detectron2, or its backbone does not work on the meta device, the result is
            True: :class:`DistributedDataParallel` then searches for unused parameters in every
            step.
    """
    names = _features_with_losses(model)
    if names is None:
        return True
    try:
        return _leaves_parameters(model, names)
    except Exception as error:  # an unknown backbone may raise any
        logger.info(
            f"{type(model.backbone).__name__} does not work on the meta device ({error!r}): "
            "every step searches for parameters without gradients"
        )
        return True


def _features_with_losses(model: nn.Module) -> set[str] | None:
    """The backbone's features that heads with losses use; None if unknown."""
    if isinstance(model, DenseDetector):
        return set(model.head_in_features)
    if isinstance(model, GeneralizedRCNN):
        parts = (model.proposal_generator, model.roi_heads)
        return {name for part in parts for name in getattr(part, "in_features", ())}
    return None


def _leaves_parameters(model: nn.Module, names: set[str]) -> bool:
    backbone = _without_values(model.backbone)
    # In evaluation mode: SyncBN would wait for other processes.
    backbone.eval()
    image = torch.zeros(_image_shape(model), device="meta")
    features = backbone(image)
    looked_at = [features[name] for name in names]
    if getattr(model, "seg_loss_weight", 0) > 0:
        looked_at.append(backbone.decode(image, features))
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    total = torch.stack([feature.sum() for feature in looked_at]).sum()
    return bool(parameters) and any(
        gradient is None for gradient in torch.autograd.grad(total, parameters, allow_unused=True)
    )


def _without_values(module: nn.Module) -> nn.Module:
    """A copy of a module on the meta device."""
    twins: dict[int, Tensor] = {}
    for parameter in module.parameters():
        twin = torch.empty_like(parameter, device="meta")
        twins[id(parameter)] = nn.Parameter(twin, parameter.requires_grad)
    for buffer in module.buffers():
        twins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, twins)


def _image_shape(model: nn.Module) -> tuple[int, ...]:
    """(1, C, H, W), or (1, C, D, H, W) for volumes, divisible by the backbone's strides."""
    backbone = model.backbone
    sides = getattr(backbone, "size_divisibility_3d", [backbone.size_divisibility] * 2)
    return 1, len(model.pixel_mean), *(math.ceil(_SIDE / (s or 1)) * (s or 1) for s in sides)
