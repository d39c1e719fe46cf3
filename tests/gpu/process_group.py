"""What processes of a group do, as a module that they can import."""

import hashlib
from pathlib import Path

from lesion_d2.engine.processes import share_running_statistics, unwrap

import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tiny_run import tiny_config


def train(rank: int, world_size: int, folder: str, device: str) -> None:
    """Train two steps with other images in each process; write a digest of what comes out."""
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    comm.create_local_process_group(world_size)
    torch.manual_seed(rank)  # what they begin with is the first one's
    model = build_model(tiny_config(MODEL__DEVICE=device, MODEL__RESNETS__NORM="BN"))
    options = {"device_ids": None} if device == "cpu" else {}
    wrapped = distributed(model, options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(2):
        with EventStorage(), torch.autocast(device):
            losses = wrapped(_batch(10 * rank + step, device))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    share_running_statistics(model)
    Path(folder, f"rank_{rank}").write_text(_digest(unwrap(model)))
    dist.destroy_process_group()


def distributed(model: torch.nn.Module, options: dict) -> torch.nn.Module:
    """In DistributedDataParallel, also where a process is alone."""
    if comm.get_world_size() > 1:
        return create_ddp_model(model, broadcast_buffers=False, **options)
    return torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def _batch(seed: int, device: str) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 20:40, 20:44] = True
    instances = Instances((64, 64), gt_masks=BitMasks(masks))
    instances.gt_boxes = Boxes(torch.tensor([[20.0, 20.0, 43.0, 39.0]]))
    instances.gt_classes = torch.zeros(1, dtype=torch.int64)
    image = 255 * torch.rand(3, 64, 64, generator=generator)
    return [{"image": image.to(device), "instances": instances.to(device)}]


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()
