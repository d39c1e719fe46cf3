"""Compute masks from the RECIST diameters of a data set, and write them to one file for training.

python -m lesion_d2.tools.prepare_masks --dataset deeplesion_train --method grabcut \\
    --output datasets/deeplesion_train_grabcut.json

INPUT.PSEUDO_MASK_FILES "('datasets/deeplesion_train_grabcut.json',)" lets a training read the file.
Running it again after an interruption reuses finished images, which are in OUTPUT.partial, or
OUTPUT.partial.I-of-N for --shard I/N, one of N calls that may run at the same time. The call that
finishes the last image writes the file. With --compare TRUE_MASKS_JSON, the methods are compared
with the true masks of a phantom data set instead.
"""

import argparse
import glob
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lesion_d2  # noqa: F401  (registers the data sets)
from lesion_d2.data.catalog import is_registered, suggest_names
from lesion_d2.data.dataset_options import WHOLE_SET, DatasetOptions, read_dataset
from lesion_d2.data.formats.problems import short_repr
from lesion_d2.data.pseudo_masks import (
    METHODS,
    grabcut_image,
    grabcut_mask,
    lesion_ends,
    pseudo_mask,
)
from lesion_d2.data.pseudo_masks.files import (
    entry_problems,
    load_mask_file,
    mask_annotation,
    write_mask_file,
)
from lesion_d2.data.slices.ct import read_slice
from lesion_d2.structures.boxes import xyxy_box
from lesion_d2.structures.ignore_regions import lesions_of
from lesion_d2.structures.rle import check_mask, decode_mask
from lesion_d2.utils.errors import InputError, run_program
from lesion_d2.utils.files import locked, named_errors, parse_json, read_json
from lesion_d2.utils.parallel import map_with_progress
from lesion_d2.utils.shards import WHOLE, Shard, joining
from lesion_d2.utils.values import is_name

import cv2
import numpy as np
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from .common.arguments import add_shard, positive

logger = logging.getLogger(__name__)

WHOLE_SLICE = "grabcut, whole slice"


class Summary(NamedTuple):
    """Summary of a run: lesions and fallbacks in the file, and whether it existed before."""

    lesions: int
    fallbacks: int
    stood: bool


class Comparison(NamedTuple):
    """A method compared with true masks: Dice of every lesion, median CPU time per lesion in ms."""

    dice: np.ndarray
    milliseconds: float


def prepare_masks(
    dataset: str,
    method: str,
    output: str,
    workers: int | None = None,
    shard: Shard = WHOLE,
    *,
    options: DatasetOptions = WHOLE_SET,
) -> Summary | None:
    """Write the masks of all lesions of a data set to one file; the same for any ``workers``.

    Args:
        dataset: its name in ``DatasetCatalog``.
        method: "grabcut" or "ellipse".
        output: the JSON file to write. If it exists and covers the data set, nothing is done; if
            it is for the same data set and method but incomplete, it is written again.
        workers: processes; all cores by default.
        shard: the part of the images of this call; the call that finishes the last part writes
            the same file as a call without shards.
        options: what of the data set is left out.

    Returns:
        None if images of other parts are missing, or another call is about to write the file.

    Raises:
        ValueError: ``output`` or a journal ``output.partial*`` belong to another data set or
            method, or are damaged; a slice cannot be read.
        BlockingIOError: another process is working on this part.
        BrokenProcessPool: a process was killed; finished images are in the journal.
    """
    dicts = read_dataset(dataset, options)
    info = {"method": method, "dataset": dataset, "window": "DICOM"}
    journal = f"{output}.partial"
    summary = _existing_summary(dicts, info, output)
    if summary is not None:
        _remove_journals(journal, info, dicts)
        return summary
    folder = os.path.dirname(output)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with locked(shard.file(journal)):
        _finish_journal(journal, info, dicts, workers, shard)
        done = _read_journals(journal, info, dicts)
        # Checked before joining() locks, so that an early call never keeps the last from joining.
        if not all(d["image_id"] in done for d in dicts):
            return _existing_summary(dicts, info, output)  # another call may have just joined them
        with joining(journal, shard) as is_ours:
            if is_ours and not os.path.exists(shard.file(journal)):  # joined and removed
                Path(journal).unlink(missing_ok=True)  # created again by the lock
                is_ours = False
            if not is_ours:
                return _existing_summary(dicts, info, output)
            annotations = [a for d in dicts for a in done[d["image_id"]]]
            write_mask_file(output, info, annotations)
            for file in _journals(journal):
                Path(file).unlink(missing_ok=True)
    return Summary(len(annotations), sum(a["fell_back"] for a in annotations), False)


