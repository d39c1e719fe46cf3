"""Gradient clipping as in Detectron2, with few operations for all parameters together."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

_KEY = "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"
_EPSILON = 1e-6  # as in clip_grad_norm_


def with_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    """Return the class, or with SOLVER.CLIP_GRADIENTS a subclass that clips gradients in ``step``.

    ``value`` and ``norm`` are bitwise equal to Detectron2's ``maybe_add_gradient_clipping``, which
    calls PyTorch once per parameter: ``norm`` limits the gradient norm of each parameter
    separately. ``full_model_norm`` limits that of all gradients together.

    Args:
        cfg: config; CLIP_VALUE is the limit, NORM_TYPE the order of the norm.
        optimizer: an optimizer class.

    Raises:
        ValueError: CLIP_TYPE is unknown.
    """
    clip = clipper(cfg)
    if clip is None:
        return optimizer

    class WithClipping(optimizer):
        def step(self, closure=None):
            """Clip gradients, then call the optimizer's step."""
            parameters = [p for group in self.param_groups for p in group["params"]]
            clip([p for p in parameters if p.grad is not None])
            return super().step(closure)

    WithClipping.__name__ = WithClipping.__qualname__ = f"{optimizer.__name__}WithGradientClip"
    return WithClipping


def fit_to_scaler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer unscale gradients (AMP) in its step if it supports this.

    Fused optimizers do, unless gradients are clipped before the step. Whether steps are fused is
    part of an optimizer's state: a resumed run keeps this, independently of SOLVER.FUSED.

    Args:
        cfg: config.
        optimizer: an instance of the class from :func:`with_clipping`.
    """

    def fit(one: torch.optim.Optimizer) -> None:
        are_fused = all(group["fused"] for group in one.param_groups)
        one._step_supports_amp_scaling = are_fused and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED

    fit(optimizer)
    optimizer.register_load_state_dict_post_hook(fit)


def clipper(cfg: CfgNode) -> Callable[[Sequence[Parameter]], object] | None:
    """Return a function that clips the gradients of parameters in place; None if disabled.

    Raises:
        ValueError: see :func:`with_clipping`.
    """
    options = cfg.SOLVER.CLIP_GRADIENTS
    if not options.ENABLED:
        return None
    limit, order = options.CLIP_VALUE, options.NORM_TYPE
    clippers = {
        "value": lambda parameters: clip_grad_value_(parameters, limit, foreach=True),
        "norm": lambda parameters: clip_each_norm(parameters, limit, order),
        "full_model_norm": lambda parameters: clip_grad_norm_(
            parameters, limit, order, foreach=True
        ),
    }
    if options.CLIP_TYPE not in clippers:
        expected = ", ".join(map(repr, clippers))
        raise ValueError(f"{_KEY}: found {options.CLIP_TYPE!r}, expected one of {expected}")
    return clippers[options.CLIP_TYPE]


@torch.no_grad()
def clip_each_norm(parameters: Sequence[Parameter], limit: float, order: float = 2.0) -> None:
    """Apply ``torch.nn.utils.clip_grad_norm_`` to each parameter separately, but batched.

    Args:
        parameters: parameters with gradients, which are modified in place.
        limit: largest norm of a gradient.
        order: order of the norm.
    """
    alike = defaultdict(list)
    for parameter in parameters:
        alike[parameter.grad.device, parameter.grad.dtype].append(parameter.grad)
    for gradients in alike.values():
        norms = torch.stack(torch._foreach_norm(gradients, order))
        factors = (limit / (norms + _EPSILON)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
