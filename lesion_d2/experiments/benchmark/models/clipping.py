"""Benchmark of gradient clipping against Detectron2's, parameter by parameter."""

from collections.abc import Callable, Iterator

from lesion_d2.engine.solver.clipping import clipper

import torch
from detectron2.solver.build import _create_gradient_clipper
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from .. import configs
from ..configs import load_config
from ..timing import Row, paired_ratio, time_calls
from .running import WARM_UP, build_for_device


def measure_clipping(device: str, *, repeats: int = 9) -> Iterator[Row]:
    """Clipping of each parameter's norm, the same bits as Detectron2's, and of the total norm.

    Gradients are above the limit in all calls, so all are scaled.
    """
    file = configs.GPU_CONFIG if device == "cuda" else configs.CPU_CONFIG
    cfg = load_config(file, device)
    parameters = [p for p in build_for_device(cfg).parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    one_by_one = _create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    calls = {"Detectron2's": lambda: [one_by_one(p) for p in parameters]}
    for clip_type in ("norm", "full_model_norm"):
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
        calls[clip_type] = _clip(clipper(cfg), parameters)
    times = time_calls([*calls.values()], repeats=repeats, warm_up=WARM_UP, device=device)
    counts = [count_operations(call) for call in calls.values()]
    for name, ours, count, limit in zip(
        [*calls][1:], times[1:], counts[1:], (1.0, 1.0), strict=True
    ):
        note = f"{count} against {counts[0]} operations, {len(parameters)} parameters, {file.stem}"
        yield paired_ratio(
            f"clipping, {name} / Detectron2's norm, {device}", ours, times[0], note, limit=limit
        )


def _clip(clip: Callable, parameters: list[Parameter]) -> Callable[[], object]:
    return lambda: clip(parameters)


def count_operations(call: Callable[[], object]) -> int:
    """The number of PyTorch operations in a call; operations on a list of tensors count once."""
    with _Counter() as counter:
        call()
    return counter.count


class _Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))