def _finish_journal(
    journal: str, info: dict, dicts: list[dict], workers: int | None, shard: Shard
) -> None:
    """Compute the entries of a part's images that no journal has, and write them to its own."""
    method, own = info["method"], shard.file(journal)
    _cut_half_line(own)
    done, part = _read_journals(journal, info, dicts), shard.of(dicts)
    left = [d for d in part if d["image_id"] not in done]
    if len(left) < len(part):
        logger.info(f"{own}: resuming after {len(part) - len(left)} of {len(part)} images")
    with named_errors(own), open(own, "a") as file:
        if file.tell() == 0:
            _append(file, {"info": info})
        work, total = partial(_image_masks, method=method), len(part)
        bar = {"total": total, "initial": total - len(left), "desc": f"{method} masks"}
        with map_with_progress(work, left, workers, unit="image", **bar) as results:
            for image_id, annotations in results:
                _append(file, {"image_id": image_id, "annotations": annotations})


def dice_against_truth(
    dataset: str,
    method: str,
    true_masks: str,
    limit: int | None = None,
    *,
    diameters: tuple[float, float] = (0.0, np.inf),
    options: DatasetOptions = WHOLE_SET,
) -> Comparison:
    """Measure a method on a phantom data set.

    Args:
        dataset: its name in ``DatasetCatalog``.
        method: "grabcut", "ellipse" or :data:`WHOLE_SLICE`, GrabCut without its crop.
        true_masks: the ``true_masks.json`` that
            :func:`lesion_d2.data.phantoms.phantom.write_phantom` wrote.
        limit: maximum number of lesions, spread evenly over the data set; all by default.
        diameters: only lesions with a long diameter from the first to the second, pixels.
        options: what of the data set is left out.

    Raises:
        FileNotFoundError: there is no such file of true masks.
        ValueError: the file has no mask for a lesion, or no lesion has such a diameter.
    """
    low, high = diameters
    lesions = [
        (d, a)
        for d in read_dataset(dataset, options)
        for a in lesions_of(d["annotations"])
        if low <= math.dist(lesion_ends(a)[:2], lesion_ends(a)[2:4]) <= high
    ]
    if not lesions:
        raise ValueError(
            f"{dataset}: found no lesion with a long diameter of {low} to {high} px, expected at "
            "least one"
        )
    if limit is not None and limit < len(lesions):
        lesions = [lesions[i] for i in np.linspace(0, len(lesions) - 1, limit).astype(int)]
    truth = _read_truth(true_masks)
    dices, seconds = [], []
    for record, annotation in lesions:
        _check_truth(true_masks, truth, dataset, record, annotation)
    for record, annotation in tqdm(lesions, desc=method, unit="lesion", leave=False):
        image = _read_image(record)
        start = time.process_time()
        mask = _mask(method, image, annotation)
        seconds.append(time.process_time() - start)
        dices.append(_dice(mask, decode_mask(truth[record["image_id"]][str(annotation["row"])])))
    return Comparison(np.array(dices), 1e3 * float(np.median(seconds)))


def _mask(method: str, image: np.ndarray, annotation: dict) -> np.ndarray:
    if method == WHOLE_SLICE:
        margin = max(image.shape)
        return grabcut_mask(image, lesion_ends(annotation), xyxy_box(annotation), margin=margin)
    return pseudo_mask(method, image, lesion_ends(annotation), xyxy_box(annotation)).mask


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def _read_truth(path: str) -> dict:
    truth = read_json(path, "true masks of a phantom data set")
    if not isinstance(truth, dict):
        raise ValueError(f"{path}: found a {type(truth).__name__}, expected masks by image id")
    return truth


