"""Attention maps of a model: gates and segmentation, or weights of slices."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from lesion_d2.data.catalog import load_records
from lesion_d2.data.dataset_options import DatasetOptions
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine import LesionCheckpointer, fit_device, load_config
from lesion_d2.engine.checkpoint_files.checkpointer import load_trained
from lesion_d2.modeling import AttentionGate, SliceImages, record_attention
from lesion_d2.structures.cropping import crop_box
from lesion_d2.visualization import (
    OUTCOME_LEGEND,
    PAGE_STYLES,
    TRUTH_LEGEND,
    HeatMap,
    match_outcome,
    parse_window,
    place,
)

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn
from tqdm import tqdm

from .pictures import (
    check_output,
    names_of_pictures,
    pick_records,
    remove_pictures,
)
from .rows import Row, write_rows
from .slice_attention import JudgeImage, check_channel, record_slices, write_slice_pages

BOXES_AND_RECIST = TRUTH_LEGEND[:2]


@dataclass
class Recording:
    """Maps that a model computed for one image.

    Attributes:
        attention: by level, "p4" to "p0", the gate's map (h, w) in [0, 1] for the padded image.
        foreground: (H, W), the probability of any lesion, for the padded image.
        image_size: height and width of the image without its padding.
        extent: of :func:`crop_box`.
        predictions: the detections without masks, in pixels of the slice, on the CPU.
    """

    attention: dict[str, Tensor]
    foreground: Tensor
    image_size: tuple[int, int]
    extent: tuple[int, int, int, int]
    predictions: Instances


def draw_attention(args: argparse.Namespace) -> list[str]:
    """Write the heat maps of some images; return the pictures' paths, the contact sheet last."""
    window = parse_window(args.window)
    cfg = attention_config(args)
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "attention", args.dataset)
    records = load_records(args.dataset, DatasetOptions(allow_missing=args.allow_missing))
    check_output(output, records, args.dataset)
    model, mapper = load_attentive_model(cfg), LesionDatasetMapper(cfg, is_train=False)
    chosen = pick_records(records, args.pick, args.num, seed=args.seed)
    check_channel(args.channel, model.backbone)
    images = tqdm(chosen, desc="images", disable=None)
    judge_image = None
    if args.score_threshold is not None:
        options = {"score_threshold": args.score_threshold, "inclusive": cfg.TEST.INCLUSIVE_BOXES}
        judge_image = partial(match_outcome, **options)
    if isinstance(model.backbone, SliceImages):
        slices = [record_slices(model, mapper, record, args.channel) for record in images]
        write = partial(write_slice_pages, recordings=slices, judge_image=judge_image)
    else:
        recordings = [record_image(model, mapper(record)) for record in images]
        rows = make_rows(chosen, recordings, judge_image=judge_image)
        outcomes = [] if judge_image is None else OUTCOME_LEGEND
        write = partial(write_rows, rows=rows, legend=[*BOXES_AND_RECIST, *outcomes])
    remove_pictures(output, names_of_pictures(records))
    return write(args.dataset, window, output=output, style=PAGE_STYLES[args.style])


def attention_config(args: argparse.Namespace) -> CfgNode:
    """The config of a run, changed so that the model computes every level.

    Args:
        args: with ``config_file``, ``weights`` and ``opts``.

    Raises:
        InputError: as :func:`load_config`.
    """
    cfg = load_config(args)
    cfg.MODEL.WEIGHTS = args.weights
    cfg.MODEL.SEG_HEAD.PREDICT_MASKS = True  # P1 and P0
    fit_device(cfg)
    return cfg


def load_attentive_model(cfg: CfgNode) -> nn.Module:
    """Build a model with attention for inference, with the weights of MODEL.WEIGHTS.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the model has neither gates nor attention to slices, or it has gates but no
            segmentation, or the checkpoint lacks weights of the model.
    """
    model = build_model(cfg).eval()
    if isinstance(model.backbone, SliceImages):
        _check_slice_attention(model)
    else:
        _check_gates(model, cfg)
    load_trained(LesionCheckpointer(model), cfg.MODEL.WEIGHTS)
    return model


