"""Benchmark of one-stage detectors against Detectron2's RetinaNet with the same backbone."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode

from .. import configs
from ..configs import as_retinanet, load_config, with_all_candidates, with_output
from ..inputs import random_batch
from ..timing import Row, Times, paired_ratio
from .operations import P3_TO_P7, as_detectron2s_retinanet, compare_operations
from .running import (
    build_for_device,
    infer,
    memory_ratio,
    run_inferences,
    run_steps,
    share_weights,
    time_inferences,
    time_steps,
)

PAPER_MS = 41  # an image on a GTX 1080, with dense supervision and gates (Zlocha et al., Table 1)


def measure_retina_unet(device: str, *, repeats: int = 9) -> Iterator[Row]:
    """A training step and inference of RetinaUNet against RetinaNet."""
    file = configs.GPU_CONFIG if device == "cuda" else configs.CPU_CONFIG
    cfg = load_config(file, device)
    cfgs = [with_output(cfg), with_output(cfg, masks=True), as_retinanet(cfg)]
    models, batch = [build_for_device(c) for c in cfgs], random_batch(cfg)
    title = f"RetinaUNet / RetinaNet, {device}:"
    one, many = _sizes(batch, file)
    step, net_step = time_steps([models[0], models[2]], batch, repeats=repeats)
    limit = 1.4 if device == "cpu" else None
    yield paired_ratio(f"{title} training step", step, net_step, many, limit=limit)
    plain, masks, net = time_inferences(models, batch, repeats=repeats)
    yield paired_ratio(f"{title} inference", plain, net, one)
    yield paired_ratio(f"{title} inference with masks", masks, net, one)
    yield memory_ratio(f"{title} memory of a step", run_steps, cfgs[0], cfgs[2], many)
    if device == "cpu":  # they are the same on both
        yield from compare_operations()
    else:
        yield _step_at_p3(cfg, repeats)


def _step_at_p3(cfg: CfgNode, repeats: int) -> Row:
    """A training step with heads at P3 to P7, where only the segmentation uses P2."""
    cfg = cfg.clone()
    cfg.MODEL.RETINANET.IN_FEATURES = list(P3_TO_P7)
    cfgs = [with_output(cfg), as_detectron2s_retinanet(cfg)]
    models, batch = [build_for_device(c) for c in cfgs], random_batch(cfg)
    note = f"{len(batch)} images, ResNet-50"
    title = f"RetinaUNet / RetinaNet at P3 to P7, {cfg.MODEL.DEVICE}: training step"
    return paired_ratio(title, *time_steps(models, batch, repeats=repeats), note)


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
    """Sizes of the inputs of inference and training, for the notes."""
    size = " x ".join(map(str, batch[0]["image"].shape))
    return f"1 image of {size}", f"{len(batch)} images of {size}, {file.stem}"