def _check_truth(path: str, truth: dict, dataset: str, record: dict, annotation: dict) -> None:
    """Raise an error if a file has no true mask of a lesion."""
    image_id, row = record["image_id"], str(annotation["row"])
    masks = truth.get(image_id, {})
    if not isinstance(masks, dict):
        raise ValueError(
            f"{path}: image {image_id}: found {short_repr(masks)}, expected masks by rows"
        )
    if row not in masks:
        raise ValueError(
            f"{path}: found no mask of row {row} (image {image_id}) of {dataset}, expected one"
        )
    try:
        check_mask(masks[row], (record["height"], record["width"]))
    except ValueError as error:
        raise ValueError(f"{path}: image {image_id}, row {row}: {error}") from None


def _read_image(record: dict) -> np.ndarray:
    """The key slice as the input of GrabCut, (H, W) uint8."""
    hu = read_slice(record["file_name"], (record["height"], record["width"]))
    return grabcut_image(hu, record["window"])


def _image_masks(record: dict, method: str) -> tuple[str, list[dict]]:
    """One image's entries of the mask file."""
    size = (record["height"], record["width"])
    image = _read_image(record) if method == "grabcut" else None
    annotations = []
    for annotation in lesions_of(record["annotations"]):
        try:
            box = xyxy_box(annotation)
            found = pseudo_mask(method, image, lesion_ends(annotation), box, size)
        except ValueError as error:
            raise ValueError(f"{record['file_name']}, row {annotation['row']}: {error}") from error
        annotations.append(mask_annotation(record["image_id"], annotation, found))
    return record["image_id"], annotations


def _append(file, line: dict) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()  # flushed lines survive if the process is killed


def _cut_half_line(file: str) -> None:
    """Remove an incomplete last line, left by a killed call, from a file."""
    if os.path.exists(file):
        with open(file, "rb+") as journal:
            journal.truncate(journal.read().rfind(b"\n") + 1)


def _journals(journal: str) -> list[str]:
    """The journals of all parts, and that of calls without shards."""
    parts = glob.glob(f"{glob.escape(journal)}.*-of-*")
    return [file for file in (journal, *sorted(parts)) if os.path.exists(file)]


def _read_journals(journal: str, info: dict, dicts: list[dict]) -> dict[str, list[dict]]:
    """The images finished by any call: image id to entries."""
    done: dict[str, list[dict]] = {}
    for file in _journals(journal):
        done.update(_read_journal(file, info, dicts))
    return done


def _remove_journals(journal: str, info: dict, dicts: list[dict]) -> None:
    """Remove the journals of a call that was killed after it had written the file."""
    for file in _journals(journal):
        # Journals in use, or of another run, are kept.
        with suppress(BlockingIOError, ValueError), locked(file):
            _read_journal(file, info, dicts)
            Path(file).unlink(missing_ok=True)


def _read_journal(path: str, info: dict, dicts: list[dict]) -> dict[str, list[dict]]:
    """The finished images of a journal: image id to entries.

    An incomplete last line, and images whose lesions have changed, are left out.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:  # another call has just joined the parts
        return {}
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    if not lines:
        return {}
    found = _parse_line(path, 1, lines[0]).get("info")
    if found != info:
        raise ValueError(
            f"{path}: found the journal of {found}, expected {info}; finish that run or remove "
            "the file"
        )
    images = {d["image_id"]: d for d in dicts}
    done = {}
    for number, line in enumerate(lines[1:], start=2):
        entry = _parse_line(path, number, line)
        image_id, annotations = entry.get("image_id"), entry.get("annotations")
        problem = _entry_problem(image_id, annotations)
        if problem:
            raise ValueError(f"{path}, line {number}: {problem}; remove the file")
        image = images.get(image_id)
        if image is not None and _are_of(annotations, image):
            done[image_id] = annotations
    return done


def _entry_problem(image_id: object, annotations: object) -> str | None:
    """The fault of an image's line in a journal."""
    if not is_name(image_id):
        return f"image_id: found {short_repr(image_id)}, expected a name or number"
    if not isinstance(annotations, list):
        return f"annotations: found {short_repr(annotations)}, expected a list"
    for number, annotation in enumerate(annotations):
        for problem in entry_problems(annotation):
            return f"annotation {number}: {problem}"
    return None


def _are_of(annotations: list[dict], image: dict) -> bool:
    """Whether entries match the current lesions and size of an image."""
    size = [image["height"], image["width"]]
    return _lesions(annotations) == _lesions(lesions_of(image["annotations"])) and all(
        a["image_id"] == image["image_id"] and a["segmentation"]["size"] == size
        for a in annotations
    )


