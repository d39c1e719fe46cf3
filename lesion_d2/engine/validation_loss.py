"""The loss on held-out images (Tang et al., section 2.3: "minimizing the validation loss")."""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth
from tqdm import tqdm

from ..modeling import MeanTeacher, ULDorOutputLayers
from ..utils.random_states import random_states_kept, used_gpu
from .hooks import is_evaluated
from .processes import share_running_statistics, unwrap

logger = logging.getLogger(__name__)

#: Name of the total in the event storage; its parts are ``validation_loss/<name of the loss>``.
VALIDATION_LOSS = "validation_loss"

# Modules that compute losses differently in evaluation mode.
_CHANGES_WITH_MODE = (_NormBase, _DropoutNd, StochasticDepth, ULDorOutputLayers)
# Detectron2's transformers have it from an optional package.
_NAMES_OF_SUCH = ("DropPath",)


class ValidationLossHook(HookBase):
    """Computes the loss on held-out images, and puts it into the event storage of all processes.

    Like :class:`hooks.EvalHook`, it runs every ``period`` iterations and after training.

    Args:
        period: in iterations.
        loader: see :func:`mean_losses`.
        use_amp: compute the losses in mixed precision, as in training.
        seed: see :func:`mean_losses`.
    """

    def __init__(
        self, period: int, loader: Iterable[list[dict]], *, use_amp: bool = False, seed: int = 0
    ):
        self._period = period
        self._loader = loader
        self._use_amp = use_amp
        self._seed = seed

    def after_step(self) -> None:
        """Compute the loss every ``period`` iterations."""
        if is_evaluated(self.trainer, self._period):
            self._compute()

    def after_train(self) -> None:
        """Compute the loss of the last iteration, unless training failed or was stopped."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._compute()

    def _compute(self) -> None:
        start = time.perf_counter()
        losses = mean_losses(
            self.trainer.model, self._loader, use_amp=self._use_amp, seed=self._seed
        )
        total = sum(losses.values())
        scalars = {f"{VALIDATION_LOSS}/{name}": value for name, value in losses.items()}
        self.trainer.storage.put_scalars(
            **{VALIDATION_LOSS: total, **scalars}, smoothing_hint=False
        )
        parts = ", ".join(f"{name} {value:.5f}" for name, value in losses.items())
        seconds = time.perf_counter() - start
        logger.info(f"Validation loss: {total:.5f} ({parts}); {seconds:.1f} s")


def mean_losses(
    model: nn.Module, loader: Iterable[list[dict]], *, use_amp: bool = False, seed: int = 0
) -> dict[str, float]:
    """Compute a detector's training losses on held-out images, averaged over images.

    Training is not affected: modes, running statistics and random states are restored, and logs of
        heads are discarded. Normalization and dropout are in evaluation mode, and ULDor's heads
        treat false positives as background; its RPN, which has no such class, does not.
    Proposals and anchors for the losses are sampled with the same seed for every batch, so that two
    values differ only by the weights. For the same reason RetinaNet's losses are divided by the
    batch's number of positive anchors, not by the running mean.

    All processes return the means over all images, computed with the running statistics of the
    first process, which they then keep.

    Args:
        model: a detector, optionally in DistributedDataParallel; for a mean teacher, the teacher's
            loss is computed.
        loader: batches of this process's share, with ``instances``.
        use_amp: use mixed precision, with torch's default type for the device.
        seed: random seed of the sampling.

    Returns:
        Name -> mean loss, the same in every process.
    """
    model = unwrap(model)  # processes may have different numbers of batches
    if isinstance(model, MeanTeacher):
        model = model.teacher  # the evaluated model
    share_running_statistics(model)
    device = next(model.parameters()).device.type
    sums, num_images = {}, 0
    bar = {"desc": "validation loss", "unit": "batch", "disable": not comm.is_main_process()}
    # A separate storage, from iteration 1: at 0, heads would draw pictures (VIS_PERIOD).
    with torch.no_grad(), _computing_losses(model), random_states_kept(), EventStorage(1):
        for batch in tqdm(loader, **bar):
            _seed_all(seed)
            with torch.autocast(device, enabled=use_amp):
                losses = model(batch)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.double() * len(batch)
            num_images += len(batch)
    return _mean_over_processes({name: float(value) for name, value in sums.items()}, num_images)


def _mean_over_processes(sums: dict[str, float], num_images: int) -> dict[str, float]:
    shares = comm.all_gather((sums, num_images))
    total = sum(n for _, n in shares)
    names = dict.fromkeys(name for share, _ in shares for name in share)
    return {name: sum(share.get(name, 0.0) for share, _ in shares) / total for name in names}


@contextmanager
def _computing_losses(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    modes = [module.training for module in modules]
    if not model.training:
        model.train()
    for module in modules:
        name = type(module).__name__
        if isinstance(module, _CHANGES_WITH_MODE) or name in _NAMES_OF_SUCH:
            module.eval()
        if isinstance(module, DenseDetector):
            module._ema_update = _own_value
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
            vars(module).pop("_ema_update", None)


def _own_value(name: str, value: float, *args: float, **kwargs: float) -> float:
    return value


def _seed_all(seed: int) -> None:
    # torch.manual_seed would also seed GPUs whose state is not saved.
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if used_gpu():
        torch.cuda.manual_seed(seed)
