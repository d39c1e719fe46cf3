"""Runs training steps and inference of models, and measures their times and memory."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from ..inputs import random_batch
from ..memory import peak_memory
from ..timing import Row, Times, time_calls

WARM_UP = 3  # untimed calls: oneDNN and cuDNN choose their kernels for a shape in the first ones


def build_for_device(cfg: CfgNode) -> nn.Module:
    """A model in the memory format of the trainer: channels last on a CPU."""
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    memory_format = torch.channels_last if on_cpu else torch.contiguous_format
    return build_model(cfg).to(memory_format=memory_format)


def share_weights(models: Sequence[nn.Module]) -> None:
    """Copy the first model's weights and statistics to the others, where shapes agree.

    The time of NMS depends on the boxes, so detectors with different random weights would differ in
    it by more than by the compared property.
    """
    first = models[0].state_dict()
    for model in models[1:]:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        shared = {n: value for n, value in first.items() if shapes.get(n) == value.shape}
        model.load_state_dict(shared, strict=False)


def time_steps(models: Sequence[nn.Module], batch: list[dict], *, repeats: int) -> list[Times]:
    """Times of alternating training steps of the models."""
    device = models[0].device.type
    steps = [training_step(model, batch) for model in models]
    return time_calls(steps, repeats=repeats, warm_up=WARM_UP, device=device)


def time_inferences(models: Sequence[nn.Module], batch: list[dict], *, repeats: int) -> list[Times]:
    """Times of alternating inference of the models, which stay in evaluation mode."""
    device = models[0].device.type
    calls = [partial(infer, model.eval(), batch) for model in models]
    return time_calls(calls, repeats=repeats, warm_up=WARM_UP, device=device)


def training_step(model: nn.Module, batch: list[dict]) -> Callable[[], None]:
    """A function that trains the model by one step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)

    def step() -> None:
        """Forward, backward and update."""
        model.train()
        with EventStorage():
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def infer(model: nn.Module, batch: list[dict]) -> int:
    """Inference of one image as in an evaluation; returns the number of detections."""
    with torch.inference_mode():
        (output,) = model(batch[:1])
    return len(output["instances"])


def memory_ratio(
    name: str, work: Callable[[CfgNode], None], ours: CfgNode, theirs: CfgNode, size: str
) -> Row:
    """The ratio of two models' peak memory in the same work, with MiB in the note."""
    a, b = (peak_memory(work, cfg) for cfg in (ours, theirs))
    return Row(name, a / b, "x", None, f"{a:.0f} against {b:.0f} MiB, {size}")


def run_steps(cfg: CfgNode) -> None:
    """Build a model and train it by two steps."""
    step = training_step(build_for_device(cfg), random_batch(cfg))
    step()
    step()


def run_inferences(cfg: CfgNode) -> None:
    """Build a model and run inference twice."""
    model, batch = build_for_device(cfg).eval(), random_batch(cfg)
    infer(model, batch)
    infer(model, batch)