def _parse_line(path: str, number: int, line: bytes) -> dict:
    try:
        entry = parse_json(line, path)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        raise ValueError(
            f"{path}, line {number}: found {line[:60]!r}, expected a JSON object; remove the file"
        )
    return entry


def _lesions(annotations: Iterable[dict]) -> list[tuple]:
    return [(a["row"], lesion_ends(a)) for a in annotations]


def _existing_summary(dicts: list[dict], info: dict, output: str) -> Summary | None:
    """The summary of a file that covers the data set; None if it does not, or does not exist.

    Raises:
        ValueError: it belongs to another data set or method, or is damaged.
    """
    if not os.path.exists(output):
        return None
    masks = load_mask_file(output)
    found = {key: masks.info.get(key) for key in info}
    if found != info:
        raise ValueError(
            f"{output}: found masks of {found}, expected {info}; choose another --output"
        )
    try:
        entries = [masks.entry(d, a) for d in dicts for a in lesions_of(d["annotations"])]
    except ValueError as error:
        logger.warning(f"Masks are computed again: {error}")
        return None
    return Summary(len(entries), sum(e["fell_back"] for e in entries), True)


def _compare(dataset: str, true_masks: str, limit: int | None, options: DatasetOptions) -> None:
    cv2.setNumThreads(1)
    methods = ("ellipse", "grabcut", WHOLE_SLICE)
    results = [
        dice_against_truth(dataset, method, true_masks, limit, options=options)
        for method in methods
    ]
    print(f"{dataset} against {true_masks}: {len(results[0].dice)} lesions")
    print(f"{'method':24}{'mean Dice':>10}{'median':>10}{'ms per lesion':>14}")
    for method, (dice, milliseconds) in zip(methods, results, strict=True):
        print(f"{method:24}{dice.mean():>10.4f}{np.median(dice):>10.4f}{milliseconds:>14.1f}")


def _parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lesion_d2.tools.prepare_masks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--dataset", required=True, help="name of a registered data set, such as deeplesion_train"
    )
    parser.add_argument(
        "--method", choices=METHODS, default="grabcut", help="how masks are made (default: grabcut)"
    )
    parser.add_argument("--output", help="the JSON file to write")
    parser.add_argument("--workers", type=positive, help="processes (default: all cores)")
    parser.add_argument(
        "--compare",
        metavar="TRUE_MASKS_JSON",
        help="only measure the methods' Dice with these true masks",
    )
    parser.add_argument("--limit", type=positive, help="maximum number of lesions in --compare")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out images whose file is missing"
    )
    add_shard(parser.add_argument)
    args = parser.parse_args(argv)
    if (args.output is None) == (args.compare is None):
        parser.error("expected exactly one of --output and --compare")
    if args.compare is not None and not args.shard.is_whole:
        parser.error("found --shard with --compare, expected one of them")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the tool.

    Args:
        argv: its arguments; the command line's by default.

    Returns:
        The exit status: 0, 1 after an error, 130 after Ctrl-C.
    """
    args = _parse_args(argv)
    setup_logger(name="lesion_d2")
    goes_on = ""
    if args.output:
        journal = args.shard.file(f"{args.output}.partial")
        goes_on = f": run the same command again to continue from {journal}"
    return run_program(lambda: _run(args), interrupted=f"interrupted{goes_on}")


def _run(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    if not is_registered(args.dataset):
        known = suggest_names(args.dataset)
        raise InputError(f"--dataset: found {args.dataset!r}, expected a name such as {known}")
    options = DatasetOptions(allow_missing=args.allow_missing)
    if args.compare is not None:
        _compare(args.dataset, args.compare, args.limit, options)
        return
    summary = prepare_masks(
        args.dataset, args.method, args.output, args.workers, args.shard, options=options
    )
    if summary is None:
        print(
            f"part {args.shard} of {args.dataset} has finished: the last part writes {args.output}"
        )
        return
    if summary.stood:
        print(f"{args.output} already exists and covers {args.dataset}: nothing to do")
    share = 100 * summary.fallbacks / max(summary.lesions, 1)
    print(
        f"{args.dataset}: {summary.lesions} lesions, {summary.fallbacks} fallbacks to the ellipse "
        f"({share:.1f} %), {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
