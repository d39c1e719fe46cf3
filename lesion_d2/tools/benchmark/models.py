"""The detectors against Detectron2's RetinaNet with the same backbone, levels and anchors."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from . import configs
from .configs import as_retinanet, load_config, with_all_candidates, with_output
from .inputs import random_batch
from .memory import peak_memory
from .timing import Row, Times, paired_ratio, time_calls

WARM_UP = 3  # untimed calls: oneDNN and cuDNN choose their kernels for a shape in the first ones
PAPER_MS = 41  # an image on a GTX 1080, with dense supervision and gates (Zlocha et al., Table 1)


def measure_retina_unet(device: str, *, repeats: int = 9) -> Iterator[Row]:
    """A training step and an inference of RetinaUNet against RetinaNet."""
    file = configs.GPU_CONFIG if device == "cuda" else configs.CPU_CONFIG
    cfg = load_config(file, device)
    cfgs = [with_output(cfg), with_output(cfg, masks=True), as_retinanet(cfg)]
    models, batch = [build_for_device(c) for c in cfgs], random_batch(cfg)
    title = f"RetinaUNet / RetinaNet, {device}:"
    one, many = _sizes(batch, file)
    step, net_step = time_steps([models[0], models[2]], batch, repeats=repeats)
    yield paired_ratio(f"{title} training step", step, net_step, many)
    plain, masks, net = time_inferences(models, batch, repeats=repeats)
    yield paired_ratio(f"{title} inference", plain, net, one)
    yield paired_ratio(f"{title} inference with masks", masks, net, one)
    yield memory_ratio(f"{title} memory of a step", run_steps, cfgs[0], cfgs[2], many)


def measure_zlocha(device: str, *, repeats: int = 9) -> Iterator[Row]:
    """The improved RetinaNet of Zlocha et al., with dense branch and gates, against RetinaNet."""
    file = configs.ZLOCHA_GPU_CONFIG if device == "cuda" else configs.ZLOCHA_CPU_CONFIG
    cfg = with_all_candidates(load_config(file, device))
    cfgs = [with_output(cfg), with_output(cfg, calibration=1.0), as_retinanet(cfg)]
    models, batch = [build_for_device(c) for c in cfgs], random_batch(cfg)
    title = f"Zlocha / RetinaNet, {device}:"
    one, many = _sizes(batch, file)
    step, net_step = time_steps([models[0], models[2]], batch, repeats=repeats)
    yield paired_ratio(f"{title} training step", step, net_step, many, limit=1.6)
    share_weights(models)
    plain, calibrated, net = time_inferences(models, batch, repeats=2 * repeats)
    counts = "/".join(str(infer(model, batch)) for model in models)
    note = f"{one}; score threshold 0, {counts} detections"
    yield paired_ratio(f"{title} inference", plain, net, note, limit=1.1)
    yield paired_ratio(f"{title} calibrated inference", calibrated, net, note, limit=1.35)
    if device == "cuda":
        yield from _image_times(plain, calibrated, net, note)
    yield memory_ratio(f"{title} memory of a step", run_steps, cfgs[0], cfgs[2], many)
    memory = partial(memory_ratio, work=run_inferences, theirs=cfgs[2], size=note)
    yield memory(f"{title} memory of an inference", ours=cfgs[0])
    yield memory(f"{title} memory of a calibrated inference", ours=cfgs[1])


def _image_times(plain: Times, calibrated: Times, net: Times, size: str) -> list[Row]:
    paper = f"the paper: {PAPER_MS} ms on a GTX 1080; {size}"
    return [
        Row("RetinaNet, an image, median", net.milliseconds, "ms", None, size),
        Row("Zlocha, an image, median", plain.milliseconds, "ms", None, paper),
        Row("Zlocha, an image, calibrated, median", calibrated.milliseconds, "ms", None, paper),
    ]


def _sizes(batch: Sequence[dict], file: Path) -> tuple[str, str]:
    """What an inference and a training step get, for the notes."""
    size = " x ".join(map(str, batch[0]["image"].shape))
    return f"1 image of {size}", f"{len(batch)} images of {size}, {file.stem}"


def build_for_device(cfg: CfgNode) -> nn.Module:
    """A model in the memory format that the trainer gives it: channels last on a CPU."""
    on_cpu = cfg.MODEL.DEVICE == "cpu"
    memory_format = torch.channels_last if on_cpu else torch.contiguous_format
    return build_model(cfg).to(memory_format=memory_format)


def share_weights(models: Sequence[nn.Module]) -> None:
    """Give all models the first one's weights and statistics, where they have some of that shape.

    The time of the NMS depends on the boxes: detectors with other random weights differ in it by
    more than by what they are compared for.
    """
    first = models[0].state_dict()
    for model in models[1:]:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        shared = {n: value for n, value in first.items() if shapes.get(n) == value.shape}
        model.load_state_dict(shared, strict=False)


def time_steps(models: Sequence[nn.Module], batch: list[dict], *, repeats: int) -> list[Times]:
    """Times of a training step of each model, which take turns."""
    device = models[0].device.type
    steps = [training_step(model, batch) for model in models]
    return time_calls(steps, repeats=repeats, warm_up=WARM_UP, device=device)


def time_inferences(models: Sequence[nn.Module], batch: list[dict], *, repeats: int) -> list[Times]:
    """Times of an inference of each model, which take turns; the models stay in evaluation mode."""
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
    """One inference of an evaluation, a single image; the number of detections."""
    with torch.inference_mode():
        (output,) = model(batch[:1])
    return len(output["instances"])


def memory_ratio(
    name: str, work: Callable[[CfgNode], None], ours: CfgNode, theirs: CfgNode, size: str
) -> Row:
    """The ratio of two models' peak memory in the same work; MiB stand in the note."""
    a, b = (peak_memory(work, cfg) for cfg in (ours, theirs))
    return Row(name, a / b, "x", None, f"{a:.0f} against {b:.0f} MiB, {size}")


def run_steps(cfg: CfgNode) -> None:
    """Build a model and train it by two steps."""
    step = training_step(build_for_device(cfg), random_batch(cfg))
    step()
    step()


def run_inferences(cfg: CfgNode) -> None:
    """Build a model and infer twice."""
    model, batch = build_for_device(cfg).eval(), random_batch(cfg)
    infer(model, batch)
    infer(model, batch)
