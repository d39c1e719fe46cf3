"""Benchmark of the mean teacher of Bai et al. against its student alone."""

from collections.abc import Callable, Iterator
from functools import partial

from lesion_d2.modeling import MeanTeacher

import torch

from .. import configs
from ..configs import load_config
from ..inputs import random_batch
from ..timing import Row, paired_ratio, time_calls
from .running import WARM_UP, build_for_device, training_step

NUM_PSEUDO_LABELS = 2  # pseudo-labels per image


def measure_bai(device: str, *, repeats: int = 9) -> Iterator[Row]:
    """A training step of the mean teacher against the plain detector's, and its parts."""
    file = configs.BAI_GPU_CONFIG if device == "cuda" else configs.BAI_CPU_CONFIG
    cfg = load_config(file, device)
    batch = with_weak_views(random_batch(cfg), masks=cfg.MODEL.MASK_ON)
    teacher, plain = MeanTeacher(cfg, build_for_device(cfg)), build_for_device(cfg)
    plain.load_state_dict(teacher.student.state_dict())
    num_pseudo_labels = lower_score_threshold(teacher, batch)
    teacher.start_iter = 0
    calls = [mean_teacher_step(teacher, batch), training_step(plain, batch)]
    calls += [partial(teacher.generate_pseudo_labels, batch), teacher.update_teacher]
    ours, theirs, *parts = time_calls(calls, repeats=repeats, warm_up=WARM_UP, device=device)
    shares = [paired_ratio("", part, theirs, "").measured for part in parts]
    size = " x ".join(map(str, batch[0]["image"].shape))
    note = f"{len(batch)} images of {size}, {num_pseudo_labels} pseudo-labels, {file.stem}"
    note += "; teacher's inference {:.2f} x, its averaging {:.2f} x".format(*shares)
    title = f"mean teacher / plain detector, {device}: training step"
    yield paired_ratio(title, ours, theirs, note, limit=1.5)


def with_weak_views(batch: list[dict], *, masks: bool) -> list[dict]:
    """A batch with the teacher's input, the same image; without masks if the model has none."""
    for sample in batch:
        sample["weak_image"] = sample["image"].clone()
        sample["slice_to_image"] = torch.eye(2, 3)
        if not masks:
            sample["instances"].remove("gt_masks")
    return batch


def lower_score_threshold(model: MeanTeacher, batch: list[dict]) -> int:
    """Set the threshold of pseudo-labels to the score of the best detections; return their number.

    Scores of an untrained detector are far below the paper's threshold.
    """
    model.score_threshold = 0.0
    scores = torch.cat([found.scores for found in model.generate_pseudo_labels(batch)])
    model.score_threshold = float(
        scores.sort(descending=True).values[NUM_PSEUDO_LABELS * len(batch) - 1]
    )
    return sum(map(len, model.generate_pseudo_labels(batch)))


def mean_teacher_step(model: MeanTeacher, batch: list[dict]) -> Callable[[], None]:
    """A function that trains the student by one step of SGD and moves the teacher."""
    step = training_step(model, batch)

    def step_and_move() -> None:
        """Pseudo-labels, forward, backward, update, and moving average."""
        step()
        model.update_teacher()

    return step_and_move
