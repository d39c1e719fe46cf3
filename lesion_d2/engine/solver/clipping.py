"""Optimizers that clip gradients: as Detectron2's do, in few operations for all parameters."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

_KEY = "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"
_EPSILON = 1e-6  # clip_grad_norm_'s


def with_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    """The class, or one that clips gradients before its steps with SOLVER.CLIP_GRADIENTS.

    ``value`` and ``norm`` give what Detectron2's ``maybe_add_gradient_clipping`` gives, bit by bit,
    which calls PyTorch once for every parameter: ``norm`` limits the norm of each parameter's
    gradient on its own. ``full_model_norm`` limits that of all gradients together.

    Args:
        cfg: of the run; CLIP_VALUE is the limit, NORM_TYPE the norm's order.
        optimizer: a class.

    Raises:
        ValueError: CLIP_TYPE is none of the three.
    """
    clip = clipper(cfg)
    if clip is None:
        return optimizer

    class WithClipping(optimizer):
        def step(self, closure=None):
            """As the optimizer's, of clipped gradients."""
            parameters = [p for group in self.param_groups for p in group["params"]]
            clip([p for p in parameters if p.grad is not None])
            return super().step(closure)

    WithClipping.__name__ = WithClipping.__qualname__ = f"{optimizer.__name__}WithGradientClip"
    return WithClipping


def fit_to_scaler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer's steps take the scale off gradients (AMP) where they are fit for it.

    Fused ones are, unless gradients are clipped before them. Whether steps are fused is part of an
    optimizer's state: a run that began without goes on without, whatever SOLVER.FUSED says.

    Args:
        cfg: of the run.
        optimizer: of :func:`with_clipping`'s class.
    """

    def fit(one: torch.optim.Optimizer) -> None:
        are_fused = all(group["fused"] for group in one.param_groups)
        one._step_supports_amp_scaling = are_fused and not cfg.SOLVER.CLIP_GRADIENTS.ENABLED

    fit(optimizer)
    optimizer.register_load_state_dict_post_hook(fit)


def clipper(cfg: CfgNode) -> Callable[[Sequence[Parameter]], object] | None:
    """What clips the gradients of parameters that have one, in place; None where nothing does.

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
    """``torch.nn.utils.clip_grad_norm_`` of each parameter on its own, for all at once.

    Args:
        parameters: with gradients, which are changed in place.
        limit: the largest norm that a gradient may have.
        order: of the norm.
    """
    alike = defaultdict(list)
    for parameter in parameters:
        alike[parameter.grad.device, parameter.grad.dtype].append(parameter.grad)
    for gradients in alike.values():
        norms = torch.stack(torch._foreach_norm(gradients, order))
        factors = (limit / (norms + _EPSILON)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
