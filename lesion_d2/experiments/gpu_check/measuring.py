"""The measurements: each takes a config and returns numbers by name."""

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from lesion_d2.config.volumetric import is_volumetric
from lesion_d2.data.deeplesion.key_slices import register_deeplesion
from lesion_d2.data.loader import TrainLoader, count_workers
from lesion_d2.data.phantoms.volumes import register_volumes
from lesion_d2.data.volumetric.mapper import VolumePatchMapper
from lesion_d2.engine import Trainer
from lesion_d2.engine.predictors.prediction import build_test_mapper
from lesion_d2.engine.solver.compilation import compile_parts
from lesion_d2.engine.solver.mixed_precision import step_trainer
from lesion_d2.modeling import MeanTeacher

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage
from torch import nn

from ..benchmark.configs import with_all_candidates, with_all_proposals
from ..benchmark.inputs import registered
from ..benchmark.models.bai import lower_score_threshold
from ..benchmark.models.volumes import build_evaluated, predict
from ..benchmark.timing import time_calls
from .data import made_up_batch, phantom, volume
from .waiting import waiting_share

Numbers = dict[str, float | str | None]
_MOST, _LEAST = 30, 3  # timed calls
_PROFILED = 3  # steps
_TOGETHER = 4  # images of a batch at inference


class Training:
    """A model with its optimizer, which trains one step per call like a run.

    Args:
        cfg: of the model.
        batches: training batches.
        seen: batch for frozen statistics.
    """

    def __init__(self, cfg: CfgNode, batches: Iterable[list[dict]], seen: list[dict]):
        self.model = Trainer.build_model(cfg)
        freeze_statistics(self.model, seen)
        self.teacher = MeanTeacher(cfg, self.model) if cfg.MODEL.MEAN_TEACHER.ENABLED else None
        trained = self.teacher or self.model
        if cfg.SOLVER.COMPILE:
            compile_parts(trained)
        optimizer = Trainer.build_optimizer(cfg, self.model)
        self._trainer: SimpleTrainer = step_trainer(cfg)(trained.train(), batches, optimizer)

    def step(self) -> None:
        """Load, forward, backward, update, and update of the teacher."""
        with EventStorage():
            self._trainer.run_step()
        if self.teacher is not None:
            self.teacher.update_teacher()


@torch.no_grad()
def freeze_statistics(model: nn.Module, batch: list[dict]) -> None:
    """Give frozen batch norms the statistics of a batch, instead of pretrained ones.

    With their initial statistics, features of an untrained ResNet-101 grow until they overflow in
    half precision.
    """

    def take(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.fill_(variance.mean())  # a channel's own may be 0 in a small image

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(take) for norm in norms]
    if norms:
        model.backbone(model.preprocess_image(batch[:1]).tensor)
    for handle in handles:
        handle.remove()


def measure_model(cfg: CfgNode, *, seconds: float) -> Numbers:
    """Training without a loader and inference of images or patches.

    Args:
        cfg: of the model.
        seconds: of timed calls, for each number.
    """
    device = cfg.MODEL.DEVICE
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    batch = made_up_batch(cfg, device)
    training = Training(_with_detections(cfg), itertools.repeat(batch), batch)
    if training.teacher is not None:
        lower_score_threshold(training.teacher, batch)
        training.teacher.start_iter = 0
    _reset_memory(device)
    start = time.perf_counter()
    training.step()
    _wait(device)
    first = time.perf_counter() - start
    step = _median_seconds(training.step, seconds, device)
    numbers: Numbers = {
        "batch": len(batch),
        "first_step_s": first,
        "training_per_s": len(batch) / step,
        "training_mib": _peak_memory(device),
        "waiting": waiting_share(training.step, _PROFILED) if device == "cuda" else None,
    }
    model = training.model.eval()
    _reset_memory(device)
    for name, number in (("inference_ms", 1), ("inference_of_4_ms", _TOGETHER)):
        images = [{"image": sample["image"]} for sample in (batch * _TOGETHER)[:number]]
        call = partial(_infer, model, images, cfg.SOLVER.AMP.ENABLED)
        numbers[name] = 1e3 * _median_seconds(call, seconds / 2, device) / number
    numbers["inference_mib"] = _peak_memory(device)
    return numbers


def measure_loader(cfg: CfgNode, folder: Path, *, seconds: float, tiny: bool) -> Numbers:
    """Training with the loader, and the loader alone, on data on disk."""
    device = cfg.MODEL.DEVICE
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    for loader in _train_loaders(cfg, folder, tiny=tiny):
        batches = iter(loader)
        training = Training(cfg, _Begun(batches), made_up_batch(cfg, device))
        training.step()
        step = _rate(training.step, seconds, device)
        waiting = waiting_share(training.step, 2 * _PROFILED) if device == "cuda" else None
        alone = _rate(lambda it=batches: next(it), seconds, device)
    workers = count_workers(cfg.DATALOADER.NUM_WORKERS)
    size = cfg.SOLVER.IMS_PER_BATCH
    return {
        "batch": size,
        "training_per_s": size * step,
        "loader_per_s": size * alone,
        "waiting": waiting,
        "note": f"{workers} loader processes",
    }


