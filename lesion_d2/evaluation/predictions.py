"""Gathering and ordering of predictions, for all evaluators."""

import itertools
import logging
from collections.abc import Collection, Iterable
from typing import Any

from detectron2.utils import comm

logger = logging.getLogger(__name__)


def gather_predictions(predictions: list, *, distributed: bool) -> list | None:
    """Gather the predictions of all processes in the first; returns None in the others.

    Args:
        predictions: the predictions of this process.
        distributed: whether there are other processes.
    """
    if not distributed:
        return predictions
    comm.synchronize()
    gathered = comm.gather(predictions, dst=0)
    return list(itertools.chain(*gathered)) if comm.is_main_process() else None


def order_by_image(
    predictions: Iterable[tuple[object, Any]],
    image_ids: Collection,
    dataset_name: str,
    unit: str = "images",
) -> dict[object, Any]:
    """The first prediction of each image, in the order of the data set.

    The order breaks ties in score, so it must not depend on which process predicted which image.
    Repeated and missing images are logged.

    Args:
        predictions: (image_id, prediction) pairs.
        image_ids: those of the data set, in its order.
        dataset_name, unit: for the log.
    """
    predictions = list(predictions)
    first: dict[object, Any] = {}
    for image_id, prediction in predictions:
        first.setdefault(image_id, prediction)
    if len(first) < len(predictions):
        logger.warning("Dropped %d repeated %s.", len(predictions) - len(first), unit)
    if len(first) < len(image_ids):
        missing = len(image_ids) - len(first)
        logger.warning("%d %s of %s have no prediction.", missing, unit, dataset_name)
    return {image_id: first[image_id] for image_id in image_ids if image_id in first}