def _check_slice_attention(model: nn.Module) -> None:
    backbone = model.backbone
    if backbone.contextual_attention is None and backbone.spatial_attention is None:
        raise ValueError(
            "MODEL.RFCN_3DCE: found CONTEXTUAL_ATTENTION False and SPATIAL_ATTENTION False, "
            "expected at least one of them True"
        )


def _check_gates(model: nn.Module, cfg: CfgNode) -> None:
    if not any(isinstance(module, AttentionGate) for module in model.modules()):
        raise ValueError(
            f"MODEL.UNET_FPN.ATTENTION: found {cfg.MODEL.UNET_FPN.ATTENTION} with MODEL.BACKBONE."
            f"NAME {cfg.MODEL.BACKBONE.NAME!r}, expected True with a U-FPN, which then has gates"
        )
    if cfg.MODEL.META_ARCHITECTURE != "RetinaUNet":
        raise ValueError(
            f"MODEL.META_ARCHITECTURE: found {cfg.MODEL.META_ARCHITECTURE!r}, expected "
            "'RetinaUNet', which has a segmentation"
        )


def record_image(model: nn.Module, sample: dict) -> Recording:
    """Run a model on one image and record its maps.

    Args:
        model: a :class:`RetinaUNet` with gates that predicts masks, in evaluation mode.
        sample: as :class:`LesionDatasetMapper` returns it.
    """
    with torch.inference_mode(), record_attention(model) as maps, _record_logits(model) as logits:
        (output,) = model([sample])
    foreground = 1 - logits[0].softmax(dim=1)[0, 0]
    predictions = output["instances"].to("cpu")
    predictions.remove("pred_masks")  # the heat map shows their probabilities
    image_size = tuple(sample["image"].shape[-2:])
    return Recording(
        attention={level: maps[level][0, 0].float().cpu() for level in sorted(maps, reverse=True)},
        foreground=foreground.float().cpu(),
        image_size=image_size,
        extent=crop_box(sample, image_size),
        predictions=predictions,
    )


@contextmanager
def _record_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the segmentation logits (N, K + 1, H, W) of every forward pass."""
    logits: list[Tensor] = []
    handle = model.seg_predictor.register_forward_hook(
        lambda module, inputs, output: logits.append(output.detach())
    )
    try:
        yield logits
    finally:
        handle.remove()


def make_rows(
    records: Sequence[dict],
    recordings: Sequence[Recording],
    *,
    judge_image: JudgeImage | None = None,
) -> list[Row]:
    """Turn recordings into heat maps: one per level, from coarse to fine, and the segmentation.

    The colors of a level span its values in all of these images, so that images can be compared;
    those of the segmentation span 0 to 1.

    Args:
        records: the images' Detectron2 dicts.
        recordings: one per image.
        judge_image: a function such as :func:`~lesion_d2.visualization.match_outcome`; if given,
            the detections are drawn over the segmentation.
    """
    levels = recordings[0].attention
    low = {level: min(float(r.attention[level].min()) for r in recordings) for level in levels}
    high = {level: max(float(r.attention[level].max()) for r in recordings) for level in levels}
    rows = []
    for record, recording in zip(records, recordings, strict=True):
        geometry = {
            "image_size": recording.image_size,
            "extent": recording.extent,
            "slice_size": (record["height"], record["width"]),
        }
        maps = []
        for level, values in recording.attention.items():
            title = f"attention {level.upper()}\n" + " x ".join(map(str, values.shape))
            on_slice = place(values, 2 ** int(level[1:]), **geometry)
            maps.append(HeatMap(title, on_slice, low[level], high[level]))
        foreground = place(recording.foreground, 1, **geometry)
        maps.append(HeatMap("segmentation\nprobability of a lesion", foreground))
        outcome = None
        if judge_image is not None:
            outcome = judge_image(record, recording.predictions)
        rows.append(Row(record, maps, outcome))
    return rows