def measure_volume(cfg: CfgNode, folder: Path, *, tiny: bool) -> Numbers:
    """Inference on a volume, one tile at a time and several."""
    device, record = cfg.MODEL.DEVICE, volume(folder, tiny=tiny)
    numbers: Numbers = {}
    for name, number in (("inference_ms", 1), ("inference_of_4_ms", _TOGETHER)):
        cfg = _with_detections(cfg)
        cfg.TEST.IMS_PER_BATCH = number
        torch.manual_seed(0)
        model, mapper = build_evaluated(cfg), build_test_mapper(cfg)
        _reset_memory(device)
        call = partial(predict, model, mapper, record)
        (times,) = time_calls([call], repeats=1, warm_up=0 if tiny else 1, device=device)
        numbers[name] = times.milliseconds
        numbers["inference_mib"] = _peak_memory(device)
    size = " x ".join(map(str, record["shape"]))
    return {**numbers, "note": f"a volume of {size}; in batches: {_TOGETHER} tiles"}


def measure_optimizer(cfg: CfgNode, *, seconds: float) -> Numbers:
    """The update alone, fused and not."""
    device, found = cfg.MODEL.DEVICE, {}
    for fused in (True, False):
        cfg.SOLVER.FUSED = fused
        model = Trainer.build_model(cfg)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = Trainer.build_optimizer(cfg, model)
        found[fused] = 1e3 * _median_seconds(optimizer.step, seconds, device)
    note = f"update of the weights {found[True]:.2f} ms, not fused {found[False]:.2f} ms"
    return {"fused_ms": found[True], "not_fused_ms": found[False], "note": note}


def measure_teacher(cfg: CfgNode, *, seconds: float) -> Numbers:
    """The average of a mean teacher: all tensors together, and one by one."""
    model = MeanTeacher(cfg, Trainer.build_model(cfg))
    pairs = [
        (t, s.detach())
        for t, s in zip(model.teacher.parameters(), model.student.parameters(), strict=True)
    ]

    def one_by_one() -> None:
        for teacher, student in pairs:
            teacher.lerp_(student, 1 - 0.999)

    together, single = (
        1e3 * _median_seconds(call, seconds, cfg.MODEL.DEVICE)
        for call in (model.update_teacher, one_by_one)
    )
    note = f"teacher's average {together:.2f} ms, tensor by tensor {single:.2f} ms"
    return {"foreach_ms": together, "one_by_one_ms": single, "note": note}


def train_step(cfg: CfgNode, folder: Path, *, tiny: bool) -> Numbers:
    """Train one iteration as ``train_net.py`` does, with loader, hooks and checkpoint."""
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.STEPS = 1, 0.0, ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.MEAN_TEACHER.START_ITER = 0
    for key in ("PERIOD", "EPOCHS", "START_ITER", "START_EPOCHS"):
        cfg.HARD_NEGATIVES[key] = type(cfg.HARD_NEGATIVES[key])(0)
    cfg.OUTPUT_DIR = str(folder / "run")
    register = register_volumes if is_volumetric(cfg) else register_deeplesion
    with registered(phantom(folder, tiny=tiny), register, "train") as name:
        cfg.DATASETS.TRAIN = (name,)
        trainer = Trainer(cfg)
        trainer.train()
    [(loss, _)] = trainer.storage.history("total_loss").values()
    weights = [p for p in trainer.model.parameters() if not p.isfinite().all()]
    if weights:
        raise FloatingPointError(
            f"found {len(weights)} weights that are not finite after a step, expected none"
        )
    return {"loss": float(loss)}


class _Begun:
    """Batches of a shared iterator."""

    def __init__(self, batches: Iterator[list[dict]]):
        self._batches = batches

    def __iter__(self) -> Iterator[list[dict]]:
        return self._batches


def _train_loaders(cfg: CfgNode, folder: Path, *, tiny: bool) -> Iterator[TrainLoader]:
    """Context manager with a loader, whose data set is registered within the block."""
    if is_volumetric(cfg):
        yield TrainLoader(
            [volume(folder, tiny=tiny)] * cfg.SOLVER.IMS_PER_BATCH,
            VolumePatchMapper(cfg),
            cfg.MODEL.DEVICE,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=0,
            aspect_ratio_grouping=False,
            num_workers=count_workers(cfg.DATALOADER.NUM_WORKERS),
        )
        return
    with registered(phantom(folder, tiny=tiny), register_deeplesion, "train") as name:
        cfg.DATASETS.TRAIN = (name,)
        yield Trainer.build_train_loader(cfg)


def _with_detections(cfg: CfgNode) -> CfgNode:
    """Keep the maximum number of detections, as with a trained model; pseudo-labels by score."""
    if cfg.MODEL.MEAN_TEACHER.ENABLED:
        return cfg.clone()
    return with_all_proposals(with_all_candidates(cfg))


def _infer(model: nn.Module, images: list[dict], amp: bool) -> list[dict]:
    device = next(model.parameters()).device.type
    with torch.inference_mode(), torch.autocast(device, enabled=amp):
        return model(images)


def _median_seconds(call: Callable[[], object], seconds: float, device: str) -> float:
    """The median time of as many calls as fit, after some untimed calls."""
    options = {"warm_up": 0, "device": device}
    (first,) = time_calls([call], repeats=2, **options)
    repeats = max(_LEAST, min(_MOST, int(seconds / first.min)))
    (times,) = time_calls([call], repeats=repeats, **options)
    return times.milliseconds / 1e3


def _rate(call: Callable[[], object], seconds: float, device: str) -> float:
    """Calls per second, over a minimum time and number of calls."""
    _wait(device)
    start, number = time.perf_counter(), 0
    while number < _LEAST or time.perf_counter() - start < seconds:
        call()
        number += 1
    _wait(device)
    return number / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_memory(device: str) -> None:
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: str) -> float | None:
    """Peak memory of tensors since the last reset, MiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
