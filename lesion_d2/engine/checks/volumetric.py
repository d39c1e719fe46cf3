"""Checks of volumes for a model of volumes."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode

from ...data.volumetric import volume_records
from ...data.volumetric.reading import model_shape
from ...structures.ignore_regions import lesions_of
from ..input_errors import as_input_error

logger = logging.getLogger(__name__)


def read_volumes(cfg: CfgNode, kind: str, datasets: Sequence[list[dict]]) -> list[dict]:
    """Join the slices of data sets to volumes, and check that the model supports these.

    In training, a warning is logged if most lesions have a box on a single slice, as on key slices.

    Args:
        cfg: of the run.
        kind: "TRAIN" or "TEST".
        datasets: dicts of slices of its data sets, see :func:`~.datasets.load_datasets`.

    Returns:
        The records of volumes (runs of slices).

    Raises:
        InputError: slices do not form volumes, or a required spacing is missing.
    """
    records = []
    with as_input_error(f"DATASETS.{kind}: "):
        for name, images in zip(cfg.DATASETS[kind], datasets, strict=True):
            records += volume_records(images, name)
        for record in records:
            model_shape(record, cfg.INPUT.VOLUME.SPACING)
    depths = [
        (record["image_id"], annotation["bbox"][5] - annotation["bbox"][2])
        for record in records
        if record["shape"][0] > 1
        for annotation in lesions_of(record["annotations"])
    ]
    thin = [name for name, depth in depths if depth <= 1]
    if kind == "TRAIN" and len(thin) > len(depths) / 2:
        logger.warning(
            f"DATASETS.TRAIN: found {len(thin)} of {len(depths)} lesions on a single slice (the "
            f"first in volume {thin[0]}), expected boxes on all slices of a lesion: a model of "
            "volumes learns boxes as deep as these are"
        )
    return records
