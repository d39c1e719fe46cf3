"""What a model's attention gates let through, and its segmentation, for pictures."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lesion_d2.data.deeplesion import load_records
from lesion_d2.data.mapper import LesionDatasetMapper
from lesion_d2.engine import LesionCheckpointer, fit_device, load_config
from lesion_d2.modeling.attention import AttentionGate, record_attention
from lesion_d2.visualization import OUTCOME_LEGEND, TRUTH_LEGEND, HeatMap, judge, parse_window

import torch
import torch.nn.functional as F
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

BOXES_AND_RECIST = TRUTH_LEGEND[:2]


@dataclass
class Recording:
    """What a model computed for one image.

    Attributes:
        attention: by level, "p4" to "p0", the gate's map (h, w) in [0, 1] for the padded image.
        foreground: (H, W), the probability of any lesion, for the padded image.
        image_size: height and width of the image without its padding.
        predictions: the detections without masks, in pixels of the slice, on the CPU.
    """

    attention: dict[str, Tensor]
    foreground: Tensor
    image_size: tuple[int, int]
    predictions: Instances


def draw_attention(args: argparse.Namespace) -> list[str]:
    """Write the chosen images' heat maps; return the pictures' paths, the contact sheet last."""
    window = parse_window(args.window)
    cfg = attention_config(args)
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "attention", args.dataset)
    records = load_records(args.dataset, allow_missing=args.allow_missing)
    check_output(output, records, args.dataset)
    model, mapper = load_gated_model(cfg), LesionDatasetMapper(cfg, is_train=False)
    chosen = pick_records(records, args.pick, args.num, seed=args.seed)
    recordings = [record_image(model, mapper(r)) for r in tqdm(chosen, desc="images", disable=None)]
    rows = make_rows(chosen, recordings, score_threshold=args.score_threshold)
    remove_pictures(output, names_of_pictures(records))
    outcomes = [] if args.score_threshold is None else OUTCOME_LEGEND
    return write_rows(args.dataset, window, rows, output, [*BOXES_AND_RECIST, *outcomes])


def attention_config(args: argparse.Namespace) -> CfgNode:
    """The config of a run, with all that makes the model compute every level.

    Args:
        args: with ``config_file``, ``weights`` and ``opts``.

    Raises:
        InputError: as :func:`load_config`.
    """
    cfg = load_config(args)
    cfg.MODEL.WEIGHTS = args.weights
    cfg.MODEL.RETINA_UNET.PREDICT_MASKS = True  # P1 and P0
    fit_device(cfg)
    return cfg


def load_gated_model(cfg: CfgNode) -> nn.Module:
    """Build a model with attention gates for inference, with the weights of MODEL.WEIGHTS.

    Raises:
        FileNotFoundError: no such file of weights.
        ValueError: the model has no gates or no segmentation, or the file lacks weights of it.
    """
    model = build_model(cfg).eval()
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
    _CompleteCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


class _CompleteCheckpointer(LesionCheckpointer):
    """For which a file that lacks weights is an error: untrained gates show nothing."""

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        names = [*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)]
        if names:
            file = self._parsed_url_during_load.geturl()
            raise ValueError(
                f"{file}: lacks, or has in another shape, {len(names)} of the model's weights, "
                f"such as {names[0]}; expected a checkpoint of this config's model"
            )
        return incompatible


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
    predictions.remove("pred_masks")  # the heat map shows them before the threshold
    return Recording(
        attention={level: maps[level][0, 0].float().cpu() for level in sorted(maps, reverse=True)},
        foreground=foreground.float().cpu(),
        image_size=tuple(sample["image"].shape[-2:]),
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
    score_threshold: float | None = None,
) -> list[Row]:
    """Turn what was recorded into heat maps: a level each, from coarse to fine, and segmentation.

    The colors of a level span the values that it has in all these images, so that images can be
    compared; those of the segmentation span 0 to 1.

    Args:
        records: the images' Detectron2 dicts.
        recordings: one an image.
        score_threshold: draw detections from this score on over the segmentation.
    """
    levels = recordings[0].attention
    low = {level: min(float(r.attention[level].min()) for r in recordings) for level in levels}
    high = {level: max(float(r.attention[level].max()) for r in recordings) for level in levels}
    rows = []
    for record, recording in zip(records, recordings, strict=True):
        slice_size = record["height"], record["width"]
        maps = []
        for level, values in recording.attention.items():
            title = f"attention {level.upper()}\n" + " x ".join(map(str, values.shape))
            on_slice = upsample(values, 2 ** int(level[1:]), recording.image_size, slice_size)
            maps.append(HeatMap(title, on_slice.numpy(), low[level], high[level]))
        foreground = upsample(recording.foreground, 1, recording.image_size, slice_size)
        maps.append(HeatMap("segmentation\nprobability of a lesion", foreground.numpy()))
        outcome = None
        if score_threshold is not None:
            outcome = judge(record, recording.predictions, score_threshold=score_threshold)
        rows.append(Row(record, maps, outcome))
    return rows


def upsample(
    values: Tensor, stride: int, image_size: tuple[int, int], slice_size: tuple[int, int]
) -> Tensor:
    """Bring a map to the pixels of the slice, bilinearly.

    Args:
        values: (h, w), at ``stride``, for the padded image.
        stride: pixels of the image a value.
        image_size: height and width of the image without padding, to which the slice was resized.
        slice_size: height and width of the slice.

    Returns:
        (height, width) of the slice.
    """
    height, width = image_size
    resize = {"mode": "bilinear", "align_corners": False}
    padded = F.interpolate(values[None, None], scale_factor=stride, **resize)
    return F.interpolate(padded[..., :height, :width], slice_size, antialias=True, **resize)[0, 0]
