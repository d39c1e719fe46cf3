"""A model that several processes train together."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """The model without the wrapper of several processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def share_running_statistics(model: nn.Module) -> None:
    """Give all processes the first one's running statistics, which are what checkpoints hold."""
    if comm.get_world_size() > 1:
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        shared = torch.cat([buffer.flatten() for buffer in buffers])  # one message for all
        dist.broadcast(shared, src=0)
        for buffer, values in zip(buffers, shared.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))
