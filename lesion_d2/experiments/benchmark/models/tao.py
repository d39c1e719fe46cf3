"""Benchmark of 3DCE: M images against one, attention, and volumes with cached features."""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lesion_d2.data.loader import build_lesion_test_loader
from lesion_d2.data.phantoms.volumes import register_volumes
from lesion_d2.engine import Trainer
from lesion_d2.modeling.attention import MaxNormalizedAttention

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import nn

from .. import configs
from ..configs import load_config, with_all_proposals
from ..inputs import STACKS, prepare_phantom, random_batch, registered
from ..timing import Row, one_thread, paired_ratio, time_calls
from .running import WARM_UP, build_for_device, infer, share_weights


def measure_tao(device: str, folder: Path, *, repeats: int = 7) -> Iterator[Row]:
    """M = 3 against M = 1, attention against none, and cached features against recomputed ones.

    On a CPU with one thread, because several would wait for each other after every small step, and
    for other programs on the machine.
    """
    with one_thread() if device == "cpu" else contextlib.nullcontext():
        yield from _compare_inferences(device, repeats)
        yield from _compare_evaluations(device, folder)


def _compare_inferences(device: str, repeats: int) -> list[Row]:
    """A stack through the paper's networks, whose channels determine the cost of attention."""
    files = (configs.TAO_CONFIG, configs.TAO_STACK_CONFIG, configs.TAO_ATTENTION_CONFIG)
    size = 512 if device == "cuda" else 256
    cfgs = [_sized(with_all_proposals(load_config(file, device)), size) for file in files]
    models = [build_for_device(cfg).eval() for cfg in cfgs]
    share_weights(models)
    draw_attention(models[2])
    batch = random_batch(cfgs[1])
    key_batch = [{**sample, "image": sample["image"][3:6]} for sample in batch]
    batches = [key_batch, batch, batch]
    calls = [partial(infer, *pair) for pair in zip(models, batches, strict=True)]
    warm_up = WARM_UP if device == "cuda" else 1  # a call takes a second on a CPU
    single, stack, attended = time_calls(calls, repeats=repeats, warm_up=warm_up, device=device)
    counts = "/".join(str(call()) for call in calls)
    note = f"1 stack of {size} x {size}, {counts} detections{_threads(device)}"
    title = f"3DCE, {device}, inference:"
    return [
        paired_ratio(f"{title} M = 3 / M = 1", stack, single, note, limit=3.1),
        paired_ratio(f"{title} attention / none at M = 3", attended, stack, note, limit=1.05),
    ]


def _sized(cfg: CfgNode, size: int) -> CfgNode:
    cfg.INPUT.CT.IMAGE_SIZE = size
    return cfg


def _threads(device: str) -> str:
    return ", one thread" if device == "cpu" else ""


def draw_attention(model: nn.Module) -> None:
    """Give attention random weights, because with its initial zeros all weights are 1."""
    for module in model.modules():
        if isinstance(module, MaxNormalizedAttention):
            nn.init.kaiming_uniform_(module.scores.weight)


def _compare_evaluations(device: str, folder: Path) -> list[Row]:
    """All slices of volumes as in ``--eval-only``, with loading in the same process.

    Raises:
        RuntimeError: the detections differ.
    """
    file = configs.TAO_VOLUMES_CONFIG
    cfg = with_all_proposals(load_config(file, device))
    cfg.DATALOADER.NUM_WORKERS = 0
    model = build_for_device(cfg).eval()
    draw_attention(model)
    root = prepare_phantom(folder, **STACKS)
    # The test split has series of all three spacings.
    with registered(root, register_volumes, "test") as name:
        cfg.DATASETS.TEST = (name,)
        plain = cfg.clone()
        plain.MODEL.SLICE_IMAGES.FEATURE_CACHE_SIZE = 0
        # Fill caches, and choose kernels.
        [last] = deque(build_lesion_test_loader(cfg, name), maxlen=1)
        infer(model, last)
        results: list[list[SliceResult]] = []
        calls = [partial(_keep, results, c, model) for c in (cfg, plain)]
        times = time_calls(calls, repeats=1, warm_up=0, device=device)
    check_same(*results)
    title, note = f"3DCE, {device}, volumes at M = 5:", f"{file.stem}{_threads(device)}"
    return [
        _count_row(f"{title} images convolved, reused / new", *results, file.stem),
        paired_ratio(f"{title} evaluation, reused / new", *times, note),
    ]


def _keep(results: list, cfg: CfgNode, model: nn.Module) -> None:
    results.append(evaluate(cfg, model))


@dataclass
class SliceResult:
    """A slice of an evaluation: its spacing in mm, and the number of images that were computed."""

    image_id: str
    spacing: float
    num_images: int
    instances: Instances


class KeepResults(DatasetEvaluator):
    """Keeps a model's detections on every slice, and the number of images that it computed.

    Args:
        model: with a ``SliceImages`` backbone.
    """

    def __init__(self, model: nn.Module):
        self.results: list[SliceResult] = []
        self._num_images = 0
        self._handle = model.backbone.backbone.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[torch.Tensor]) -> None:
        self._num_images += len(args[0])

    def reset(self) -> None:
        """Forget all results."""
        self.results = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the results of one slice, which is a batch at inference."""
        [sample], [output] = inputs, outputs
        found = output["instances"].to("cpu")
        spacing = sample["spacing"][2]
        self.results.append(SliceResult(sample["image_id"], spacing, self._num_images, found))
        self._num_images = 0

    def evaluate(self) -> dict:
        """Stop counting; there are no metrics."""
        self._handle.remove()
        return {}


def evaluate(cfg: CfgNode, model: nn.Module) -> list[SliceResult]:
    """Evaluate a model like ``train_net.py --eval-only``, without metrics."""
    keeper = KeepResults(model)
    Trainer.test(cfg, model, [keeper])
    return keeper.results


def check_same(results: Sequence[SliceResult], others: Sequence[SliceResult]) -> None:
    """Compare the detections of two evaluations bit by bit.

    Raises:
        RuntimeError: a slice has other detections.
    """
    for result, other in zip(results, others, strict=True):
        a, b = result.instances, other.instances
        if not (
            result.image_id == other.image_id
            and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
            and torch.equal(a.scores, b.scores)
            and torch.equal(a.pred_classes, b.pred_classes)
        ):
            raise RuntimeError(
                f"{result.image_id}: found other detections with reused features, expected the same"
            )


def _count_row(
    name: str, reused: Sequence[SliceResult], recomputed: Sequence[SliceResult], note: str
) -> Row:
    """The share of images that were computed, with that of every slice spacing in the note."""
    spacings = sorted({result.spacing for result in recomputed})
    shares = [
        f"{_share(reused, recomputed, {spacing}):.2f} at {spacing:g} mm" for spacing in spacings
    ]
    detections = sum(len(result.instances) for result in recomputed)
    text = (
        f"{_total(reused, spacings)} against {_total(recomputed, spacings)} images, "
        f"{', '.join(shares)}; {len(recomputed)} slices, the same {detections} detections, {note}"
    )
    return Row(name, _share(reused, recomputed, spacings), "x", 0.5, text)


def _share(reused, recomputed, spacings) -> float:
    return _total(reused, spacings) / _total(recomputed, spacings)


def _total(results: Sequence[SliceResult], spacings) -> int:
    return sum(result.num_images for result in results if result.spacing in spacings)
